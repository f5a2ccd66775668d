"""Writes results: strict JSON, and WORKDIR/eval.json, in which each evaluator has its own entries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
  """Replaces a file atomically."""
  partial = path.with_name(path.name + ".tmp")
  partial.write_text(text)
  partial.replace(path)


def write_json(path: Path, value: Any) -> None:
  """Replaces a file with strict JSON atomically. Raises ValueError for a number that is not finite."""
  write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_entries(workdir: Path, entries: Mapping[str, Any]) -> None:
  """Writes an evaluator's keys of WORKDIR/eval.json and keeps all other keys."""
  path = workdir / "eval.json"
  try:
    before = json.loads(path.read_text())
  except (FileNotFoundError, ValueError):  # absent or truncated
    before = {}
  write_json(path, {**before, **entries})
