"""Writes a result atomically: the destination is complete or does not exist, even if the process is stopped."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from synclipmae_jax.types import InputError

_unfinished: set[Path] = set()


def refuse_existing(dst: Path) -> None:
  if dst.exists() or dst.is_symlink():
    raise InputError(f"{dst} already exists: name another destination")


@contextlib.contextmanager
def whole_or_nothing(dst: Path) -> Iterator[Path]:
  """Yields a path for a file or a folder; it is renamed to `dst` if the block succeeds, and deleted otherwise.

  Raises InputError if `dst` exists, and OSError if its folder cannot be written. The check comes first because Orbax
  would detect it late and then wait for minutes.
  """
  refuse_existing(dst)
  place = dst.with_name(f"{dst.name}.unfinished")
  dst.parent.mkdir(parents=True, exist_ok=True)
  _discard(place)  # left by a process that was killed
  place.mkdir()
  _unfinished.add(place)
  try:
    yield place / "result"
    (place / "result").rename(dst)
  finally:
    _discard(place)
    _unfinished.remove(place)


def stop(number: int, _frame: object) -> NoReturn:
  """Signal handler: deletes unfinished results and ends the process at once.

  It raises no exception: Orbax would treat it as its own error, and its threads might wait for minutes.
  """
  kept = ", partial results were removed" if _unfinished else ""
  for place in tuple(_unfinished):
    with contextlib.suppress(OSError):
      _discard(place)
  os.write(2, f"\nconvert: stopped by a signal{kept}\n".encode())
  os._exit(128 + number)


def _discard(place: Path) -> None:
  """Deletes an unfinished result.

  Orbax's threads keep writing after a failure and recreate a deleted folder. A file of the same name stops them.
  """
  doomed = place.with_name(f"{place.name}.discarded")
  shutil.rmtree(doomed, ignore_errors=True)
  while place.is_dir():
    shutil.rmtree(doomed, ignore_errors=True)
    place.rename(doomed)
    with contextlib.suppress(FileExistsError):  # a thread recreated the folder: try again
      place.touch(exist_ok=False)
  shutil.rmtree(doomed, ignore_errors=True)
  place.unlink(missing_ok=True)
