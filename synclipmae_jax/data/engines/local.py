"""Units of work in processes of this machine. With one worker there is no other process."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from synclipmae_jax.data.media import watchdog

Unit = TypeVar("Unit")
Result = TypeVar("Result")


def run(
  work: Callable[[Unit], Result], units: Sequence[Unit], *, lost: Callable[[Unit, str], Result], workers: int
) -> Iterator[Result]:
  """As described in `data.engines`. A unit that ends its process is tried once more, alone, and then lost."""
  if workers == 1 or len(units) <= 1:
    for unit in units:
      yield work(unit)
    return
  context = multiprocessing.get_context("spawn")
  stop = context.Event()
  waiting, alone = list(reversed(units)), []
  while waiting or alone:
    limit = 1 if alone else workers
    queue = alone if alone else waiting
    with concurrent.futures.ProcessPoolExecutor(limit, context, _start_worker, (stop,)) as pool:
      running: dict[concurrent.futures.Future, Unit] = {}
      try:
        while queue or running:
          while queue and len(running) < 2 * limit and not (queue is alone and running):
            running[pool.submit(work, queue[-1])] = queue[-1]
            queue.pop()  # not earlier: a pool that broke meanwhile accepts nothing
          finished, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
          for future in finished:
            result = future.result()  # BrokenProcessPool: the unit stays a suspect
            running.pop(future)
            yield result
      except BrokenProcessPool:
        if queue is alone:
          for unit in running.values():
            yield lost(unit, watchdog.REASONS)
        else:
          alone.extend(running.values())
      except BaseException:  # Ctrl-C, or the consumer has stopped
        stop.set()
        pool.shutdown(cancel_futures=True)
        raise


_stop = None  # in a worker: set by the parent to stop the current unit


def _start_worker(stop) -> None:
  global _stop
  _stop = stop
  threading.Thread(target=_end_with_parent, daemon=True).start()
  watchdog.end_process_after(watchdog.NO_END)
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which sets `stop`
  os.environ.setdefault("OMP_NUM_THREADS", "1")  # there is one process a core


def _end_with_parent() -> None:
  """Ends this worker if its parent was killed: a killed parent sets no event, and the worker would wait forever."""
  multiprocessing.parent_process().join()
  os._exit(1)


class _Stopped(BaseException):
  """Stops a worker. Not an Exception: the unit has not failed."""


def check() -> None:
  """Called often by long work. Ends it in a worker whose parent stops."""
  if _stop is not None and _stop.is_set():
    raise _Stopped
