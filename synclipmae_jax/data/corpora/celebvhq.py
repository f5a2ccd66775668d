"""CelebV-HQ (Zhu et al. 2022): 35,666 clips with 40 appearances, 35 actions and 8 emotions, some with times.

  celebvhq_info.json   processed/<YouTube id>_<n>.mp4

It has no official split: YouTube videos are divided by `splits.assign`. The licence allows research that is not
commercial, and no redistribution of the videos or of what is derived from them.

Uncertain: the JSON itself was not at hand, its format is that of the README; the names of its emotions may be others.
Known synonyms are understood, an unknown name is refused, since it would shift the meaning of all labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from synclipmae_jax.data.corpora import SourceItem, celebv, reading
from synclipmae_jax.types import InputError

_TABLE = "celebvhq_info.json"


def recognises(raw: Path) -> bool:
  return reading.find(raw, _TABLE) is not None


def items(raw: Path) -> Iterator[SourceItem]:
  """Every clip of the JSON, in order of its key; raises InputError if the JSON is damaged."""
  table = celebv.find_table(raw, _TABLE)
  content = reading.read_json(table)
  names = {of: _names(table, content, f"{of}_mapping") for of in ("action", "appearance")}
  vocabularies = {"emotion": reading.EMOTIONS, "actions": names["action"], "appearance": names["appearance"]}
  clips = celebv.clips(table, content)
  for key, _, path in celebv.files(raw, table, clips):
    known = _labels(f"{table}: clip {key}", clips[key].get("attributes"), names)
    damaged = known.pop("damaged", None)
    source = celebv.source(key, clips[key]) | ({"labels": damaged} if damaged else {})
    video = celebv.youtube_id(key, clips[key])
    yield SourceItem.at(
      raw,
      path,
      corpus="celebvhq",
      identity=video,
      split_group=video,
      vocabularies=vocabularies,
      provenance=source,
      **known,
    )


def _names(table: Path, content: Mapping[str, Any], name: str) -> tuple[str, ...]:
  found = reading.mapping(content.get("meta_info"), table, "meta_info").get(name)
  if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
    raise InputError(f"{table} is damaged ({name} is no list of names)")
  return tuple(map(reading.label, found))


def _labels(clip: str, attributes: Any, names: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
  """The labels of a clip as fields of SourceItem. Of damaged ones none is kept, and `damaged` says why."""
  try:
    attributes = attributes or {}
    known: dict[str, Any] = {
      field: _chosen(attributes[of], names[of])
      for of, field in (("action", "actions"), ("appearance", "appearance")) if of in attributes
    }  # fmt: skip
    if "emotion" in attributes:
      known |= _emotions(attributes["emotion"])
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    return {"damaged": f"damaged ({error})"}
  found = {known.get("emotion", ""), *(segment.label for segment in known.get("emotion_segments", ()))}
  if unknown := found - {"", *reading.EMOTIONS}:
    raise InputError(f"{clip} has the unknown emotion {min(unknown)!r}: known are {', '.join(reading.EMOTIONS)}")
  return known


def _chosen(flags: Sequence[int], names: tuple[str, ...]) -> tuple[str, ...]:
  if len(flags) != len(names) or any(flag not in (0, 1) for flag in flags):
    raise ValueError(f"{len(flags)} flags for {len(names)} names, or flags that are not 0 and 1")
  return tuple(name for name, flag in zip(names, flags, strict=True) if flag)


def _emotions(stated: Mapping[str, Any]) -> dict[str, Any]:
  """One emotion for the clip, or several with their times in it."""
  if not stated["sep_flag"]:
    return {"emotion": reading.emotion(stated["labels"])}
  return {
    "emotion_segments": tuple(
      reading.segment(part["start_sec"], part["end_sec"], reading.emotion(part["emotion"])) for part in stated["labels"]
    )
  }
