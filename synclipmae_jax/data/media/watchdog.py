"""Ends a worker process whose decoder does not return, so that a hostile file does not stop the whole run.

Off by default; a worker turns it on by `end_process_after`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")

NO_END = 60  # seconds for one packet; the slowest real packets take some tenths
REASONS = "out of memory, or a fault of the decoder, which crashed or did not return"
_CHECK = 1.0  # seconds between checks

_since: dict[int, float] = {}  # by thread: when it entered FFmpeg


def end_process_after(seconds: float) -> None:
  """From now on this process ends if one call of FFmpeg takes longer than `seconds`."""
  threading.Thread(target=_watch, args=(seconds,), daemon=True).start()


def _watch(seconds: float) -> None:
  while True:
    time.sleep(min(_CHECK, seconds / 4))
    if any(time.monotonic() - since > seconds for since in list(_since.values())):
      os._exit(1)


@contextlib.contextmanager
def watched() -> Iterator[None]:
  """Context of a call of FFmpeg, which releases the interpreter's lock."""
  thread = threading.get_ident()
  _since[thread] = time.monotonic()
  try:
    yield
  finally:
    _since.pop(thread, None)


def each(items: Iterable[_T]) -> Iterator[_T]:
  """The items of an iterable, each fetched under `watched`."""
  items = iter(items)
  while True:
    with watched():
      item = next(items, None)
    if item is None:
      return
    yield item
