"""MEAD (Wang et al. 2020): 60 actors (Part 0), 8 emotions in 3 levels, 7 views.

  M003/video/<view>/<emotion>/level_<1..3>/001.mp4     M003/audio/<emotion>/level_<1..3>/001.m4a

As unpacked, a further folder (`video/1/front`) occurs: the view is found by its name. One sound belongs to the seven
views of a take; a video without a sound track takes that of its take. Neutral speech has one level.

The authors test on the last ten sentences of each level, so that all actors are in both splits. Here no actor is: they
are divided by `splits.assign`. Nothing is said about the licence in what could be found: ask the authors.

Uncertain: suffix of the sound and whether videos have their own; both are looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from synclipmae_jax.data.corpora import SourceItem, file_key, reading

_ACTOR = re.compile(r"[MW]\d{3}", re.IGNORECASE)
_LEVEL = re.compile(r"level_\d", re.IGNORECASE)
_VIEWS = ("front", "down", "top", "left_30", "left_60", "right_30", "right_60")
_EMOTIONS = ("angry", "contempt", "disgusted", "fear", "happy", "neutral", "sad", "surprised")
_SOUNDS = (".m4a", ".mp4", ".wav", ".aac", ".mp3")


def recognises(raw: Path) -> bool:
  """Whether videos lie below an actor and a view."""

  def matches(path: Path) -> bool:
    parts = path.relative_to(raw).parent.parts
    return bool(_actor(parts)) and any(part.lower() in _VIEWS for part in parts)

  return reading.mostly(raw, matches)


def items(raw: Path) -> Iterator[SourceItem]:
  """Every video of an actor, in order of its path."""
  sounds: dict[tuple[str, ...], Path] = {}
  for path in reading.walk(raw):
    folders = path.relative_to(raw).parent.parts
    if path.suffix.lower() in _SOUNDS and "audio" in map(str.lower, folders):
      sounds.setdefault(_take(folders, path), path)
  for path in reading.videos(raw):
    folders = path.relative_to(raw).parent.parts
    if not (actor := _actor(folders)) or "audio" in map(str.lower, folders):
      continue
    _, emotion, level, _ = take = _take(folders, path)
    sound = sounds.get(take)
    facts = {"view": next((part.lower() for part in folders if part.lower() in _VIEWS), ""), "level": level}
    yield SourceItem.at(
      raw,
      path,
      corpus="mead",
      identity=actor,
      split_group=actor,
      speaker=actor,
      vocabularies={"emotion": reading.EMOTIONS},
      emotion=reading.emotion(emotion) if emotion else "",
      sound_path=sound,
      provenance=reading.provenance(facts | {"sound": file_key(sound.relative_to(raw)) if sound else "missing"}),
    )


def _actor(folders: tuple[str, ...]) -> str:
  return next((part.upper() for part in reversed(folders) if _ACTOR.fullmatch(part)), "")


def _take(folders: tuple[str, ...], path: Path) -> tuple[str, str, str, str]:
  """Actor, emotion, level and number: what a sound and its seven views have in common; "" where it is not said."""
  lower = [part.lower() for part in folders]
  emotion = next((part for part in reversed(lower) if part in _EMOTIONS), "")
  level = next((part for part in reversed(lower) if _LEVEL.fullmatch(part)), "")
  return _actor(folders), emotion, level, path.stem
