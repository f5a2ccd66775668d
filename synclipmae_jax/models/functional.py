"""NNX modules as pure functions of plain nested dicts: the only bridge between `models/` and the rest of the package.

Plain dicts under `jax.jit` cost about a tenth of the host time of `nnx.jit`, and keep optax masks, partial restore and
checkpoint conversion working on path strings.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx

from synclipmae_jax.types import Params


class Functional:
  """`init(key) -> params` and `bind(params) -> module` of one module constructor.

  The module has no random numbers and no state except its parameters, so binding costs nothing under `jit`.
  """

  def __init__(self, make: Callable[[nnx.Rngs], nnx.Module]):
    self._make = make
    self._graph, self._state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

  @property
  def abstract(self) -> Params:
    """Shapes and dtypes of the parameters."""
    return nnx.to_pure_dict(self._state)

  def init(self, key: jax.Array) -> Params:
    """Fresh parameters."""
    return nnx.to_pure_dict(nnx.state(self._make(nnx.Rngs(key))))

  def bind(self, params: Params) -> nnx.Module:
    """The module with these parameters."""
    state = jax.tree.map(lambda leaf: leaf, self._state)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(self._graph, state)
