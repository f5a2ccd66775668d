from __future__ import annotations

import math

import jax
import numpy as np
import optax
import pytest
from toy_task import ToyTask, toy_batches

from synclipmae_jax import sharding
from synclipmae_jax.train import accelerators
from synclipmae_jax.train.optim import make_optimizer
from synclipmae_jax.train.state import abstract_state, init_state
from synclipmae_jax.train.step import batch_unit, check_batch, make_train_step
from synclipmae_jax.types import InputError

BATCH = 32


def optimizer():
  return make_optimizer(peak_lr=1e-2, warmup_steps=2, total_steps=10)


def train(steps=2, *, axes=(("data", 1),), accumulation=1, poisoned=None):
  task, mesh = ToyTask(), sharding.make_mesh(axes, jax.devices()[: math.prod(size for _, size in axes)])
  state, frozen = init_state(task, optimizer(), mesh, jax.random.key(0))
  step = make_train_step(task, optimizer(), mesh=mesh, accumulation=accumulation)
  batches, key, history = toy_batches(BATCH, poisoned=poisoned)(0), jax.random.key(1), []
  for _ in range(steps):
    state, metrics = step(state, frozen, sharding.to_global(next(batches), mesh), key)
    history.append(jax.device_get(metrics))
  assert step._cache_size() == 1  # compiled once: outputs have the types and shardings of inputs
  return state, history


@pytest.fixture(scope="module")
def plain():
  return train()


def agree(one, other):
  """All metrics of every step, and the final parameters."""
  for a, b in zip(one[1], other[1], strict=True):
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_allclose(a[name], b[name], rtol=2e-5, err_msg=name)
  for a, b in zip(jax.tree.leaves(one[0].trainable), jax.tree.leaves(other[0].trainable), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_accumulation_changes_nothing_but_rounding(plain):
  agree(plain, train(accumulation=4))


def test_eight_devices_agree_with_one(plain):
  agree(plain, train(axes=(("data", 4), ("fsdp", 2))))


def test_eight_devices_with_accumulation_agree_with_one(plain):
  """A group of four clips spans two devices."""
  agree(plain, train(axes=(("data", 8),), accumulation=2))


def test_two_runs_are_equal_bit_for_bit(plain):
  again = train()
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
    np.testing.assert_array_equal(a, b)


def test_metrics_and_the_gradient_are_those_of_the_loss(plain):
  """One update against plain jax.grad and optax, outside the step."""
  task, opt = ToyTask(), optimizer()
  trainable, frozen = jax.jit(task.init)(jax.random.key(0))
  batch, key = next(toy_batches(BATCH)(0)), jax.random.fold_in(jax.random.key(1), 0)
  (loss, terms), grads = jax.jit(jax.value_and_grad(task.loss, has_aux=True))(trainable, frozen, batch, key)
  state, history = train(1)
  np.testing.assert_allclose(history[0]["loss"], loss, rtol=1e-5)
  np.testing.assert_allclose(history[0]["contrast"], terms["contrast"], rtol=1e-5)
  np.testing.assert_allclose(history[0]["grad_norm"], optax.tree.norm(grads), rtol=1e-5)
  np.testing.assert_allclose(history[0]["learning_rate"], 0.005)
  updates, _ = jax.jit(opt.update)(grads, opt.init(trainable), trainable)
  expected = task.constrain_params(optax.apply_updates(trainable, updates))
  for a, b in zip(jax.tree.leaves(state.trainable), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)  # Adam's first step magnifies rounding of tiny gradients
  assert int(state.step) == 1


def test_an_update_that_is_not_finite_is_not_applied(plain):
  healthy, _ = train(1)
  state, history = train(2, poisoned=1)
  assert history[0]["finite"] and not history[1]["finite"] and np.isnan(history[1]["loss"])
  for a, b in zip(jax.tree.leaves(healthy), jax.tree.leaves(state), strict=True):
    np.testing.assert_array_equal(a, b)


def test_parameters_and_moments_are_created_sharded():
  mesh = sharding.make_mesh({"data": 2, "fsdp": 4}, jax.devices()[:8])
  state, frozen = init_state(ToyTask(), optimizer(), mesh, jax.random.key(0))
  abstract, _ = abstract_state(ToyTask(), optimizer(), mesh)
  for leaf, like in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
    assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype)
    assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
  for kernel in (state.trainable["head"]["kernel"], state.opt_state[1].mu["head"]["kernel"]):
    assert kernel.sharding.spec == jax.P("fsdp") and kernel.addressable_shards[0].data.shape == (4, 12)
  assert frozen["projection"]["kernel"].sharding.spec == jax.P("fsdp")
  whole = ToyTask().init(jax.random.key(0))[0]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), jax.device_get(state.trainable), whole)


def test_the_step_compiles_from_shapes_alone():
  mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
  state, frozen = abstract_state(ToyTask(), optimizer(), mesh)
  place = sharding.batch_sharding(mesh)
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), next(toy_batches(BATCH)(0)))
  key = jax.eval_shape(lambda: jax.random.key(0))
  lowered = make_train_step(ToyTask(), optimizer(), mesh=mesh).lower(state, frozen, batch, key)
  assert "sharding_constraint" in lowered.as_text()  # constraints in the models see the mesh
  compiled = lowered.compile()
  assert "input_output_alias" in compiled.as_text()  # the state is donated


@pytest.mark.parametrize(
  ("batch_size", "changes", "options", "complaint"),
  [
    (30, {}, {}, "does not divide .* over 8 device"),
    (32, {}, {"accumulation": 8}, "does not divide into 8 micro-batch"),
    (32, {"group": 24}, {}, "whole groups of 24"),
    (32, {"group": 3}, {}, "must hold whole records"),
    (32, {}, {"accumulation": 0}, "at least 1"),
    (32, {}, {"processes": 3}, "whole records"),
  ],
)
def test_a_batch_that_does_not_divide_is_refused(batch_size, changes, options, complaint):
  mesh = sharding.make_mesh({"data": 8}, jax.devices()[:8])
  check_batch(ToyTask(group=16), 32, mesh=mesh, accumulation=2)
  with pytest.raises(InputError, match=complaint):
    check_batch(ToyTask(**changes), batch_size, mesh=mesh, **options)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("group", [2, 6])
def test_the_unit_of_a_batch_is_the_smallest_that_passes(accumulation, processes, group):
  task, mesh = ToyTask(group=group), sharding.make_mesh({"data": 8}, jax.devices()[:8])
  unit = batch_unit(task, ways=8, accumulation=accumulation, processes=processes)
  check_batch(task, unit, mesh=mesh, accumulation=accumulation, processes=processes)
  for smaller in range(1, unit):
    with pytest.raises(InputError):
      check_batch(task, smaller, mesh=mesh, accumulation=accumulation, processes=processes)


def test_utilisation_is_unknown_on_a_cpu_and_a_ratio_where_the_peak_is_known():
  class Chip:
    device_kind = "TPU v5 lite"

  assert accelerators.mfu(1e12, 1.0, jax.devices()[:1]) is None
  np.testing.assert_allclose(accelerators.mfu(197e12, 0.5, [Chip()] * 4), 0.5)
