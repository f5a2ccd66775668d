"""What the benchmarks share: functions timed in turn, the JSON line of a ratio, the start of a command line.

It imports nothing outside of the standard library, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

EXTRAS = {
  "torch": "convert",
  "transformers": "convert",
  "diffusers": "parity",
  "sklearn": "test",
}  # module -> what installs it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
  """Seconds of one function by round."""

  wall: list[float] = dataclasses.field(default_factory=list)
  cpu: list[float] = dataclasses.field(default_factory=list)  # of all threads of this process; excludes other load


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ratio:
  """Ratio of two times over the rounds: medians and quartiles of wall time and of processor time."""

  wall: float
  low: float
  high: float
  cpu: float
  cpu_low: float
  cpu_high: float

  def __str__(self) -> str:
    return f"{self.wall:.2f} [{self.low:.2f}, {self.high:.2f}] (processor time {self.cpu:.2f})"


def in_turn(runs: Mapping[str, Callable[[], object]], *, rounds: int, calls: int = 1) -> dict[str, Times]:
  """Times `calls` of all of `runs` in every round, so that other load affects all equally; the order alternates."""
  times = {name: Times() for name in runs}
  for number in range(rounds):
    for name in list(runs)[:: -1 if number % 2 else 1]:
      cpu, wall = time.process_time(), time.perf_counter()
      for _ in range(calls):
        runs[name]()
      times[name].wall.append(time.perf_counter() - wall)
      times[name].cpu.append(time.process_time() - cpu)
  return times


def ratio(above: Times, below: Times) -> Ratio:
  """Ratio of two entries of `in_turn`, computed in each round."""
  low, wall, high = _quartiles(above.wall, below.wall)
  cpu_low, cpu, cpu_high = _quartiles(above.cpu, below.cpu)
  return Ratio(wall=wall, low=low, high=high, cpu=cpu, cpu_low=cpu_low, cpu_high=cpu_high)


def _quartiles(above: Sequence[float], below: Sequence[float]) -> list[float]:
  by_round = [a / b if b else float("inf") for a, b in zip(above, below, strict=True)]
  return statistics.quantiles(by_round, n=4, method="inclusive") if len(by_round) > 1 else by_round * 3


def steady(seconds: float, rounds: int) -> Times:
  """The duration of something in every round, to divide it by times."""
  return Times(wall=[seconds] * rounds, cpu=[seconds] * rounds)


def load() -> str:
  """Load of the machine. With more load than cores wall times are unreliable; processor times are still valid."""
  return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def print_ratio(
  benchmark: str,
  name: str,
  found: Ratio | float,
  *,
  of: str,
  unit: str = "wall time",
  target: str | None = None,
  **more,
) -> None:
  """Prints the JSON line of a ratio, alike in all benchmarks, so that figures can be compared over time.

  Args:
    name: which of the benchmark's ratios, with what distinguishes it (a size, a file).
    found: of wall or of processor time, by `unit`; a number has no quartiles.
    of: what over what, "A / B".
    unit: what was measured of both.
    target: as a comparison, ">= 8".
    more: whatever else is worth keeping.
  """
  quartiles = None
  if isinstance(found, Ratio):
    of_processor = unit == "processor time"
    if not of_processor:
      more = {"processor_time": round(found.cpu, 4), **more}
    quartiles = [found.cpu_low, found.cpu_high] if of_processor else [found.low, found.high]
    quartiles = [round(value, 4) for value in quartiles]
    found = found.cpu if of_processor else found.wall
  line = {
    "benchmark": benchmark,
    "name": name,
    "ratio": round(found, 4),
    "quartiles": quartiles,
    "unit": unit,
    "of": of,
  }
  line |= {"target": target} if target else {}
  print(json.dumps({**line, **more, "load": load()}), flush=True)


def parser(description: str) -> argparse.ArgumentParser:
  """A parser whose help is the docstring of the benchmark, as written."""
  return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def parse(arguments: argparse.ArgumentParser, *, needs: Sequence[str] = ()) -> argparse.Namespace:
  """The flags of a benchmark. Ends with one sentence if one of the modules that it `needs` is not installed.

  A benchmark calls it above its imports of jax and the like, so that `--help` need not wait for them.
  """
  flags = arguments.parse_args()
  if missing := [name for name in needs if importlib.util.find_spec(name) is None]:
    extra = EXTRAS[missing[0]]
    sys.exit(f'this benchmark needs {", ".join(missing)}: pip install -e ".[{extra}]"')
  return flags


def parse_with_rest(arguments: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
  """The flags, and what stands behind `--`: arguments of the runs that the benchmark starts."""
  given = sys.argv[1:]
  split = given.index("--") if "--" in given else len(given)
  return arguments.parse_args(given[:split]), given[split + 1 :]
