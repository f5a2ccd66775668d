"""Writes metrics to the terminal, to JSON lines and optionally to TensorBoard. Only process 0 writes.

`clu.metric_writers` offers much of this, but its import needs TensorFlow (5 s and 0.7 GB). tensorboardX writes the same
event files without TensorFlow.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm
from clu import parameter_overview
from PIL import Image

from synclipmae_jax.types import Params


class Logger:
  """Log of a run. WORKDIR/metrics.jsonl has one object per step, in ascending order, also after resuming."""

  def __init__(self, workdir: str | Path, *, step: int, total_steps: int, tensorboard: bool = False):
    """`step`: where the run starts. Lines of later steps, from an earlier run, are dropped and logged again."""
    self._active = jax.process_index() == 0
    self._workdir = Path(workdir)
    self._events = None
    if not self._active:
      return
    self._workdir.mkdir(parents=True, exist_ok=True)
    path = self._workdir / "metrics.jsonl"
    lines = [line for line in _read_lines(path) if line["step"] <= step]
    whole = path.with_name(".metrics.jsonl")
    whole.write_text("".join(_dump(line) for line in lines), encoding="utf-8")
    whole.replace(path)
    self._lines = path.open("r+", encoding="utf-8")
    self._last = lines[-1] if lines else {"step": -1}
    self._last_at = path.stat().st_size - (len(_dump(self._last)) if lines else 0)
    if tensorboard:
      import tensorboardX

      self._events = tensorboardX.SummaryWriter(str(self._workdir / "tensorboard"), purge_step=step + 1)
    self._bar = tqdm.tqdm(
      total=total_steps, initial=step, unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty()
    )

  def scalars(self, step: int, values: Mapping[str, Any]) -> None:
    """Adds values to the line of `step`, the last one logged or a later one. Values that are not finite become null."""
    if not self._active:
      return
    values = {name: _plain(value) for name, value in values.items()}
    if step != self._last["step"]:
      self._last, self._last_at = {"step": step}, self._lines.seek(0, 2)
    self._last |= values
    self._lines.seek(self._last_at)
    self._lines.truncate()
    self._lines.write(_dump(self._last))
    self._lines.flush()
    if self._events is not None:
      for name, value in values.items():
        if isinstance(value, int | float):
          self._events.add_scalar(name, value, step)

  def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """uint8 [H, W, 3] each, to WORKDIR/pictures/<name>_<step>.png."""
    if not self._active:
      return
    (self._workdir / "pictures").mkdir(exist_ok=True)
    for name, image in images.items():
      Image.fromarray(image).save(self._workdir / "pictures" / f"{name}_{step:07d}.png")
      if self._events is not None:
        self._events.add_image(name, image, step, dataformats="HWC")

  def parameters(self, trainable: Params, frozen: Params) -> None:
    """The table of all parameters, to WORKDIR/parameters.txt."""
    if not self._active:
      return
    tables = {"Trainable": trainable, "Frozen": frozen}
    text = "\n".join(
      f"{name}\n{parameter_overview.get_parameter_overview(tree, include_stats='sharding')}\n"
      for name, tree in tables.items()
      if jax.tree.leaves(tree)
    )
    (self._workdir / "parameters.txt").write_text(text)

  def progress(self, step: int, text: str, *, line: bool) -> None:
    """Moves the progress bar; without a terminal, prints a line if `line` is true."""
    if not self._active:
      return
    if not self._bar.disable:
      self._bar.set_postfix_str(text, refresh=False)
      self._bar.update(step - self._bar.n)
    elif line:
      print(f"step {step}/{self._bar.total}  {text}", flush=True)

  def say(self, text: str) -> None:
    """Prints a line above the progress bar."""
    if self._active:
      tqdm.tqdm.write(text)
      sys.stdout.flush()

  def close(self) -> None:
    if self._active:
      self._bar.close()
      self._lines.close()
      if self._events is not None:
        self._events.close()


def _read_lines(path: Path) -> list[dict[str, Any]]:
  """Complete lines only: a killed process may leave a partial one."""
  lines = []
  for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
    try:
      lines.append(json.loads(text))
    except ValueError:
      continue
  return lines


def _dump(line: Mapping[str, Any]) -> str:
  return json.dumps(line) + "\n"  # ASCII, so that characters are bytes


def _plain(value: Any) -> Any:
  value = value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value
  return None if isinstance(value, float) and not math.isfinite(value) else value
