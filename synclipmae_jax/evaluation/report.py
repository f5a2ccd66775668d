"""Results on disk: strict JSON, and WORKDIR/eval.json, in which each evaluator has entries of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
  """Replaces a file in one step: a reader finds the old one or the new one."""
  partial = path.with_name(path.name + ".tmp")
  partial.write_text(text)
  partial.replace(path)


def write_json(path: Path, value: Any) -> None:
  """The same, of strict JSON: raises ValueError for a number that is not finite."""
  write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_entries(workdir: Path, entries: Mapping[str, Any]) -> None:
  """Writes an evaluator's own keys of WORKDIR/eval.json and leaves those of the others as they are."""
  path = workdir / "eval.json"
  try:
    before = json.loads(path.read_text())
  except (FileNotFoundError, ValueError):  # none, or half of one
    before = {}
  write_json(path, {**before, **entries})
