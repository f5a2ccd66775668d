"""Writes a result to a path of the user: a file is replaced in one rename, anything else is written through."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from synclipmae_jax.types import InputError


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[Path]:
  """A temporary path with the suffix of `path`; its content goes to `path` if the block ends without an exception.

  A regular file is replaced by a rename and keeps its permissions; for a link this is the file that it points to. The
  bytes are written through to a pipe, a socket, a character device, or standard output under any of its names.

  Raises InputError if `path` cannot be written: a folder, a block device, a full disk, a missing permission.
  """
  path = Path(path)
  try:
    if (node := _node(path)) is not None:
      with tempfile.TemporaryDirectory() as folder:
        partial = Path(folder, f"whole{path.suffix}")
        yield partial
        _write_through(partial, path, node)
      return
    target = _target(path)
    partial = target.with_name(f".{target.stem}.unfinished{path.suffix}")
    try:
      yield partial
      if target.exists():
        shutil.copymode(target, partial)
      os.replace(partial, target)
    finally:
      with contextlib.suppress(OSError):
        partial.unlink(missing_ok=True)
  except OSError as error:
    raise InputError(f"{path} cannot be written ({error.strerror or error})") from error


def refuse_unwritable(path: str | os.PathLike) -> None:
  """Raises InputError if `writing` would. Called before the work that leads to the result."""
  path = Path(path)
  try:
    if _node(path) is not None:
      return
    folder = _target(path).parent
    if not folder.is_dir():
      raise InputError(f"{path} cannot be written: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
      raise InputError(f"{path} cannot be written: the folder {folder.absolute()} is not writable")
  except OSError as error:
    raise InputError(f"{path} cannot be written ({error.strerror or error})") from error


def _target(path: Path) -> Path:
  """The file that a path points to, links resolved."""
  return Path(os.path.realpath(path)) if path.is_symlink() else path


def _node(path: Path) -> os.stat_result | None:
  """Status of the pipe, socket or device that a path points to; None for a regular file or a path without a file.

  Raises InputError if it cannot be written, OSError for a loop of links.
  """
  try:
    found = os.stat(path)
  except FileNotFoundError:
    return None
  if stat.S_ISDIR(found.st_mode):
    raise InputError(f"{path} cannot be written: it is a folder")
  if stat.S_ISBLK(found.st_mode):
    raise InputError(f"{path} cannot be written: it is a block device")
  if not os.access(path, os.W_OK):
    raise InputError(f"{path} cannot be written: it is read only")
  return None if stat.S_ISREG(found.st_mode) and not _standard(found) else found


def _standard(found: os.stat_result) -> int | None:
  """The descriptor of standard output or error if `found` is open there, else None."""
  for descriptor in (1, 2):
    with contextlib.suppress(OSError):
      if os.path.samestat(found, os.fstat(descriptor)):
        return descriptor
  return None


def _write_through(partial: Path, path: Path, node: os.stat_result) -> None:
  descriptor = _standard(node)
  if descriptor is not None:  # opened by name, a file would be truncated, and a socket cannot be opened
    for stream in (sys.stdout, sys.stderr):
      stream.flush()
  with open(partial, "rb") as source, open(path if descriptor is None else os.dup(descriptor), "wb") as out:
    shutil.copyfileobj(source, out)
