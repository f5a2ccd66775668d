"""One file a corpus: where its files are, and what is known of each. `load(name)(raw_dir)` yields `SourceItem`s.

A corpus decides three things that must not be left to chance: which files belong to one person or one source video
(`split_group`, never divided between splits), which split each group is in, and which labels hold for a file.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from synclipmae_jax.types import InputError

NAMES = ("folder", "synthtalk")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceItem:
  """One file of a corpus. Sidecars are paths, read by the worker that reads the file; they need not exist."""

  path: Path
  key: str  # unique in the corpus: the path relative to the raw folder, with / between names
  corpus: str
  split: str
  identity: str
  split_group: str
  text: str = ""  # holds for the whole file
  lag: int | None = None  # frames, positive: the video lags the audio; None where nobody knows
  faces_path: Path | None = None  # see `data.faces.backends.precomputed`
  truth_path: Path | None = None  # npz: truth float [n, P], one row a source frame; names [P]
  emotion: int = -1  # -1: unknown
  actions: tuple[int, ...] = ()  # 0 or 1 for each action of the corpus; empty: unknown
  provenance: Mapping[str, str] = dataclasses.field(default_factory=dict)


def load(name: str) -> Callable[[Path], Iterator[SourceItem]]:
  """The `items` function of a corpus by name; `auto` looks at the folder."""
  if name != "auto" and name not in NAMES:
    raise InputError(f"unknown corpus {name!r}: choose one of auto, {', '.join(NAMES)}")

  def items(raw: Path) -> Iterator[SourceItem]:
    chosen = name if name != "auto" else "synthtalk" if (raw / "corpus.json").exists() else "folder"
    return importlib.import_module(f"{__name__}.{chosen}").items(raw)

  return items
