"""Metadata of a workdir: config.json, the stamp of its checkpoints, and the check for another model."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from synclipmae_jax.types import FPS, SAMPLE_RATE, InputError

# Fields that define a model; a workdir holds one model. COMPUTING_FIELDS change how it is computed, not the model.
MODEL_FIELDS = ("task", "model.", "data.image_size", "data.clip_frames", "data.audio_frames")
COMPUTING_FIELDS = {"model.compute_dtype", "model.unroll", "model.remat", "model.embed_visible"}


def has_checkpoints(workdir: Path) -> bool:
  """Whether a run in `workdir` has saved anything."""
  return any(path.name.isdecimal() for path in (workdir / "checkpoints").glob("*"))


def check_workdir(config: ConfigDict, workdir: Path) -> None:
  """Raises InputError for a workdir that holds another model, before it is changed. Prints other differences."""
  try:
    before = json.loads((workdir / "config.json").read_text())["config"]
  except (FileNotFoundError, ValueError, KeyError):  # absent, or truncated by a killed run
    return
  before, now = (dict(_flatten(tree)) for tree in (before, resolved(config)))
  changed = {
    field: f"{field} {before.get(field)} -> {now.get(field)}"
    for field in sorted(before.keys() | now.keys())
    if before.get(field) != now.get(field)
  }
  other = [text for field, text in changed.items() if field.startswith(MODEL_FIELDS) and field not in COMPUTING_FIELDS]
  if other and has_checkpoints(workdir):
    raise InputError(f"{workdir} was made with another model ({', '.join(other)}): use another workdir")
  if changed and jax.process_index() == 0:
    print(f"this run differs from the previous run in {workdir}: {', '.join(changed.values())}")


def stamp(config: ConfigDict, preprocessing: Mapping[str, Any]) -> dict[str, Any]:
  """Metadata stored in a checkpoint: configuration, preprocessing of the training data, revision of the code."""
  data, model = config.get("data", {}), config.get("model", {})
  return {
    "task": config.task,
    "config": resolved(config),
    "preprocessing": {
      **preprocessing,
      **({"image_size": data.image_size} if "image_size" in data else {}),
      "fps": FPS,
      "sample_rate": SAMPLE_RATE,
      **({"embed_visible": model.embed_visible} if "embed_visible" in model else {}),
    },
    "revision": revision(),
  }


def revision() -> str | None:
  """The git revision of the code, followed by + if files are changed; None outside a checkout."""
  here = Path(__file__).parents[1]
  with contextlib.suppress(OSError, subprocess.CalledProcessError):
    ask = lambda *words: subprocess.run(
      ["git", *words], cwd=here, check=True, capture_output=True, text=True
    ).stdout.strip()
    return ask("rev-parse", "HEAD") + ("+" if ask("status", "--porcelain", "--", str(here)) else "")
  return None


def write_config(config: ConfigDict, workdir: Path, overrides: dict[str, Any]) -> None:
  """WORKDIR/config.json: the resolved configuration, its overrides, the revision, the command."""
  if jax.process_index():
    return
  workdir.mkdir(parents=True, exist_ok=True)
  text = {"config": resolved(config), "overrides": overrides, "revision": revision(), "command": sys.argv}
  partial = workdir / "config.json.tmp"
  partial.write_text(json.dumps(text, indent=2, default=str) + "\n")
  partial.replace(workdir / "config.json")


def resolved(config: ConfigDict) -> dict[str, Any]:
  return json.loads(config.to_json_best_effort())


def _flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
  if not isinstance(tree, dict):
    yield prefix, tree
    return
  for name, value in tree.items():
    yield from _flatten(value, f"{prefix}.{name}" if prefix else name)
