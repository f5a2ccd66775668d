from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synclipmae_jax import sharding
from synclipmae_jax.train.optim import decay_mask, make_optimizer, make_schedule
from synclipmae_jax.train.state import init_state
from synclipmae_jax.types import InputError


def test_schedule_rises_linearly_falls_along_a_cosine_and_stays_at_the_floor():
  schedule = make_schedule(peak_lr=1.0, warmup_steps=4, total_steps=14, floor_lr=0.1)
  np.testing.assert_allclose([schedule(s) for s in range(4)], [0.25, 0.5, 0.75, 1.0])
  np.testing.assert_allclose(schedule(4), 1.0)
  np.testing.assert_allclose(schedule(9), 0.55, rtol=1e-6)  # half way down
  np.testing.assert_allclose([schedule(14), schedule(1000)], 0.1, rtol=1e-6)
  np.testing.assert_allclose(make_schedule(peak_lr=2.0, warmup_steps=0, total_steps=10)(0), 2.0)


def test_warm_up_longer_than_the_run_is_refused():
  with pytest.raises(InputError, match="warmup_steps"):
    make_optimizer(peak_lr=1.0, warmup_steps=11, total_steps=10)


def test_only_matrices_decay_also_when_blocks_are_stacked():
  stacked, vector = jnp.ones((4, 8, 8)), jnp.ones((4, 8))
  params = {
    "encoder": {
      "blocks": {"qkv": {"kernel": stacked, "bias": vector}, "norm": {"scale": vector, "bias": vector}},
      "prompt_tokens": vector,
      "cls_token": vector,
      "position_embedding": vector,
      "patch_kernel": stacked,
    },
    "text": {"embedding": vector},
    "mask_token": vector,
    "contrast": {"log_temperature": jnp.ones(())},
  }
  mask = decay_mask(params)
  assert mask["encoder"]["blocks"]["qkv"]["kernel"] and mask["encoder"]["patch_kernel"] and mask["text"]["embedding"]
  assert sum(jax.tree.leaves(mask)) == 3

  optimizer = make_optimizer(peak_lr=0.5, warmup_steps=0, total_steps=10, weight_decay=0.1)
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(params), params)
  for decays, update in zip(jax.tree.leaves(mask), jax.tree.leaves(updates), strict=True):
    np.testing.assert_allclose(update, -0.05 if decays else 0.0, rtol=1e-6)


def test_gradient_is_clipped_by_its_global_norm():
  params = {"a": {"bias": jnp.zeros(3)}, "b": {"bias": jnp.zeros(1)}}
  optimizer = make_optimizer(peak_lr=1.0, warmup_steps=0, total_steps=10, b1=0.0, clip_norm=1.0)
  grads = {"a": {"bias": jnp.asarray([30.0, 0.0, 0.0])}, "b": {"bias": jnp.asarray([40.0])}}
  _, state = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
  moment = state[1].mu  # with b1 = 0 the first moment is the clipped gradient
  np.testing.assert_allclose(moment["a"]["bias"], [0.6, 0.0, 0.0], rtol=1e-5)
  np.testing.assert_allclose(moment["b"]["bias"], [0.8], rtol=1e-5)


MIXED = {
  "encoder": {
    "blocks": {"qkv": {"kernel": jnp.ones((3, 8, 24)), "bias": jnp.zeros((3, 24))}},
    "prompt_tokens": jnp.zeros((3, 8)),
  },
  "contrast": {"log_temperature": jnp.zeros(())},
}


