"""Where a result is written: it is there whole, or not at all, whatever stops the process."""

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
    raise InputError(f"{dst} exists already: name another destination")


@contextlib.contextmanager
def whole_or_nothing(dst: Path) -> Iterator[Path]:
  """A path to write a file or a folder at, which becomes `dst` when the block ends well; otherwise nothing of it stays.

  Raises InputError where `dst` exists, OSError where nothing can be made beside it: Orbax, which would find that out
  last, then waits for minutes.
  """
  refuse_existing(dst)
  place = dst.with_name(f"{dst.name}.unfinished")
  dst.parent.mkdir(parents=True, exist_ok=True)
  _discard(place)  # of a process that was killed
  place.mkdir()
  _unfinished.add(place)
  try:
    yield place / "result"
    (place / "result").rename(dst)
  finally:
    _discard(place)
    _unfinished.remove(place)


def stop(number: int, _frame: object) -> NoReturn:
  """Signal handler: ends the process here and now, with nothing half-written left.

  An exception raised inside Orbax would be taken for one of its own, and its threads might wait for minutes.
  """
  kept = ", nothing was kept" if _unfinished else ""
  for place in tuple(_unfinished):
    with contextlib.suppress(OSError):
      _discard(place)
  os.write(2, f"\nconvert: stopped by a signal{kept}\n".encode())
  os._exit(128 + number)


def _discard(place: Path) -> None:
  """Orbax's threads write on after a failure, and make a folder that is gone anew: a file in its place stops them."""
  doomed = place.with_name(f"{place.name}.discarded")
  shutil.rmtree(doomed, ignore_errors=True)
  while place.is_dir():
    shutil.rmtree(doomed, ignore_errors=True)
    place.rename(doomed)
    with contextlib.suppress(FileExistsError):  # a thread was faster: once more
      place.touch(exist_ok=False)
  shutil.rmtree(doomed, ignore_errors=True)
  place.unlink(missing_ok=True)
