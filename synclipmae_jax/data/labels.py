"""What is known of a file beside its pixels and samples, and what of it holds for a clip cut out of the file.

Labels are names. The vocabulary of a corpus, in its order, travels with the records.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from synclipmae_jax.types import FPS, InputError, Segment

# Who wrote the text: a person (also a prompt that was read aloud), a speech recogniser, or the generator of the speech.
TEXT_SOURCES = ("human", "asr", "synthetic")
TIMED = {"emotion": "emotion_segments", "actions": "action_segments"}  # labels with names -> their timed form
VOCABULARIES = (*TIMED, "appearance")  # labels with names
SEGMENTS = ("words", *TIMED.values())
OF_FILE = ("speaker", "text", "text_source", *SEGMENTS, *VOCABULARIES)
NAMES = (*OF_FILE, "whole")  # of a clip: what `cut` returns


def check(key: str, known: Mapping[str, Any]) -> None:
  """Raises InputError where the labels of file `key` cannot be right; `known` as in `cut`."""
  if known["text_source"] not in ("", *TEXT_SOURCES):
    raise InputError(f"{key}: the source of a text is one of {', '.join(TEXT_SOURCES)}, not {known['text_source']!r}")
  for name in SEGMENTS:
    for segment in known[name]:
      if not (0 <= segment.start <= segment.end and math.isfinite(segment.end)):
        raise InputError(f"{key}: {name} holds {segment.label!r} from {segment.start} to {segment.end} s")
  for name in VOCABULARIES:
    vocabulary = known["vocabularies"].get(name, ())
    labels = [known[name]] if isinstance(known[name], str) else known[name] or ()
    timed = known[TIMED[name]] if name in TIMED else ()
    for label in [*filter(None, labels), *(segment.label for segment in timed)]:
      if label not in vocabulary:
        known_names = ", ".join(vocabulary) or "none"
        raise InputError(f"{key}: {label!r} is not in the vocabulary of {name} ({known_names})")


def cut(known: Mapping[str, Any], *, start: int, frames: int, whole: bool, offset: int = 0) -> dict[str, Any]:
  """The labels (`NAMES`) of frames [start, start + frames) of a file, its segments shifted and cut to the span.

  `known` has the fields of `corpora.SourceItem`; `whole` says that the span is the file but for its edges. A word
  belongs to the span that holds its middle, so no word is in two clips. Where its words have times, the text of a clip
  is that of its words. Without times, only a whole file keeps its text. Where emotions or actions have times, the clip
  has those of its own segments, and no emotion where they differ; without times it has those of the file, as it has the
  appearance. Of a clip whose picture is moved by `offset` frames the words are in the sound of `offset` frames before.
  """
  first, last = start / FPS, (start + frames) / FPS
  heard_from, heard_to = (start - offset) / FPS, (start + frames - offset) / FPS
  all_words = _segments(known["words"])
  words = [word for word in all_words if heard_from <= (word.start + word.end) / 2 < heard_to]
  timed = {
    name: [segment for segment in _segments(known[field]) if segment.start < last and segment.end > first]
    for name, field in TIMED.items()
  }
  text, emotion, actions = known["text"], known["emotion"], known["actions"]
  if all_words and not (text and len(words) == len(all_words)):
    text = " ".join(word.label for word in words)
  elif not all_words and not whole:
    text = ""
  if known["emotion_segments"]:
    found = {segment.label for segment in timed["emotion"]}
    emotion = found.pop() if len(found) == 1 else ""
  if known["action_segments"]:
    actions = list(dict.fromkeys(segment.label for segment in timed["actions"]))
  return {
    "speaker": known["speaker"],
    "text": text,
    "text_source": known["text_source"] if text or all_words else "",
    "words": _shift(words, heard_from, heard_to),
    "emotion": emotion,
    "emotion_segments": _shift(timed["emotion"], first, last),
    "actions": None if actions is None else tuple(actions),
    "action_segments": _shift(timed["actions"], first, last),
    "appearance": None if (found := known.get("appearance")) is None else tuple(found),  # absent in older manifests
    "whole": whole,
  }


def _segments(rows: Iterable[Sequence[Any]]) -> tuple[Segment, ...]:
  return tuple(Segment(*row) for row in rows)


def _shift(segments: Iterable[Segment], first: float, last: float) -> tuple[Segment, ...]:
  return tuple(
    Segment(round(max(start, first) - first, 4), round(min(end, last) - first, 4), label)
    for start, end, label in segments
  )
