"""Turns Ctrl-C and SIGTERM into a stop request that all processes follow after the same step."""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

NAMES: dict[int, str] = {signal.SIGINT: "sigint", signal.SIGTERM: "sigterm"}


class Interrupted(BaseException):
  """Raised by a signal, only inside `Interrupt.breakable`."""


class Interrupt:
  """Context that records the first SIGINT or SIGTERM; a Ctrl-C after it ends the process at once.

  One process: `stop` is set at once. Several processes: a signal may reach only one of them, or reach them at different
  steps. Every process therefore casts a vote in each step: a small reduction, dispatched with the step and read with
  its metrics one step later.
  """

  def __init__(self):
    self._received = 0
    self._agreed = 0
    self._breakable = False
    self._handlers = {}

  def __enter__(self) -> Interrupt:
    if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
      self._handlers = {number: signal.signal(number, self._receive) for number in NAMES}
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._handlers.items():
      signal.signal(number, handler)

  def _receive(self, number, _frame) -> None:
    self._received = number
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if self._breakable:
      raise Interrupted

  @property
  def stop(self) -> str | None:
    """'sigint' or 'sigterm' once the run should end."""
    return NAMES.get(self._received if jax.process_count() == 1 else self._agreed)

  def breakable(self, work: Callable[[], Any]) -> Any:
    """work(), or None if a signal came before its end. For work that may be abandoned."""
    if jax.process_count() > 1:  # the other processes would wait in a collective
      return work()
    try:
      try:
        self._breakable = True
        return None if self._received else work()
      finally:
        self._breakable = False
    except Interrupted:
      return None

  def cast_vote(self):
    """This step's vote as a replicated device scalar; None in a single process."""
    if jax.process_count() == 1:
      return None
    mesh = Mesh(np.array(jax.devices()), ("all",))
    votes = np.full(jax.local_device_count(), self._received, np.int32)
    votes = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec("all")), votes)
    return _count(mesh)(votes)

  def read_vote(self, vote) -> None:
    """Records a vote that was fetched with the metrics of its step."""
    if vote is not None:
      self._agreed = self._agreed or int(vote)


@functools.cache
def _count(mesh: Mesh):
  return jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
