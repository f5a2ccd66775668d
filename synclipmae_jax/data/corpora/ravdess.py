"""RAVDESS (Livingstone and Russo 2018): 24 actors speak and sing two sentences in 8 emotions.

  Actor_01/01-01-03-02-01-01-01.mp4: modality, channel, emotion, intensity, statement, repetition, actor

Only modality 01 has picture and sound; 02 (no sound), 03 (no picture) and files with other names are not read. The
folders may have any names, as those of the archives do. A file that is there twice is taken once. There is no official
split: actors are divided by `splits.assign`. Licence: CC BY-NC-SA 4.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from synclipmae_jax.data.corpora import SourceItem, reading

_NAME = re.compile(
  r"(?P<modality>0[1-3])-(?P<channel>0[12])-(?P<emotion>0[1-8])-(?P<intensity>0[12])-(?P<statement>0[12])"
  r"-(?P<repetition>0[12])-(?P<actor>0[1-9]|1\d|2[0-4])"
)
_EMOTIONS = ("neutral", "calm", "happy", "sadness", "anger", "fear", "disgust", "surprise")
_STATEMENTS = ("kids are talking by the door", "dogs are sitting by the door")


def recognises(raw: Path) -> bool:
  """Whether videos have such names."""
  return reading.mostly(raw, lambda path: _NAME.fullmatch(path.stem))


def items(raw: Path) -> Iterator[SourceItem]:
  """Every file with picture and sound, in order of its name."""
  chosen, doubles = reading.by_stem(reading.videos(raw))
  for stem, path in sorted(chosen.items()):
    found = _NAME.fullmatch(stem)
    if found is None or found["modality"] != "01":
      continue
    actor = f"Actor_{found['actor']}"
    facts = {"channel": ("speech", "song")[int(found["channel"]) - 1],
             "intensity": ("normal", "strong")[int(found["intensity"]) - 1],
             "repetition": found["repetition"]}  # fmt: skip
    yield SourceItem.at(
      raw,
      path,
      corpus="ravdess",
      identity=actor,
      split_group=actor,
      speaker=actor,
      text=_STATEMENTS[int(found["statement"]) - 1],
      text_source="human",
      vocabularies={"emotion": _EMOTIONS},
      emotion=_EMOTIONS[int(found["emotion"]) - 1],
      provenance=facts | reading.doubles_note(raw, doubles.get(stem, [])),
    )
