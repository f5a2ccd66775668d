"""LRS3-TED (Afouras et al. 2018): sentences of TED talks, 25 frames/s, with transcripts.

  {pretrain,trainval,test}/<YouTube id>/00001.{mp4,txt}

The folder `test` is the official test set. Of the talks in `pretrain` and `trainval` a fiftieth, by hash, is for
validation. Who speaks is not said: a talk is one group. Should a talk of `test` be in another folder, too, its files
there are not used (`splits.assign`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from synclipmae_jax.data.corpora import SourceItem, reading, transcripts
from synclipmae_jax.data.corpora.splits import by_hash

_FOLDERS = ("pretrain", "trainval", "test")
_VAL = 0.02


def recognises(raw: Path) -> bool:
  """Whether videos lie in such folders and have transcripts."""
  return reading.mostly(raw, lambda path: path.parent.parent.name in _FOLDERS and path.with_suffix(".txt").is_file())


def items(raw: Path) -> Iterator[SourceItem]:
  """Every video in such a folder, in order of its path."""
  paths = [path for path in reading.videos(raw) if path.parent.parent.name in _FOLDERS]
  tested = {reading.name(path.parent.name) for path in paths if path.parent.parent.name == "test"}
  splits = by_hash({reading.name(path.parent.name) for path in paths} - tested, test=0, val=_VAL)
  for path in paths:
    talk = reading.name(path.parent.name)
    yield SourceItem.at(
      raw,
      path,
      corpus="lrs3",
      identity=talk,
      split_group=talk,
      split="test" if path.parent.parent.name == "test" else splits.get(talk, "train"),
      **transcripts.read(path.with_suffix(".txt")),
    )
