"""Batch norm for tasks that are pure functions of their parameters and cannot keep running statistics.

Training uses the statistics of the (micro-)batch. The leaves `mean` and `var` have no gradient and keep their initial
values until `calibrate` measures them on a few training batches with the trained parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from synclipmae_jax import sharding
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.types import Batch, InputError, Params


class BatchNorm(nnx.BatchNorm):
  """Batch norm over all axes but the last. With `training`, `mean` and `var` are set to the statistics of the batch."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    super().__init__(width, momentum=0.0, epsilon=1e-5, use_fast_variance=False, rngs=rngs)

  def __call__(self, x: Float[Array, "*b c"], *, training: bool) -> Float[Array, "*b c"]:
    return super().__call__(x, use_running_average=not training)


def statistics(module: Functional, run: Callable[[Any, Batch], Any]) -> Callable[[Params, Batch], Params]:
  """Jitted (params, batch) -> params with `mean` and `var` of the batch.

  `run(model, batch)` is the training forward pass of the bound module.
  """

  @jax.jit
  def measure(params: Params, batch: Batch) -> Params:
    model = module.bind(params)
    run(model, batch)
    return nnx.to_pure_dict(nnx.state(model))

  return measure


def calibrate(measure: Callable[[Params, Batch], Params], params: Params, batches: Iterable[Batch]) -> Params:
  """`params` with the statistics of the batches, averaged over `batches`. A dozen batches are enough.

  Raises InputError without a batch.
  """
  total, count = None, 0
  for batch in batches:
    measured = measure(params, batch)
    total = measured if total is None else jax.tree.map(jnp.add, total, measured)
    count += 1
  if total is None:
    raise InputError("the statistics of batch norm cannot be measured without a training batch")
  return jax.tree.map(lambda x: x / count, total)


def is_calibrated(params: Params) -> bool:
  """Whether any mean differs from its initial value of zero."""
  return any(np.any(leaf) for path, leaf in sharding.tree_paths(params) if path.endswith("/mean"))
