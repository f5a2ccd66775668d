"""AdamW with linear warm-up, cosine decay to a floor, a decay mask by leaf name and clipping by the global norm."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from synclipmae_jax import sharding
from synclipmae_jax.types import InputError, Params

# Only matrices decay. The name decides, not the rank: blocks are stacked, so their biases and norm scales are 2-D.
# Biases, scales, prompt and mask tokens, position embeddings and `log_temperature` therefore never decay.
DECAYED = re.compile(r"(^|/)(\w+_)?kernel$|(^|/)embedding$")


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """An optax transformation together with the schedule that drives it, so that the step can report the rate."""

  init: Callable[[Params], Any]
  update: Callable[..., tuple[Params, Any]]
  schedule: Callable[[Any], Any]  # step (updates applied so far) -> learning rate of the next update


def make_schedule(*, peak_lr: float, warmup_steps: int, total_steps: int, floor_lr: float = 0.0):
  """Learning rate of the update that follows `step` updates.

  Rises linearly to `peak_lr` at the end of the warm-up (the first update already moves), then falls along a half
  cosine to `floor_lr` at `total_steps` and stays there.
  """
  if not 0 <= warmup_steps <= total_steps:
    raise InputError(f"warmup_steps ({warmup_steps}) must lie between 0 and total_steps ({total_steps})")

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    progress = jnp.clip((step - warmup_steps) / max(total_steps - warmup_steps, 1), 0.0, 1.0)
    cosine = floor_lr + (peak_lr - floor_lr) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return jnp.where(step < warmup_steps, peak_lr * (step + 1) / max(warmup_steps, 1), cosine)

  return schedule


def decay_mask(params: Params) -> Params:
  """True for every leaf whose name says that it is a matrix (see DECAYED)."""
  decayed = [bool(DECAYED.search(path)) for path, _ in sharding.tree_paths(params)]
  return jax.tree.unflatten(jax.tree.structure(params), decayed)


def make_optimizer(
  *,
  peak_lr: float,
  warmup_steps: int,
  total_steps: int,
  floor_lr: float = 0.0,
  weight_decay: float = 0.05,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  clip_norm: float | None = 1.0,
) -> Optimizer:
  """AdamW. `clip_norm` bounds the global norm of the averaged float32 gradient (None: no clipping)."""
  schedule = make_schedule(peak_lr=peak_lr, warmup_steps=warmup_steps, total_steps=total_steps, floor_lr=floor_lr)
  chain = optax.chain(
    optax.clip_by_global_norm(clip_norm) if clip_norm is not None else optax.identity(),
    optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
    optax.add_decayed_weights(weight_decay, mask=decay_mask),
    optax.scale_by_learning_rate(schedule),
  )
  return Optimizer(init=chain.init, update=chain.update, schedule=schedule)
