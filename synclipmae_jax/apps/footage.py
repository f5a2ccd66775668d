"""What the applications share: the footage that arguments name, where output and complaints go, what is kept."""

from __future__ import annotations

import argparse
import contextlib
import glob
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from synclipmae_jax.data.clips import FACES, VIDEO_SUFFIXES
from synclipmae_jax.types import InputError


def find_videos(arguments: Sequence[str]) -> list[str]:
  """Files as they stand; folders, searched to any depth for videos; patterns (`**` crosses folders).

  Each file once, in order. Raises InputError where a folder holds no video or a pattern matches nothing.
  """
  found: list[str] = []
  for argument in arguments:
    if os.path.isdir(argument):
      names = [os.path.join(folder, name) for folder, _, files in os.walk(argument) for name in files]
      files = sorted(name for name in names if Path(name).suffix.lower() in VIDEO_SUFFIXES)
      if not files:
        raise InputError(f"there is no video ({', '.join(VIDEO_SUFFIXES)}) in {argument}")
    elif glob.has_magic(argument) and not os.path.exists(argument):
      files = sorted(name for name in glob.glob(argument, recursive=True) if os.path.isfile(name))
      if not files:
        raise InputError(f"no file matches {argument}")
    else:
      files = [argument]
    found += files
  return list(dict.fromkeys(found))


def outputs(out: str, videos: Sequence[str], *, suffix: str | None = None) -> dict[str, Path]:
  """Where what is made of each file goes: to `out`, or, where that is a folder or there are several, into it.

  Raises InputError as `refuse_inputs` does, and where two would meet.
  """
  if len(videos) == 1 and not os.path.isdir(out):
    refuse_inputs([out], videos)
    return {videos[0]: Path(out)}
  paths = {video: Path(out, Path(video).name if suffix is None else f"{Path(video).stem}{suffix}") for video in videos}
  if len(set(paths.values())) < len(videos):
    raise InputError(f"several of these files would be written to one file in {out}: give them one by one")
  if os.path.lexists(out) and not os.path.isdir(out):
    raise InputError(f"{out} is not a folder: what is made of several files goes into one")
  Path(out).mkdir(parents=True, exist_ok=True)
  refuse_inputs(paths.values(), videos)
  return paths


def refuse_inputs(paths: Iterable[str | os.PathLike], videos: Sequence[str]) -> None:
  """Raises InputError where a path to be written is one of the videos, or has no folder: before the work, not after."""

  def identity(path):
    with contextlib.suppress(OSError):
      found = os.stat(path)
      return found.st_dev, found.st_ino

  read = {identity(video) for video in videos} - {None}
  for path in map(Path, paths):
    if not path.parent.is_dir():
      raise InputError(f"{path} cannot be written: there is no folder {path.parent}")
    if identity(path) in read:
      raise InputError(f"{path} is one of the files to be read: name another, it is never overwritten")


def add_videos(parser: argparse.ArgumentParser) -> None:
  """The arguments of every command that reads footage: which, and who finds its faces."""
  parser.add_argument("videos", nargs="+", metavar="VIDEO", help="a file, a folder or a pattern")
  parser.add_argument("--faces", default="auto", choices=FACES, help="who finds the faces (auto: the .faces.npz beside "
                      "a file, else skimage_lbp)")  # fmt: skip


def exit_status(command: str, work: Callable[[], int]) -> int:
  """That of `work`; of what stops it a sentence is printed, and it is 2, or 130 after Ctrl-C."""
  try:
    return work()
  except (InputError, OSError) as error:  # OSError: a full disk, a folder that may not be written
    print(f"synclipmae {command}: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("\ninterrupted", file=sys.stderr)
    return 130


def complain(command: str, video: str, error: Exception) -> None:
  """One line on stderr: what is wrong with a file, whatever its name holds."""
  from synclipmae_jax.sync.report import printable

  unexpected = "" if isinstance(error, InputError) else f"unexpected {type(error).__name__}: "
  print(f"synclipmae {command}: {printable(video)}: {unexpected}{error}", file=sys.stderr)


def keep_compiled() -> None:
  """What XLA compiles is kept in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR names another."""
  import jax

  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "synclipmae_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
