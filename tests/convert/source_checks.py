"""Shared checks of the tests of weights files and sources."""

from pathlib import Path

import pytest

from synclipmae_jax.convert.source import open_source
from synclipmae_jax.types import InputError

SHAPES = {"norm.weight": (4,), "norm.bias": (4,), "proj.weight": (3, 4), "scale": ()}


def refusal(path, **options) -> str:
  with pytest.raises(InputError) as error:
    open_source(path, **options)
  assert "\n" not in str(error.value) and len(str(error.value)) < 500
  return str(error.value)


def write(path: Path, data: bytes) -> Path:
  path.write_bytes(data)
  return path


def assert_holds(source, weights) -> None:
  assert source.shapes == {key: value.shape for key, value in weights.items()}
  assert source.dtypes == {key: value.dtype.name for key, value in weights.items()}
  for key, value in weights.items():
    found = source.read(key)
    assert found.dtype == value.dtype and found.shape == value.shape and found.tobytes() == value.tobytes()
