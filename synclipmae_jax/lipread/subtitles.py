"""Readings as text: lines with times, SubRip (.srt), WebVTT (.vtt) and JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from synclipmae_jax.decoding.alignment import Word
  from synclipmae_jax.lipread.reader import Reading

FORMATS = (".srt", ".vtt", ".json")
LINE = 42  # characters of a subtitle, by the common guideline
SECONDS, PAUSE = 6.0, 0.6  # longest subtitle; a pause that ends one


def cues(readings: Sequence[Reading]) -> list[list[Word]]:
  """The words of each subtitle: at most LINE characters and SECONDS, ended by a pause or the end of a stretch."""
  found: list[list[Word]] = []
  for reading in readings:
    line: list[Word] = []
    for word in reading.words:
      length = sum(len(other.text) + 1 for other in line) + len(word.text)
      if line and (length > LINE or word.end - line[0].start > SECONDS or word.start - line[-1].end > PAUSE):
        found.append(line)
        line = []
      line.append(word)
    found.append(line)
  return [line for line in found if line]


def spoken(reading: Reading, line: Sequence[Word], *, several: bool) -> str:
  """The text of a subtitle, behind the number of its speaker where there are several."""
  return _speaker(reading, several) + " ".join(word.text for word in line)


def write(readings: Sequence[Reading], suffix: str) -> str:
  """The content of a file with this suffix, one of FORMATS."""
  several = len({reading.speaker for reading in readings}) > 1
  shown = [(line, spoken(reading, line, several=several)) for reading in readings for line in cues([reading])]
  match suffix:
    case ".srt":
      return "\n".join(
        f"{number}\n{_clock(line[0].start, ',')} --> {_clock(line[-1].end, ',')}\n{text}\n"
        for number, (line, text) in enumerate(shown, start=1)
      )
    case ".vtt":
      body = (f"{_clock(line[0].start, '.')} --> {_clock(line[-1].end, '.')}\n{text}\n" for line, text in shown)
      return "\n".join(["WEBVTT\n", *body])
    case ".json":
      return json.dumps([dataclasses.asdict(reading) for reading in readings], ensure_ascii=False, indent=1) + "\n"
  raise ValueError(f"unknown form {suffix!r}: one of {', '.join(FORMATS)}")


def lines(readings: Sequence[Reading]) -> str:
  """One line a reading: its times, confidence, speaker if there are several, text, and why it is doubtful."""
  several = len({reading.speaker for reading in readings}) > 1
  return "".join(
    f"{r.start:7.2f} {r.end:7.2f}  {100 * r.confidence:3.0f} %  {_speaker(r, several)}{r.text}"
    + "".join(f"  [doubtful: {doubt}]" for doubt in r.doubts)
    + "\n"
    for r in readings
  )


def _speaker(reading: Reading, several: bool) -> str:
  return f"SPEAKER {reading.speaker}: " if several else ""


def _clock(seconds: float, point: str) -> str:
  milliseconds = round(1000 * max(seconds, 0))
  minutes, milliseconds = divmod(milliseconds, 60_000)
  hours, minutes = divmod(minutes, 60)
  return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"
