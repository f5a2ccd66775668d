"""What `sync` and `embed` share: the files that arguments name, where the output goes, what is kept between runs."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from synclipmae_jax.data.clips import VIDEO_SUFFIXES
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
  """Where what is made of each file goes: to `out`, or, where that is a folder or there are several, into it."""
  if len(videos) == 1 and not os.path.isdir(out):
    return {videos[0]: Path(out)}
  paths = {video: Path(out, Path(video).name if suffix is None else f"{Path(video).stem}{suffix}") for video in videos}
  if len(set(paths.values())) < len(videos):
    raise InputError(f"several of these files would be written to one file in {out}: give them one by one")
  Path(out).mkdir(parents=True, exist_ok=True)
  return paths


def keep_compiled() -> None:
  """What XLA compiles is kept in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR names another."""
  import jax

  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "synclipmae_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
