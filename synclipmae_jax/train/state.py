"""State of training: its abstract description, and its creation directly in sharded form."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from synclipmae_jax import sharding
from synclipmae_jax.train.optim import Optimizer
from synclipmae_jax.types import Params, Task


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything that a step changes. Frozen parameters are a separate argument that is not donated."""

  step: Any  # int32 []: updates applied so far
  trainable: Params
  opt_state: Any


def abstract_state(task: Task, optimizer: Optimizer, mesh: Mesh) -> tuple[TrainState, Params]:
  """(state, frozen) as ShapeDtypeStructs that carry their shardings; nothing is computed or compiled.

  Initialisation, restoring, the train step and ahead-of-time compilation use the same description. Optimiser moments
  have the sharding of their parameters.
  """
  state, frozen = jax.eval_shape(lambda key: _init(task, optimizer, key), jax.eval_shape(lambda: jax.random.key(0)))
  replicated = NamedSharding(mesh, PartitionSpec())
  trainable = sharding.shardings(state.trainable, mesh, task.rules)
  masked = lambda x: isinstance(x, optax.MaskedNode)  # placeholder for a leaf whose moments another optimizer holds
  opt_state = optax.tree_utils.tree_map_params(
    optimizer,
    lambda moment, place: moment if masked(moment) else place,
    state.opt_state,
    trainable,
    transform_non_params=lambda _: replicated,
    is_leaf=masked,
  )
  places = TrainState(replicated, trainable, opt_state), sharding.shardings(frozen, mesh, task.rules)
  return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), (state, frozen), places)


def init_state(task: Task, optimizer: Optimizer, mesh: Mesh, key) -> tuple[TrainState, Params]:
  """(state, frozen) at step 0; every leaf is created on the devices that hold it."""
  places = jax.tree.map(lambda x: x.sharding, abstract_state(task, optimizer, mesh))
  # It runs once, and is dozens of loops that draw numbers: a CPU compiles it in half the time if it optimises none.
  on_cpu = mesh.devices.flat[0].platform == "cpu"
  options = {"xla_backend_optimization_level": 0} if on_cpu else None
  return jax.jit(lambda key: _init(task, optimizer, key), out_shardings=places, compiler_options=options)(key)


def _init(task: Task, optimizer: Optimizer, key) -> tuple[TrainState, Params]:
  # The first update removes the weak type of a leaf (from a Python number), and the step would compile twice.
  trainable, frozen = jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), task.init(key))
  return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable)), frozen
