from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synclipmae_jax.train.optim import decay_mask, make_optimizer, make_schedule
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
  moment = state[1].mu  # with b1 = 0 the first moment is the clipped gradient itself
  np.testing.assert_allclose(moment["a"]["bias"], [0.6, 0.0, 0.0], rtol=1e-5)
  np.testing.assert_allclose(moment["b"]["bias"], [0.8], rtol=1e-5)
