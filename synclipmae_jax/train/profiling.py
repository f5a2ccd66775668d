"""Traces steps of a run for TensorBoard's profile plugin or Perfetto."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax

from synclipmae_jax.types import InputError

R = TypeVar("R")


class StepProfiler:
  """Runs the train step and traces the steps (first, last) = `steps` (from 1, both included) to `directory`.

  As a context it also writes an unfinished trace at its end. Without `steps` nothing is traced. Raises InputError if
  `steps` is not such a pair.
  """

  def __init__(self, steps: Sequence[int] | None, directory: str | Path):
    try:
      self._first, self._last = (0, 0) if steps is None else map(int, steps)
    except (TypeError, ValueError):
      raise InputError(f"train.profile is a pair (first, last) of steps, like (20, 25), not {steps!r}") from None
    if steps is not None and not 1 <= self._first <= self._last:
      raise InputError(f"train.profile traces the steps first to last, 1 <= first <= last, not {tuple(steps)}")
    self._directory, self._running = Path(directory), False

  def __enter__(self) -> StepProfiler:
    return self

  def __exit__(self, *_: object) -> None:
    if self._running:
      self._stop()

  def run(self, step: int, train_step: Callable[..., R], *args: Any) -> R:
    """Runs `train_step(*args)`, which is step number `step` of the run (from 1)."""
    if not self._running and self._first <= step <= self._last:
      jax.profiler.start_trace(self._directory)
      self._running = True
    with jax.profiler.StepTraceAnnotation("train", step_num=step):
      result = train_step(*args)
    if self._running and step >= self._last:
      jax.block_until_ready(result)  # the step was only dispatched
      self._stop()
    return result

  def _stop(self) -> None:
    jax.profiler.stop_trace()
    self._running = False
