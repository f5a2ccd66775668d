"""Real footage that lies beside the checkout (`../shared`) and is no part of it."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[3] / "shared"


def shared(name: str) -> Path:
  """A file or folder of it; skips the test, by name, where it is absent."""
  path = SHARED / name
  if not path.exists():
    pytest.skip(f"../shared/{name} is absent")
  return path
