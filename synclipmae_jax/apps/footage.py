"""Shared by the applications: finding footage, places of output, messages on stderr, the compilation cache."""

from __future__ import annotations

import argparse
import contextlib
import glob
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from synclipmae_jax.data.clips import FACES
from synclipmae_jax.data.faces.sources import detector
from synclipmae_jax.data.media.containers import SUFFIXES, videos_below
from synclipmae_jax.data.media.remux import FORMATS
from synclipmae_jax.data.output_file import refuse_unwritable
from synclipmae_jax.types import InputError


def find_videos(arguments: Sequence[str]) -> tuple[list[str], bool]:
  """(files, several): files as given, videos in folders at any depth, matches of patterns (`**` crosses folders).

  Each file is listed once, in order. `several` is true also for a folder or a pattern with one file: the form of the
  output does not depend on their number. Raises InputError if a folder has no video or a pattern matches nothing.
  """
  found: list[str] = []
  several = False
  for argument in arguments:
    if os.path.isdir(argument):
      files, several = videos_below(argument), True
      if not files:
        raise InputError(f"there is no video ({', '.join(SUFFIXES)}) in {argument}")
    elif glob.has_magic(argument) and not os.path.exists(argument):
      files, several = sorted(name for name in glob.glob(argument, recursive=True) if os.path.isfile(name)), True
      if not files:
        raise InputError(f"no file matches {argument}")
    else:
      files = [argument]
    found += files
  videos = list(dict.fromkeys(found))
  return videos, several or len(videos) > 1


def outputs(out: str, videos: Sequence[str], *, several: bool, suffix: str | None = None) -> dict[str, Path]:
  """The output path of each file: `out`, or a path in it if it is a folder or there are `several` files.

  A name that ends with a slash is a folder, which is created. Without `suffix` a file keeps its suffix, or gets .mkv if
  its container cannot be written. Files of one name from several folders keep their folders.

  Raises InputError as `refuse_inputs` does, and if two files would get one path.
  """
  if not several and not os.path.isdir(out) and not out.endswith(os.sep):
    refuse_inputs([out], videos)
    return {videos[0]: Path(out)}
  ending = lambda video: suffix or (end if (end := Path(video).suffix).lower() in FORMATS else ".mkv")
  names = [f"{Path(video).stem}{ending(video)}" for video in videos]
  if len(set(names)) < len(names):
    folders = [os.path.dirname(os.path.abspath(video)) for video in videos]
    root = os.path.commonpath(folders)
    names = [os.path.join(os.path.relpath(f, root), name) for f, name in zip(folders, names, strict=True)]
  paths = {video: Path(out, name) for video, name in zip(videos, names, strict=True)}
  if len(set(paths.values())) < len(videos):
    raise InputError(f"several of these files would be written to one file in {out}: give them one by one")
  if os.path.lexists(out) and not os.path.isdir(out):
    raise InputError(f"{out} is not a folder: the outputs of several files go into a folder")
  for path in paths.values():
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise InputError(f"the folder {path.parent} cannot be created ({error.strerror})") from error
  refuse_inputs(paths.values(), videos)
  return paths


def with_ending(out: str, suffix: str) -> str:
  """`out` with `suffix` appended if missing; an existing folder, link, pipe or device keeps its name."""
  there = os.path.islink(out) or os.path.exists(out) and not os.path.isfile(out)
  return out if there or out.endswith(os.sep) or Path(out).suffix.lower() == suffix else f"{out}{suffix}"


def refuse_inputs(paths: Iterable[str | os.PathLike], videos: Sequence[str]) -> None:
  """Raises InputError if an output path is one of the videos or is not writable. Called before the work."""

  def identity(path):
    with contextlib.suppress(OSError):
      found = os.stat(path)
      return found.st_dev, found.st_ino

  read = {identity(video) for video in videos} - {None}
  for path in map(Path, paths):
    refuse_unwritable(path)
    if identity(path) in read:
      raise InputError(f"{path} is one of the files to be read: name another, it is never overwritten")


