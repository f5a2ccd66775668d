"""One file a corpus: where its files are, and what is known of each. `load(name)(raw_dir)` yields `SourceItem`s.

A corpus decides three things that must not be left to chance: which files belong to one person or one source video
(`split_group`, never divided between splits), which split each group is in, and which labels hold for a file.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from synclipmae_jax.data import labels
from synclipmae_jax.data.corpora import splits
from synclipmae_jax.types import InputError, Segment

# The first that recognises a folder is taken for `auto`.
NAMES = (
  "synthtalk", "grid", "celebvtext", "celebvhq", "hdtf", "vfhq", "mead", "ravdess", "cremad", "lrs2", "lrs3", "hallo3",
  "folder",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceItem:
  """One file of a corpus. Sidecars are paths, read by the worker that reads the file; they need not exist."""

  path: Path
  key: str  # unique in the corpus: the path relative to the raw folder, with / between names
  corpus: str
  identity: str
  split_group: str
  split: str = ""  # the official one; "": the corpus has none, and `load` chooses one by `splits.assign`
  # Labels hold for the whole file; `data.labels.cut` says what a clip of it keeps. Segments are seconds from the first
  # picture of the file.
  speaker: str = ""  # whose voice it is; "": unknown
  text: str = ""
  text_source: str = ""  # one of `data.labels.TEXT_SOURCES`; "": unknown
  words: tuple[Segment, ...] = ()  # of the text, with their times in the sound
  vocabularies: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # of `labels.VOCABULARIES`
  emotion: str = ""  # "": unknown
  emotion_segments: tuple[Segment, ...] = ()  # all that are known, with their times in the picture
  actions: tuple[str, ...] | None = None  # those that occur; None: unknown
  action_segments: tuple[Segment, ...] = ()  # likewise
  appearance: tuple[str, ...] | None = None  # what the person looks like; None: unknown
  lag: int | None = None  # frames, positive: the video lags the audio; None where nobody knows
  sound_path: Path | None = None  # its sound, for a video that has none
  faces_path: Path | None = None  # see `data.faces.sidecars.read_sidecar`
  truth_path: Path | None = None  # npz: truth float [n, P], one row a source frame; names [P]
  provenance: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    labels.check(self.key, vars(self))

  @classmethod
  def at(cls, raw: Path, path: Path, **known: Any) -> SourceItem:
    """The item of a file below `raw`: its key, and the sidecar of its faces beside it."""
    return cls(path=path, key=file_key(path.relative_to(raw)), faces_path=path.with_suffix(".faces.npz"), **known)


def file_key(relative: Path) -> str:
  """The key of a file: its path below the raw folder. File names need not be text."""
  return os.fsencode(relative.as_posix()).decode("utf-8", "backslashreplace")


def load(name: str, *, split: str = "hash", without: Collection[Path] = ()) -> Callable[[Path], Iterator[SourceItem]]:
  """The function that lists the files of a corpus, with the split of each; `auto` looks at the folder.

  `split` is the rule for corpora without official splits (`splits.assign`). Files below `without` are left out, before
  the splits are assigned: they would move the files of others. Raises InputError for an unknown name.
  """
  if name != "auto" and name not in NAMES:
    raise InputError(f"unknown corpus {name!r}: choose one of auto, {', '.join(NAMES)}")

  def items(raw: Path) -> Iterator[SourceItem]:
    modules = (importlib.import_module(f"{__name__}.{each}") for each in (NAMES if name == "auto" else (name,)))
    found = list(next(module for module in modules if name != "auto" or module.recognises(raw)).items(raw))
    found = [item for item in found if not {item.path, *item.path.parents} & set(without)]
    chosen = splits.assign([(item.split_group, item.split) for item in found], rule=split)
    return (dataclasses.replace(item, split=each) for item, each in zip(found, chosen, strict=True))

  return items
