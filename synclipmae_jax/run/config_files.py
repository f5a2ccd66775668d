"""Finds a configuration file in the working directory or in the package."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from synclipmae_jax.types import InputError

_PACKAGE = Path(__file__).parents[1]


def installed() -> Path:
  """The folder of the package's configurations: inside the package in a wheel, next to it in a checkout."""
  inside = _PACKAGE / "configs"
  return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def find_config(name: str) -> str:
  """`name` (FILE[:PRESET]) if FILE exists, otherwise with the path of the package's file of that name.

  `configs/pretrain.py` and `pretrain.py` both name the package's file. Raises InputError if there is no such file.
  """
  file, colon, preset = name.partition(":")
  if Path(file).exists():
    return name
  found = installed() / Path(file).name
  if str(Path(file).parent) not in (".", "configs") or not found.is_file():
    known = ", ".join(sorted(path.name for path in installed().glob("*.py")))
    raise InputError(f"configuration {file} does not exist; the package contains {known}")
  return f"{found}{colon}{preset}"


def load_config(name: str) -> ConfigDict:
  """The configuration `name` (FILE[:PRESET], as on the command line), to change in Python and hand to `jobs.run`.

  Raises InputError if there is no such file or preset.
  """
  file, colon, preset = find_config(name).partition(":")
  get_config = runpy.run_path(file)["get_config"]
  try:
    return get_config(preset) if colon else get_config()
  except ValueError as error:
    raise InputError(str(error)) from error


def with_config_found(argv: Sequence[str]) -> list[str]:
  """The command line with `find_config` applied to the value of --config. Raises InputError."""
  argv = list(argv)
  for i, argument in enumerate(argv):
    flag, equals, value = argument.partition("=")
    if flag not in ("--config", "-config"):
      continue
    if equals:
      argv[i] = f"{flag}={find_config(value)}"
    elif i + 1 < len(argv):
      argv[i + 1] = find_config(argv[i + 1])
  return argv
