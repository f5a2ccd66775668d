"""One training step: one jitted pure function for a single CPU and for a pod."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from synclipmae_jax.sharding import batch_axes, batch_sharding
from synclipmae_jax.train.optim import Optimizer
from synclipmae_jax.train.state import TrainState, abstract_state
from synclipmae_jax.types import InputError, Task


def check_batch(task: Task, batch_size: int, *, mesh: Mesh, accumulation: int = 1, processes: int = 1) -> None:
  """Raises InputError for a global batch that does not divide; called before compilation."""
  ways = math.prod(batch_axes(mesh).values())
  unit = batch_unit(task, ways=ways, accumulation=max(accumulation, 1), processes=processes)
  if accumulation < 1:
    raise InputError(f"accumulation must be at least 1, got {accumulation}")
  if task.group % task.examples_per_record:
    raise InputError(
      f"a group of {task.group} examples must hold whole records, which yield {task.examples_per_record} examples each"
    )
  if batch_size < 1 or batch_size % (task.examples_per_record * processes):
    raise InputError(
      f"a batch of {batch_size} examples must give each of {processes} process(es) whole records of"
      f" {task.examples_per_record} example(s); use a multiple of {unit}"
    )
  if batch_size % (accumulation * ways):
    raise InputError(
      f"a batch of {batch_size} examples does not divide into {accumulation} micro-batch(es) over {ways} device(s)"
      f" of mesh {dict(mesh.shape)}; use a multiple of {unit}"
    )
  if batch_size % (accumulation * task.group):
    raise InputError(
      f"a batch of {batch_size} examples does not divide into {accumulation} micro-batch(es) of whole groups of"
      f" {task.group}; use a multiple of {unit}"
    )


def batch_unit(task: Task, *, ways: int, accumulation: int = 1, processes: int = 1) -> int:
  """The smallest global batch over `ways` devices: every valid one is a multiple of it."""
  return math.lcm(accumulation * math.lcm(ways, task.group), task.examples_per_record * processes)


def make_train_step(task: Task, optimizer: Optimizer, *, mesh: Mesh, accumulation: int = 1):
  """Jitted `(state, frozen, batch, key) -> (state, metrics)`; the state is donated, all shardings are explicit.

  `key` is the run's base key; the step number is folded in here. `metrics` are replicated and float32: the task's own
  (`types.Task.loss`), the scalars `loss`, `grad_norm` (before clipping), `learning_rate`, and the bool `finite`. An
  update with a non-finite loss or gradient is not applied: the state is returned unchanged. Every shape of batch
  (length bucket) is compiled once.

  With `accumulation` A, groups of `task.group` examples are not split: the batch is reshaped to [groups, A, examples of
  a group] and micro-batch a is [:, a]. Each device therefore keeps its examples, and every group has the same members
  with and without accumulation. Gradients and metrics are averaged in float32.
  """
  abstract, frozen = abstract_state(task, optimizer, mesh)
  places, frozen_places = jax.tree.map(lambda x: x.sharding, (abstract, frozen))
  replicated = NamedSharding(mesh, PartitionSpec())

  @functools.partial(
    jax.jit,
    in_shardings=(places, frozen_places, batch_sharding(mesh), replicated),
    out_shardings=(places, replicated),
    donate_argnums=0,
  )
  def train_step(state: TrainState, frozen, batch, key):
    # The models' activation constraints read the ambient mesh. Setting it here replaces `set_mesh` in every caller.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      key = jax.random.fold_in(key, state.step)

      def gradient(micro_batch):
        value_and_grad = jax.value_and_grad(task.loss, has_aux=True)
        (loss, metrics), grads = value_and_grad(state.trainable, frozen, micro_batch, key)
        return _float32(grads), _float32({**metrics, "loss": loss})

      def accumulate(total, micro_batch):
        grads, metrics = gradient(micro_batch)
        return jax.tree.map(jnp.add, total, grads), metrics

      if accumulation == 1:
        grads, metrics = gradient(batch)
      else:
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), state.trainable)
        micro_batches = jax.tree.map(lambda x: _micro_batches(x, accumulation, task.group, mesh), batch)
        total, stacked = jax.lax.scan(accumulate, zeros, micro_batches)
        grads = jax.tree.map(lambda g: g / accumulation, total)
        metrics = jax.tree.map(lambda m: m.mean(0), stacked)

      grad_norm = optax.tree.norm(grads)
      finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
      with jax.named_scope("optimizer"):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        trainable = task.constrain_params(optax.apply_updates(state.trainable, updates))
      proposed = TrainState(state.step + 1, trainable, opt_state)
      # A select instead of a branch: it fuses into the update, which reads the old values too.
      new_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), proposed, state)
      metrics |= {"grad_norm": grad_norm, "learning_rate": optimizer.schedule(state.step), "finite": finite}
      return new_state, metrics

  return train_step


def _micro_batches(x: jax.Array, accumulation: int, group: int, mesh: Mesh) -> jax.Array:
  """[B, ...] -> [A, B / A, ...]; the groups are dealt out in turn."""
  x = x.reshape(-1, accumulation, group, *x.shape[1:]).swapaxes(0, 1)
  x = x.reshape(accumulation, -1, *x.shape[3:])
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(None, *batch_sharding(mesh).spec)))


def _float32(tree):
  return jax.tree.map(lambda x: x.astype(jnp.float32), tree)
