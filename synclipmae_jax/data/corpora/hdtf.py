"""HDTF (Zhang et al. 2021): 369 YouTube videos of politicians and speakers, of which tables give stretches and crops.

  HDTF_dataset/{RD,WDA,WRA}_{video_url,resolution,annotion_time,crop_wh,crop_ratio}.txt      (so spelled)
  <anywhere>/Radio11_0.mp4           the stretch 0 of video Radio11, as the README names clips
  <anywhere>/RD_Radio11_000.mp4      30 s number 0 of it, as MuseTalk and others name them

Stretches of the tables without any file are listed as missing. Times and crops become provenance; the clips are taken
as they are, cut and cropped; whole videos are not read. There are no labels and no official split: people are divided
by `splits.assign`. The annotations are CC BY 4.0, the videos belong to their makers.

Uncertain: the same person has several videos that differ in a final number (AdamKinzinger0, AdamKinzinger1), which is
therefore left out of the group; `Radio11` is the number of a broadcast and stays. Videos with the same address are one
group, too.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

from synclipmae_jax.data.corpora import SourceItem, reading
from synclipmae_jax.types import InputError

_SETS = ("RD", "WDA", "WRA")
_CLIP = re.compile(r"(?:(?P<set>RD|WDA|WRA)_)?(?P<video>.+)_(?P<number>\d+)")
_STRETCH = re.compile(r"(\d+(?::\d+)+)-(\d+(?::\d+)+)")


def recognises(raw: Path) -> bool:
  """Whether a table of stretches is there, or videos are named after a set and a number."""
  if any(_table(raw, name, "annotion_time") for name in _SETS):
    return True
  return reading.mostly(raw, lambda path: (found := _CLIP.fullmatch(path.stem)) and found["set"])


def items(raw: Path) -> Iterator[SourceItem]:
  """Every clip, then every stretch of the tables that has none. Raises InputError for a damaged table."""
  stretches, urls = _stretches(raw), _urls(raw)
  first_at: dict[str, str] = {}
  persons = {video: first_at.setdefault(url, _person(video)) for video, url in urls.items()}

  def item(path: Path, video: str, facts: dict[str, str]) -> SourceItem:
    person = persons.get(video, _person(video))
    return SourceItem.at(
      raw,
      path,
      corpus="hdtf",
      identity=person,
      split_group=person,
      provenance=reading.provenance({"video": video, "url": urls.get(video)} | facts),
    )

  chosen, doubles = reading.by_stem(reading.videos(raw))
  seen, renumbered = set(), set()
  for stem, path in chosen.items():
    if (found := _CLIP.fullmatch(stem)) is None:
      continue
    clip = f"{found['video']}_{found['number']}"
    # The numbers of the second style do not count stretches.
    facts = {"set": found["set"]} if found["set"] else stretches.get(clip, {})
    (renumbered if found["set"] else seen).add(found["video"] if found["set"] else clip)
    yield item(path, found["video"], facts | reading.doubles_note(raw, doubles.get(stem, [])))
  for clip, facts in stretches.items():
    video = clip.rpartition("_")[0]
    if clip not in seen and video not in renumbered:
      yield item(raw / "clips" / f"{clip}.mp4", video, facts)


def _person(video: str) -> str:
  return video if re.fullmatch(r"radio\d*", video, re.IGNORECASE) else video.rstrip("0123456789") or video


def _table(raw: Path, name: str, kind: str) -> Path | None:
  return reading.find(raw, f"{name}_{kind}.txt")


def _rows(raw: Path, kind: str, least: int) -> Iterator[tuple[Path, list[str]]]:
  for name in _SETS:
    if path := _table(raw, name, kind):
      for row in reading.read_rows(path, least):
        if Path(row[0]).name != row[0]:
          raise InputError(f"{path} names a file outside its folder: {row[0]}")
        yield path, row


def _urls(raw: Path) -> dict[str, str]:
  """Video -> its address."""
  return {reading.name(row[0]): row[1] for _, row in _rows(raw, "video_url", 2)}


def _stretches(raw: Path) -> dict[str, dict[str, str]]:
  """Clip -> its time in the video, its crop at the resolution of the tables, and how that was enlarged."""
  found: dict[str, dict[str, str]] = {}
  for path, (video, *times) in _rows(raw, "annotion_time", 2):
    for number, time in enumerate(times):
      if (parts := _STRETCH.fullmatch(time)) is None:
        raise InputError(f"{path}: {video} has the time {time!r}, which is not like 00:30-01:00")
      clip = f"{reading.name(Path(video).stem)}_{number}"
      found[clip] = {"start_s": str(_seconds(parts[1])), "end_s": str(_seconds(parts[2]))}
  for path, (clip, *values) in _rows(raw, "crop_wh", 5):
    try:
      x0, width, y0, height = map(reading.number, values[:4])
      found.setdefault(Path(clip).stem, {})["box"] = reading.box(x0, y0, x0 + width, y0 + height)
    except ValueError as error:
      raise InputError(f"{path}: {clip} has no crop ({error})") from error
  for _, (clip, ratio, *_rest) in _rows(raw, "crop_ratio", 2):
    found.setdefault(Path(clip).stem, {})["enlarged"] = ratio
  return {clip: facts for clip, facts in found.items() if "start_s" in facts}


def _seconds(time: str) -> int:
  return functools.reduce(lambda total, part: 60 * total + int(part), time.split(":"), 0)
