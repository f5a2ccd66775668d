"""Ends a worker process whose decoder comes to no end, so that a hostile file costs itself and not the whole run.

Off unless a worker turns it on (`end_process_after`): who reads a file in his own process keeps it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")

NO_END = 60  # seconds that one packet may take; the slowest real ones take some tenths
REASONS = "out of memory, or a fault of the decoder, which crashed or came to no end"
_CHECK = 1.0  # seconds between looks

_since: dict[int, float] = {}  # when a thread went into FFmpeg, by thread


def end_process_after(seconds: float) -> None:
  """From now on this process ends where one call of FFmpeg takes longer."""
  threading.Thread(target=_watch, args=(seconds,), daemon=True).start()


def _watch(seconds: float) -> None:
  while True:
    time.sleep(min(_CHECK, seconds / 4))
    if any(time.monotonic() - since > seconds for since in list(_since.values())):
      os._exit(1)


@contextlib.contextmanager
def watched() -> Iterator[None]:
  """Around a call that goes into FFmpeg, which frees the interpreter's lock meanwhile."""
  thread = threading.get_ident()
  _since[thread] = time.monotonic()
  try:
    yield
  finally:
    _since.pop(thread, None)


def each(items: Iterable[_T]) -> Iterator[_T]:
  """The items, each waited for under `watched`."""
  items = iter(items)
  while True:
    with watched():
      item = next(items, None)
    if item is None:
      return
    yield item
