"""Times functions in turn, so that other load affects all of them equally; ratios with their spread."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
  """Seconds of one function by round."""

  wall: list[float] = dataclasses.field(default_factory=list)
  cpu: list[float] = dataclasses.field(default_factory=list)  # of all threads of this process; excludes other load


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ratio:
  """Ratio of two times over the rounds: median and quartiles of wall time, median of processor time."""

  wall: float
  low: float
  high: float
  cpu: float

  def __str__(self) -> str:
    return f"{self.wall:.2f} [{self.low:.2f}, {self.high:.2f}] (processor time {self.cpu:.2f})"


def in_turn(runs: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, Times]:
  """Times all of `runs` in every round; the order alternates."""
  times = {name: Times() for name in runs}
  for number in range(rounds):
    for name in list(runs)[:: -1 if number % 2 else 1]:
      cpu, wall = time.process_time(), time.perf_counter()
      runs[name]()
      times[name].wall.append(time.perf_counter() - wall)
      times[name].cpu.append(time.process_time() - cpu)
  return times


def ratio(above: Times, below: Times) -> Ratio:
  """Ratio of two entries of `in_turn`, computed in each round."""
  of = lambda a, b: np.quantile(np.divide(a, b), [0.25, 0.5, 0.75]).tolist()
  low, wall, high = of(above.wall, below.wall)
  return Ratio(wall=wall, low=low, high=high, cpu=of(above.cpu, below.cpu)[1])


def load() -> str:
  """Load of the machine. With more load than cores wall times are unreliable; processor times are still valid."""
  return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