def add_videos(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of every command that reads footage."""
  parser.add_argument("videos", nargs="+", metavar="VIDEO", help="a file, a folder or a pattern")
  add_faces(parser)
  add_audio_track(parser)


def add_faces(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--faces", default="auto", choices=FACES, help="how faces are found. precomputed: NAME.faces.npz beside NAME.mp4; "
    "mediapipe: face detector and face mesh of MediaPipe, for frontal, turned and small faces; skimage_lbp: cascade of "
    "scikit-image, for frontal faces; full_frame: the centre of the picture; auto (default): precomputed if that file "
    "exists, otherwise mediapipe, or skimage_lbp if mediapipe is not available"
  )  # fmt: skip


def add_audio_track(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--audio-track", type=int, metavar="N", help="the number of the sound track, counted from 1 "
                      "(default: the one with speech)")  # fmt: skip


def tell_fallback(command: str, faces: str) -> None:
  """Reports on stderr if `faces` is `auto` and only the fallback detector is available."""
  for note in detector()[1] if faces == "auto" else ():
    print(f"synclipmae {command}: {note}", file=sys.stderr)


def exit_status(command: str, work: Callable[[], int]) -> int:
  """The exit status of `work`. If an error stops it, prints one sentence and returns 2, or 130 after Ctrl-C."""
  try:
    status = work()
    sys.stdout.flush()  # here, so that its failure can be reported
    return status
  except (InputError, OSError) as error:  # OSError: a full disk, a folder that may not be written, a closed pipe
    print(f"synclipmae {command}: {sentence(error)}", file=sys.stderr)
    _drop_output()
    return 2
  except KeyboardInterrupt:
    print("\ninterrupted", file=sys.stderr)
    return 130


def sentence(error: InputError | OSError) -> str:
  """The message of an error; for a system error its text and the file name, without the number."""
  if isinstance(error, InputError) or not error.strerror:
    return str(error)
  return f"{error.filename or 'standard output'}: {error.strerror}"


def _drop_output() -> None:
  """Prevents Python from writing the rest of standard output again at exit."""
  try:
    sys.stdout.flush()
  except OSError:
    with open(os.devnull, "wb") as nowhere:
      os.dup2(nowhere.fileno(), sys.stdout.fileno())


def complain(command: str, video: str, error: Exception) -> None:
  """Prints one line on stderr: the error of a file. The name is made printable."""
  unexpected = "" if isinstance(error, InputError) else f"unexpected {type(error).__name__}: "
  remark(command, video, f"{unexpected}{error}")


def remark(command: str, video: str, sentence: str) -> None:
  """Prints one line on stderr about a file."""
  from synclipmae_jax.web_page import printable

  print(f"synclipmae {command}: {printable(video)}: {sentence}", file=sys.stderr)


CACHE = "SYNCLIPMAE_CACHE"  # a folder, or `off`
_COMPILED = 256 * 2**20  # bytes
_OURS, _UNUSED_DAYS = "versions", 60  # how the names of our folders begin


def cache_folder() -> Path | None:
  """Where the commands keep what a second call need not do again: in the user's cache folder; None if switched off.

  There is one folder for each pair of versions of this package and of jax; those that have not been used for long are
  removed. None too where nothing can be written.
  """
  place = os.environ.get(CACHE) or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "synclipmae_jax")
  if place == "off":
    return None
  root = Path(os.path.expanduser(place))
  names = ("synclipmae_jax", "jax", "jaxlib")
  folder = root / "-".join([_OURS, *(importlib.metadata.version(name) for name in names)])
  try:
    if not folder.is_dir():
      folder.mkdir(parents=True)
      for other in root.glob(f"{_OURS}-*"):  # the folder may be one that the user has named, with other things in it
        if time.time() - other.stat().st_mtime > 86_400 * _UNUSED_DAYS:
          shutil.rmtree(other, ignore_errors=True)
    os.utime(folder)
  except OSError:
    return None
  return folder if os.access(folder, os.W_OK) else None


def keep_compiled() -> None:
  """Lets JAX keep its compilations in `cache_folder`, or in JAX_COMPILATION_CACHE_DIR as JAX's other variables say.

  It is bounded; the compilations used longest ago go first. Processes share it behind a lock. What JAX cannot read or
  write there is a warning of JAX and compiled anew.
  """
  folder = cache_folder()
  if folder is None or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    return
  settings: dict[str, Any] = {
    "jax_compilation_cache_dir": str(folder / "compiled"),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
  }
  if importlib.util.find_spec("filelock"):  # JAX bounds a cache with it only
    settings["jax_compilation_cache_max_size"] = _COMPILED
  if "jax" not in sys.modules:  # it reads them when it is imported, which takes half a second
    os.environ.update({name.upper(): str(value) for name, value in settings.items()})
    return
  import jax

  for name, value in settings.items():
    jax.config.update(name, value)
