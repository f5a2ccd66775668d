"""LRS2-BBC (Afouras et al. 2018): sentences of British television, 25 frames/s, with transcripts.

  main/<programme>/00001.{mp4,txt}   pretrain/<programme>/00001.{mp4,txt}   {train,val,test,pretrain}.txt

The lists are the official split: a line names a file of `main` (of `pretrain` in its own list) without suffix, and may
go on (` NF` in the test list). Files that the lists name are listed, whether or not they are there; files that no list
names are not. Without any list, programmes are divided by `splits.assign`. Who speaks is not said: a programme is one
group. Where one programme is in the lists of two splits, see `splits.assign`. Industry may not use the corpus.

Uncertain: whether programmes are in several lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from synclipmae_jax.data.corpora import SourceItem, reading, transcripts
from synclipmae_jax.types import InputError

_SPLITS = {"train": "train", "val": "val", "test": "test", "pretrain": "train"}


def recognises(raw: Path) -> bool:
  """Whether videos lie in `main`, or in `pretrain` beside its list, and have transcripts."""

  def matches(path: Path) -> bool:
    home = path.parent.parent
    listed = home.name == "main" or (home.name == "pretrain" and (home.parent / "pretrain.txt").is_file())
    return listed and path.with_suffix(".txt").is_file()

  return reading.mostly(raw, matches)


def items(raw: Path) -> Iterator[SourceItem]:
  """Every file of the lists, or every video in `main` and `pretrain`. Raises InputError for a damaged list."""
  lists = {name: path for name in _SPLITS if (path := reading.find(raw, f"{name}.txt"))}
  if not lists:
    for path in reading.videos(raw):
      if path.parent.parent.name in ("main", "pretrain"):
        yield _item(raw, path, "")
    return
  homes = {path.parent.parent.name: path.parent.parent for path in reversed(reading.videos(raw))}
  seen: set[Path] = set()
  for name in ("test", "val", "train", "pretrain"):
    home = "pretrain" if name == "pretrain" else "main"
    for row in reading.read_rows(lists[name], 1) if name in lists else ():
      programme, _, number = row[0].partition("/")
      if not programme.isalnum() or not number.isalnum():
        raise InputError(f"{lists[name]} is no list of LRS2: it names {row[0]!r}")
      path = homes.get(home, lists[name].parent / home) / programme / f"{number}.mp4"
      if path not in seen:
        seen.add(path)
        yield _item(raw, path, _SPLITS[name])


def _item(raw: Path, path: Path, split: str) -> SourceItem:
  programme = reading.name(path.parent.name)
  return SourceItem.at(
    raw,
    path,
    corpus="lrs2",
    identity=programme,
    split_group=programme,
    split=split,
    **transcripts.read(path.with_suffix(".txt")),
  )