def test_muon_makes_each_matrix_of_a_stack_orthogonal_and_leaves_the_rest_to_adam():
  rng = np.random.default_rng(0)
  grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), MIXED)
  options = dict(peak_lr=0.5, warmup_steps=0, total_steps=10, weight_decay=0.0)
  muon, adamw = (make_optimizer(name=name, **options) for name in ("muon", "adamw"))
  updates, others = (jax.jit(o.update)(grads, o.init(MIXED), MIXED)[0] for o in (muon, adamw))
  for update, gradient in zip(*(tree["encoder"]["blocks"]["qkv"]["kernel"] for tree in (updates, grads)), strict=True):
    _, spread, _ = np.linalg.svd(update)
    assert spread.max() < 1.8 * spread.min() < 1.8 * spread.max()  # five iterations; the gradient has 3.3
    np.testing.assert_allclose(np.sqrt(np.square(update).mean()), 0.5 * 0.2, rtol=0.25)
    assert np.sum(update * gradient) < 0  # downhill
  for path in (("encoder", "blocks", "qkv", "bias"), ("encoder", "prompt_tokens"), ("contrast", "log_temperature")):
    ours, theirs = updates, others
    for name in path:
      ours, theirs = ours[name], theirs[name]
    np.testing.assert_array_equal(ours, theirs)


def test_the_moments_of_muon_have_the_sharding_of_their_parameters():
  class Task:
    rules = sharding.RULES

    def init(self, key):
      return jax.tree.map(lambda x: x + 0.0, MIXED), {}

  mesh = sharding.make_mesh((("fsdp", 8),))
  optimizer = make_optimizer(name="muon", peak_lr=0.5, warmup_steps=0, total_steps=10)
  state, _ = init_state(Task(), optimizer, mesh, jax.random.key(0))
  kernels = [leaf for path, leaf in sharding.tree_paths(state.opt_state) if path.endswith("kernel")]
  assert [leaf.shape for leaf in kernels] == [(3, 8, 24)]  # one moment; Adam has two
  assert kernels[0].sharding.spec == state.trainable["encoder"]["blocks"]["qkv"]["kernel"].sharding.spec
  assert "fsdp" in kernels[0].sharding.spec


def test_an_unknown_optimizer_is_refused():
  with pytest.raises(InputError, match="'lion': one of adamw, muon"):
    make_optimizer(name="lion", peak_lr=1.0, warmup_steps=0, total_steps=10)


ENCODER = {
  "visual_encoder": {
    "patch_embedding": {"kernel": jnp.ones((6, 8)), "bias": jnp.ones(8)},
    "position": jnp.ones((4, 8)),
    "class_token": jnp.ones((1, 8)),
    "prompt_tokens": jnp.ones((3, 8)),
    "blocks": {"qkv": {"kernel": jnp.ones((3, 8, 24)), "bias": jnp.ones((3, 24))}},
    "norm": {"scale": jnp.ones(8)},
  },
  "decoder": {"blocks": {"qkv": {"kernel": jnp.ones((2, 8, 24))}}},
  "contrast": {"log_temperature": jnp.ones(())},
}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_early_layers_of_the_encoder_take_smaller_steps_with_either_optimizer(name):
  rng = np.random.default_rng(0)
  grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), ENCODER)
  options = dict(name=name, peak_lr=0.5, warmup_steps=0, total_steps=10, weight_decay=0.1)
  plain, slowed = (make_optimizer(**options, layer_decay=decay) for decay in (None, 0.5))
  one, other = (
    dict(sharding.tree_paths(jax.jit(o.update)(grads, o.init(ENCODER), ENCODER)[0])) for o in (plain, slowed)
  )
  expected = {  # three blocks
    "patch_embedding/kernel": 0.5**4,
    "patch_embedding/bias": 0.5**4,
    "position": 0.5**4,
    "class_token": 0.5**4,
    "prompt_tokens": 1.0,
    "blocks/qkv/kernel": np.reshape([0.125, 0.25, 0.5], (3, 1, 1)),
    "blocks/qkv/bias": np.reshape([0.125, 0.25, 0.5], (3, 1)),
    "norm/scale": 1.0,
  }
  for path, update in one.items():
    factor = expected[path.removeprefix("visual_encoder/")] if path.startswith("visual_encoder/") else 1.0
    assert np.abs(update).min() > 0
    np.testing.assert_allclose(other[path], factor * update, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize("decay", [0.0, 1.5, -1.0])
def test_a_layer_decay_outside_its_range_is_refused(decay):
  with pytest.raises(InputError, match="layer_decay"):
    make_optimizer(peak_lr=1.0, warmup_steps=0, total_steps=10, layer_decay=decay)
