"""Where the units of a large piece of work are done: in processes of this machine, or on a Ray cluster.

An engine is a function `run(work, units, lost=lost)`. It yields `work(unit)` for every unit, in any order, and keeps
only a few units in flight. An exception of `work` stops it: no unit is left at work, and the exception is raised here.
For a unit whose process ends again and again it yields `lost(unit, reason)`, and the other units are done. `work` and
the units are pickled, unless the engine has a single local worker.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

from synclipmae_jax.data.engines import local, on_ray
from synclipmae_jax.types import InputError

NAMES = ("local", "ray")
Engine = Callable[..., Iterator[Any]]


def engine(
  name: str, *, workers: int | None = None, ray_address: str | None = None
) -> contextlib.AbstractContextManager[Engine]:
  """The engine of a name while a block lasts. `workers`: processes at once; None: one (local), all of Ray's (ray).

  Raises InputError for a wrong argument at once; when the block begins, for `ray` without Ray, and for a cluster that
  does not answer.
  """
  if name not in NAMES:
    raise InputError(f"unknown engine {name!r}: choose one of {', '.join(NAMES)}")
  if workers is not None and workers < 1:
    raise InputError(f"the number of workers must be at least 1, not {workers}")
  if name == "local":
    if ray_address is not None:
      raise InputError("an address of Ray is given, but the engine is local: choose the engine ray")
    return contextlib.nullcontext(functools.partial(local.run, workers=workers or 1))
  return _on_ray(ray_address or os.environ.get("RAY_ADDRESS") or on_ray.FRESH, workers)


@contextlib.contextmanager
def _on_ray(address: str, workers: int | None) -> Iterator[Engine]:
  with on_ray.connected(address, workers) as most:
    yield functools.partial(on_ray.run, workers=most)
