"""CelebV-Text (Yu et al. 2023): 70,000 clips of talking and acting people, with 37 actions and their times.

  celebvtext_info.json   annotations.pkl   processed/<YouTube id>_<n>.mp4 or processed/<YouTube id>_<n>_<k>.mp4

Boxes are in pixels. The second set of the JSON repeats keys of the first: such a clip is listed once, as in the first.
`annotations.pkl` is read by an unpickler that runs nothing; without it clips have no labels. Of it the actions (`act`)
are kept. Emotions and appearances exist as written descriptions only, which users report to be unreliable, and are not
read; the descriptions are no transcripts. There is no official split: YouTube videos are divided by `splits.assign`.
The licence is that of CelebV-HQ.

Uncertain: keys of annotations.pkl carry one more number than those of the JSON. A file takes the annotation of its
name, or the only one that its name begins. The unit of the times is not documented; they are kept where their
difference is the duration that is stated in seconds, otherwise the actions are kept without times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from synclipmae_jax.data.corpora import SourceItem, celebv, reading
from synclipmae_jax.types import InputError, Segment

ACTIONS = (*celebv.ACTIONS, "blink", "squint")
_TABLE, _ANNOTATIONS = "celebvtext_info.json", "annotations.pkl"
_NEAR = 0.1  # seconds


def recognises(raw: Path) -> bool:
  return reading.find(raw, _TABLE) is not None


def items(raw: Path) -> Iterator[SourceItem]:
  """Every clip of the JSON, in order of its key. Raises InputError if the JSON or the pickle is damaged."""
  table = celebv.find_table(raw, _TABLE)
  clips = celebv.clips(table, reading.read_json(table))
  acts, of_clip = _acts(reading.find(raw, _ANNOTATIONS))
  for key, stem, path in celebv.files(raw, table, clips, suffixed=True):
    annotated = [stem] if stem in acts else of_clip.get(stem, [])
    known, note = ({}, "ambiguous" if annotated else "missing") if len(annotated) != 1 else _known(acts[annotated[0]])
    video = celebv.youtube_id(key, clips[key])
    yield SourceItem.at(
      raw,
      path,
      corpus="celebvtext",
      identity=video,
      split_group=video,
      vocabularies={"actions": ACTIONS},
      provenance=celebv.source(key, clips[key]) | {"actions": note},
      **known,
    )


def _acts(path: Path | None) -> tuple[dict[str, Any], dict[str, list[str]]]:
  """Annotation -> its actions, and clip -> its annotations. Raises InputError for an action that is not known."""
  if path is None:
    return {}, {}
  acts = reading.mapping(reading.read_pickle(path).get("act"), path, "act")
  of_clip: dict[str, list[str]] = {}
  for key, found in acts.items():
    if not isinstance(key, str) or not isinstance(found, (list, tuple)):
      raise InputError(f"{path} is damaged (the actions of {key!r} are no list)")
    of_clip.setdefault(key.rpartition("_")[0], []).append(key)
    for act in found:
      name = act[0] if isinstance(act, (list, tuple)) and act else act
      if not isinstance(name, str) or reading.label(name) not in ACTIONS:
        raise InputError(f"{path}: {key} has the unknown action {name!r}: known are {', '.join(ACTIONS)}")
  return acts, of_clip


def _known(acts: list[Any]) -> tuple[Mapping[str, Any], str]:
  """The actions of a clip as fields of SourceItem, and what is said of their times."""
  names = [reading.label(act if isinstance(act, str) else act[0]) for act in acts]
  known: dict[str, Any] = {"actions": tuple(dict.fromkeys(names))}
  try:
    segments = tuple(_segment(act[1], name) for act, name in zip(acts, names, strict=True))
  except (ValueError, TypeError, IndexError):
    return known, "without times"
  return known | {"action_segments": segments}, _ANNOTATIONS


def _segment(times: Any, name: str) -> Segment:
  start, end, lasts = map(reading.number, times[:3])
  if abs(end - start - lasts) > _NEAR:
    raise ValueError("the times are not seconds")
  return reading.segment(start, end, name)
