"""What is generated so far of a file, kept beside it until the file is written: a stopped run goes on there."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import numpy as np

_OWNER = "made_for"  # holds the digest of everything that the segments depend on


class Unfinished:
  """The latents of segments by number, float16, in a hidden folder beside `out`."""

  def __init__(self, out: Path, *, digest: str):
    self._folder, self._digest = out.with_name(f".{out.name}.unfinished"), digest
    owner = self._folder / _OWNER
    if not (owner.is_file() and owner.read_text() == digest):
      self.remove()

  def get(self, number: int) -> np.ndarray | None:
    """None where there is nothing, or nothing whole."""
    with contextlib.suppress(OSError, ValueError, EOFError):
      return np.load(self._path(number), allow_pickle=False)
    return None

  def put(self, number: int, latents: np.ndarray) -> None:
    """Raises OSError for a full disk; what was put before stays."""
    partial = self._path(number).with_suffix(".part")
    if not (owner := self._folder / _OWNER).is_file():
      self._folder.mkdir(exist_ok=True)
      owner.write_text(self._digest)
    try:
      with partial.open("wb") as file:
        np.save(file, latents)
      os.replace(partial, self._path(number))
    finally:
      partial.unlink(missing_ok=True)

  def remove(self) -> None:
    shutil.rmtree(self._folder, ignore_errors=True)

  def _path(self, number: int) -> Path:
    return self._folder / f"{number:06d}.npy"
