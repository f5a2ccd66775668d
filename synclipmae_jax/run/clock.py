"""Measures the time of the parts of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass
class Clock:
  """Seconds by part of a run."""

  seconds: dict[str, float] = dataclasses.field(default_factory=dict)

  @contextlib.contextmanager
  def __call__(self, part: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
      yield
    finally:
      self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started

  def timed(self, part: str, function):
    """`function` with its time added to `part`; other attributes (such as an evaluator's name) are forwarded."""
    return _Timed(self, part, function)

  def table(self, total: float) -> str:
    parts = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in self.seconds.items())
    return f"Time: {parts}; total {total:.0f} s."


@dataclasses.dataclass(frozen=True)
class _Timed:
  clock: Clock
  part: str
  function: Any

  def __call__(self, *args, **kwargs):
    with self.clock(self.part):
      return self.function(*args, **kwargs)

  def __getattr__(self, name: str):
    return getattr(self.function, name)
