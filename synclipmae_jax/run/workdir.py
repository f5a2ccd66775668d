"""What a workdir says of its run: config.json, the stamp of its checkpoints, and whether it holds another model."""

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

# Fields that make a model what it is: a workdir holds one model. Of these, some say how it is computed, not what it is.
MODEL_FIELDS = ("task", "model.", "data.image_size", "data.clip_frames", "data.audio_frames")
COMPUTING_FIELDS = {"model.compute_dtype", "model.unroll", "model.remat", "model.embed_visible"}


def has_checkpoints(workdir: Path) -> bool:
  """Whether a run in `workdir` has saved anything."""
  return any(path.name.isdecimal() for path in (workdir / "checkpoints").glob("*"))


def check_workdir(config: ConfigDict, workdir: Path) -> None:
  """Refuses a workdir that holds another model, before anything in it is touched; says what else differs."""
  try:
    before = json.loads((workdir / "config.json").read_text())["config"]
  except (FileNotFoundError, ValueError, KeyError):  # none, or one that a killed run left half
    return
  before, now = (dict(_flatten(tree)) for tree in (before, resolved(config)))
  changed = {
    field: f"{field} {before.get(field)} -> {now.get(field)}"
    for field in sorted(before.keys() | now.keys())
    if before.get(field) != now.get(field)
  }
  other = [text for field, text in changed.items() if field.startswith(MODEL_FIELDS) and field not in COMPUTING_FIELDS]
  if other and has_checkpoints(workdir):
    raise InputError(f"{workdir} was made with another model ({', '.join(other)}): name another workdir")
  if changed and jax.process_index() == 0:
    print(f"this run differs from the one that made {workdir}: {', '.join(changed.values())}")


def stamp(config: ConfigDict, preprocessing: Mapping[str, Any]) -> dict[str, Any]:
  """What a checkpoint says about itself: the configuration, the preprocessing it was trained on, the revision."""
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
  """The git revision of the code, with + where it was changed; None outside a checkout."""
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


