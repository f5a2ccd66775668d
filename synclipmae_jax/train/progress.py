"""Metrics and speed of the steps of a run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from synclipmae_jax.train import accelerators
from synclipmae_jax.train.interrupt import Interrupt
from synclipmae_jax.train.logging import Logger
from synclipmae_jax.types import Batch, InputError, Task


class NonFiniteLoss(InputError):
  """A loss or gradient is not finite; nothing was saved after it."""


class _Step(NamedTuple):
  """A dispatched step whose metrics are not yet read."""

  step: int
  metrics: Any
  vote: Any
  started: float  # s, of time.perf_counter
  wait: float  # s, waiting for the batch
  items: int
  model_flops: float


class _Cost(NamedTuple):
  """A step whose metrics were read."""

  seconds: float
  wait: float
  items: int
  model_flops: float


class Steps:
  """Reads the metrics of each step one step later, so that the device always has a step queued."""

  def __init__(self, log: Logger, interrupt: Interrupt, task: Task, *, mesh: Mesh, every: int, total_steps: int):
    self.latest: dict[str, Any] = {}
    self._log, self._interrupt, self._task = log, interrupt, task
    self._devices, self._every, self._total = list(mesh.devices.flat), every, total_steps
    self._pending: _Step | None = None
    self._last_read = 0.0
    self._costs: list[_Cost] = []  # since the last log line
    self._sums: dict[str, np.ndarray] = {}  # likewise: of the metrics that are (total, weight)
    self._counted: dict[tuple, tuple[int, float]] = {}  # shapes of a batch -> number of items, model FLOPs

  def push(self, step: int, metrics, batch: Batch, *, started: float, wait: float) -> None:
    """Queues the metrics of the dispatched `step` and reads those of the previous step."""
    shapes = tuple((name, array.shape) for name, array in batch.items())
    if shapes not in self._counted:
      self._counted[shapes] = self._task.count_items(batch), self._task.model_flops(batch)
    before = self._pending
    self._pending = _Step(step, metrics, self._interrupt.cast_vote(), started, wait, *self._counted[shapes])
    if before is not None:
      self._read(before)

  def settle(self) -> None:
    """Reads the queued metrics."""
    before, self._pending = self._pending, None
    if before is not None:
      self._read(before)

  def _read(self, entry: _Step) -> None:
    step = entry.step
    metrics, vote = jax.device_get((entry.metrics, entry.vote))
    self._interrupt.read_vote(vote)
    values = {name: float(value) for name, value in metrics.items() if not value.shape}
    for name, value in metrics.items():
      if value.shape:
        self._sums[name] = self._sums.get(name, 0.0) + value.astype(np.float64)
    if not values.pop("finite"):
      self._log.scalars(step, values)
      raise NonFiniteLoss(
        f"the loss or its gradient is not finite at step {step}"
        f" (loss {values['loss']:g}, gradient norm {values['grad_norm']:g}); its update was not applied"
      )
    now = time.perf_counter()
    if self.latest:
      # The time of a step starts at the previous result, or at its own start if something else ran in between.
      seconds = now - max(entry.started, self._last_read)
      self._costs.append(_Cost(seconds, entry.wait, entry.items, entry.model_flops))
    else:
      self._log.say(f"compiled and ran the first step in {now - entry.started:.1f} s")
    self._last_read, self.latest = now, values
    due = step == self._total or bool(self._every and step % self._every == 0)
    speed = self._speed()
    means = {name: float(total / weight) for name, (total, weight) in self._sums.items() if weight} if due else {}
    if due:
      self._log.scalars(step, values | means | speed)
      self._costs, self._sums = [], {}
    self._log.progress(step, self._summary(values, speed), line=due)
    if means:
      self._log.say(_by_name(means))

  def _speed(self) -> dict[str, float]:
    """Means since the last log line; empty if only the first step (compilation) was read."""
    if not self._costs:
      return {}
    seconds, waits, items, model_flops = (sum(column) for column in zip(*self._costs, strict=True))
    speed = {
      "step_seconds": seconds / len(self._costs),
      f"{self._task.item}_per_second": items / seconds,
      "data_wait_seconds": waits / len(self._costs),
    }
    utilisation = accelerators.mfu(model_flops, seconds, self._devices)
    return speed if utilisation is None else speed | {"mfu": utilisation}

  def _summary(self, values: Mapping[str, float], speed: Mapping[str, float]) -> str:
    terms = [name for name in values if name not in ("loss", "grad_norm", "learning_rate")]
    text = " ".join(f"{name} {values[name]:.4g}" for name in ["loss", *terms])
    if speed:
      item = self._task.item
      text += f" | {speed['step_seconds'] * 1e3:.0f} ms/step, {speed[f'{item}_per_second']:.0f} {item}/s"
      text += f", data wait {speed['data_wait_seconds'] * 1e3:.0f} ms"
    return text + (f", MFU {speed['mfu']:.1%}" if "mfu" in speed else "")


def _by_name(means: Mapping[str, float]) -> str:
  """One line for `TERM/NAME` -> value: for each name its terms."""
  names: dict[str, list[str]] = {}
  for key, value in means.items():
    term, _, name = key.partition("/")
    names.setdefault(name, []).append(f"{term} {value:.4g}")
  return " | ".join(f"{name}: {' '.join(terms)}" for name, terms in names.items())
