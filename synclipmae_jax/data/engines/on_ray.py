"""Units of work on Ray (https://docs.ray.io): a cluster, or processes that Ray starts on this machine for the run.

Ray's own retries are off, because they do not distinguish a unit that crashes its process from a machine that is gone.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from synclipmae_jax.data.media import watchdog
from synclipmae_jax.types import InputError

Unit = TypeVar("Unit")
Result = TypeVar("Result")

FRESH = "local"  # the address of a Ray that is started for the run
_TRIES = 3  # of a unit whose process ended: the process may have been killed for another reason
_LOOK = 5.0  # seconds between looks at the cluster, which may grow or shrink
_EMPTY = 900.0  # seconds that a cluster may be without processors: a cloud takes minutes to bring the first
_ANSWER = 10.0  # seconds that a cluster has to answer
_GENTLY = 10.0  # seconds that units have to clean up when they are stopped


@contextlib.contextmanager
def connected(address: str, workers: int | None) -> Iterator[int | None]:
  """A connection to Ray; one that is there already is used and stays. Yields the `workers` that `run` keeps to.

  Raises InputError if there is no Ray to be had.
  """
  try:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
  except ImportError as error:
    raise InputError("the engine ray needs Ray: pip install 'synclipmae_jax[ray]'") from error
  if ray.is_initialized():
    yield workers
    return
  fresh: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False} if address == FRESH else {}
  try:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():  # Ray itself tries for minutes
      socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **fresh)
  except Exception as error:  # Ray raises half a dozen kinds, some of them plain Exceptions
    ray.shutdown()
    place = "cannot be started on this machine" if address == FRESH else f"at {address} does not answer"
    raise InputError(f"Ray {place} ({_line(error)})") from error
  try:
    yield None if fresh else workers
  finally:
    ray.shutdown()


def run(
  work: Callable[[Unit], Result], units: Sequence[Unit], *, lost: Callable[[Unit, str], Result], workers: int | None
) -> Iterator[Result]:
  """As described in `data.engines`, on the Ray of `connected`.

  The units of a machine that is gone are done again. A unit whose process ends is tried `_TRIES` times, then lost.
  Raises InputError if Ray itself ends, or stays without processors.
  """
  import ray

  task = ray.remote(num_cpus=1, max_retries=0)(_do)
  waiting = collections.deque((unit, 1) for unit in units)
  running: dict[Any, tuple[Unit, int]] = {}
  limit, looked, seen = 1, -_LOOK, time.monotonic()
  try:
    while waiting or running:
      if time.monotonic() - looked > _LOOK:
        looked, limit = time.monotonic(), int(ray.cluster_resources().get("CPU", 0))
        seen = looked if limit else seen
        if looked - seen > _EMPTY:
          raise InputError("Ray has no processors left")
      # As many again wait, so that no processor does; not more, because Ray holds what waits.
      while waiting and len(running) < (workers or max(2 * limit, 1)):
        unit, tries = waiting.popleft()
        running[task.remote(work, unit)] = unit, tries
      ready, _ = ray.wait(list(running), timeout=_LOOK)
      for reference in ready:
        unit, tries = running.pop(reference)
        try:
          result = ray.get(reference)
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
          if tries == _TRIES:
            yield lost(unit, watchdog.REASONS)
          else:
            waiting.append((unit, tries + 1))
        except ray.exceptions.NodeDiedError:
          waiting.append((unit, tries))
        else:
          yield result
  except ray.exceptions.RayTaskError as error:
    if isinstance(error.cause, ImportError):
      raise InputError(f"a machine of Ray lacks this package or one it needs ({error.cause})") from error
    raise (error.cause or error) from error
  except ray.exceptions.RayError as error:
    raise InputError(f"Ray has ended ({_line(error)})") from error
  finally:
    _stop(list(running))


def _do(work: Callable[[Unit], Result], unit: Unit) -> Result:
  """In a process of Ray, which does one unit after another."""
  global _prepared
  if not _prepared:
    watchdog.end_process_after(watchdog.NO_END)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background hands on that it is ignored
    _prepared = True
  return work(unit)


_prepared = False


def _stop(running: list) -> None:
  """Stops the units that are still at work, by KeyboardInterrupt first, so that they can clean up."""
  import ray

  with contextlib.suppress(Exception):  # Ray may have ended
    for force in (False, True):
      for reference in running:
        ray.cancel(reference, force=force)
      if running:
        _, running = ray.wait(running, num_returns=len(running), timeout=_GENTLY)


def _line(error: Exception) -> str:
  """The first line of a message: Ray adds its logs."""
  return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
