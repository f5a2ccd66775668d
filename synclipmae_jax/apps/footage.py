"""What the applications share: the footage that arguments name, where output and complaints go, what is kept."""

from __future__ import annotations

import argparse
import contextlib
import glob
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from synclipmae_jax.data.clips import FACES
from synclipmae_jax.data.faces.sources import detector
from synclipmae_jax.data.media.containers import SUFFIXES
from synclipmae_jax.data.media.remux import FORMATS
from synclipmae_jax.data.output_file import refuse_unwritable
from synclipmae_jax.types import InputError


def find_videos(arguments: Sequence[str]) -> tuple[list[str], bool]:
  """Files as they stand; folders, searched to any depth for videos; patterns (`**` crosses folders).

  Each file once, in order; and whether these are several: a folder or a pattern is, even with one file in it, so that
  what comes out of it does not depend on their number. Raises InputError where a folder holds no video or a pattern
  matches nothing.
  """
  found: list[str] = []
  several = False
  for argument in arguments:
    if os.path.isdir(argument):
      names = [os.path.join(folder, name) for folder, _, files in os.walk(argument) for name in files]
      files, several = sorted(name for name in names if Path(name).suffix.lower() in SUFFIXES), True
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
  """Where what is made of each file goes: to `out`, or, where that is a folder or there are `several`, into it.

  A name that ends with a slash is a folder, which is made. Without `suffix` a file keeps its ending, but for .mkv where
  its container cannot be written.

  Files of one name from several folders keep their folders there. Raises InputError as `refuse_inputs` does, and where
  two would meet all the same.
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
    raise InputError(f"{out} is not a folder: what is made of several files goes into one")
  for path in paths.values():
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise InputError(f"the folder {path.parent} cannot be made ({error.strerror})") from error
  refuse_inputs(paths.values(), videos)
  return paths


def with_ending(out: str, suffix: str) -> str:
  """`out`, ending with `suffix`; a folder, a link, a pipe or a device that is there keeps its name."""
  there = os.path.islink(out) or os.path.exists(out) and not os.path.isfile(out)
  return out if there or out.endswith(os.sep) or Path(out).suffix.lower() == suffix else f"{out}{suffix}"


def refuse_inputs(paths: Iterable[str | os.PathLike], videos: Sequence[str]) -> None:
  """Raises InputError where a path to be written is one of the videos, or cannot be: before the work, not after."""

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
  """The arguments of every command that reads footage: which, and who finds its faces."""
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
  parser.add_argument("--audio-track", type=int, metavar="N", help="the sound track to be heard, counted from 1 "
                      "(default: the one with speech)")  # fmt: skip


def tell_fallback(command: str, faces: str) -> None:
  """Reports on stderr if `faces` is `auto` and only the fallback detector is available."""
  for note in detector()[1] if faces == "auto" else ():
    print(f"synclipmae {command}: {note}", file=sys.stderr)


def exit_status(command: str, work: Callable[[], int]) -> int:
  """That of `work`; of what stops it a sentence is printed, and it is 2, or 130 after Ctrl-C."""
  try:
    status = work()
    sys.stdout.flush()  # here, where what goes wrong with it can be said
    return status
  except (InputError, OSError) as error:  # OSError: a full disk, a folder that may not be written, a closed pipe
    print(f"synclipmae {command}: {sentence(error)}", file=sys.stderr)
    _drop_output()
    return 2
  except KeyboardInterrupt:
    print("\ninterrupted", file=sys.stderr)
    return 130


def sentence(error: InputError | OSError) -> str:
  """Without the number of an error of the system, and with what it happened to."""
  if isinstance(error, InputError) or not error.strerror:
    return str(error)
  return f"{error.filename or 'standard output'}: {error.strerror}"


def _drop_output() -> None:
  """What could not be written to standard output is not tried again when Python ends."""
  try:
    sys.stdout.flush()
  except OSError:
    with open(os.devnull, "wb") as nowhere:
      os.dup2(nowhere.fileno(), sys.stdout.fileno())


def complain(command: str, video: str, error: Exception) -> None:
  """One line on stderr: what is wrong with a file, whatever its name holds."""
  unexpected = "" if isinstance(error, InputError) else f"unexpected {type(error).__name__}: "
  remark(command, video, f"{unexpected}{error}")


def remark(command: str, video: str, sentence: str) -> None:
  """One line on stderr about a file."""
  from synclipmae_jax.sync.report import printable

  print(f"synclipmae {command}: {printable(video)}: {sentence}", file=sys.stderr)


def keep_compiled() -> None:
  """What XLA compiles is kept in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR names another."""
  import jax

  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "synclipmae_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
