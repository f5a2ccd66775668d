"""AdamW or Muon: linear warm-up, cosine decay to a floor, a decay mask by leaf name, clipping by the global norm,
smaller rates for the early layers of a pretrained encoder."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from synclipmae_jax import sharding
from synclipmae_jax.types import InputError, Params

OPTIMIZERS = ("adamw", "muon")
MATCHED_RMS = 0.2  # RMS of Muon's updates, near that of AdamW, so that the same rates and decay suit both

# Only matrices decay. They are selected by name, not by rank: blocks are stacked, so their biases and norm scales are
# 2-D. Biases, scales, prompt and mask tokens, position embeddings and `log_temperature` never decay.
DECAYED = re.compile(r"(^|/)(\w+_)?kernel$|(^|/)embedding$")
# The item whose layers `layer_decay` slows, and of its parameters those that are new: no donor has them.
LAYERED, NEW = "visual_encoder", "prompt_tokens"


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """An optax transformation and its schedule; the step reports the learning rate."""

  init: Callable[[Params], Any]
  update: Callable[..., tuple[Params, Any]]
  schedule: Callable[[Any], Any]  # step (updates applied so far) -> learning rate of the next update


def make_schedule(*, peak_lr: float, warmup_steps: int, total_steps: int, floor_lr: float = 0.0):
  """Learning rate of the update that follows `step` updates.

  It rises linearly to `peak_lr` at the end of the warm-up (the rate of the first update is not 0), then falls along a
  half cosine to `floor_lr` at `total_steps` and stays there. Raises InputError for a warm-up longer than the run.
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
  """True for every leaf whose name marks it as a matrix (see DECAYED)."""
  decayed = [bool(DECAYED.search(path)) for path, _ in sharding.tree_paths(params)]
  return jax.tree.unflatten(jax.tree.structure(params), decayed)


def layer_rates(params: Params, decay: float) -> Params:
  """Factors of the learning rate, by leaf: `decay` ** (blocks above) in the visual encoder, 1 elsewhere.

  As in the fine-tuning of BEiT and MAE, of D blocks block i has decay ** (D - i), i from 0, what is before the blocks
  decay ** (D + 1), the last norm 1. Blocks are stacked: their factors vary along the first axis. The prompt tokens are
  new and take the full rate.
  """
  paths = dict(sharding.tree_paths(params))
  depth = next((len(leaf) for path, leaf in paths.items() if path.startswith(f"{LAYERED}/blocks/")), 0)

  def rate(path: str, leaf) -> Any:
    item, _, name = path.partition("/")
    if item != LAYERED or name == NEW or name.startswith("norm/"):
      return 1.0
    if name.startswith("blocks/"):
      return (decay ** np.arange(depth, 0, -1)).astype(np.float32).reshape(depth, *[1] * (leaf.ndim - 1))
    return decay ** (depth + 1)

  return jax.tree.unflatten(jax.tree.structure(params), [rate(path, leaf) for path, leaf in paths.items()])


def make_optimizer(
  *,
  name: str = "adamw",
  peak_lr: float,
  warmup_steps: int,
  total_steps: int,
  floor_lr: float = 0.0,
  weight_decay: float = 0.05,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  clip_norm: float | None = 1.0,
  layer_decay: float | None = None,
) -> Optimizer:
  """One of OPTIMIZERS. `clip_norm` bounds the global norm of the averaged float32 gradient (None: no clipping).
  `layer_decay`, in (0, 1], slows the early layers of the visual encoder (`layer_rates`; None: one rate for all).

  Muon (Jordan et al. 2024, with the update size and the decay of Liu et al. 2025, arXiv 2502.16982) orthogonalises the
  momentum of every matrix; Adam updates all other leaves. Decoupled decay, schedule and clipping are the same.
  """
  if name not in OPTIMIZERS:
    raise InputError(f"unknown optimizer {name!r}: one of {', '.join(OPTIMIZERS)}")
  if layer_decay is not None and not 0 < layer_decay <= 1:
    raise InputError(f"layer_decay must lie in (0, 1], not {layer_decay}")
  adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
  schedule = make_schedule(peak_lr=peak_lr, warmup_steps=warmup_steps, total_steps=total_steps, floor_lr=floor_lr)
  chain = optax.chain(
    optax.clip_by_global_norm(clip_norm) if clip_norm is not None else optax.identity(),
    adam if name == "adamw" else _muon_beside(adam),
    optax.add_decayed_weights(weight_decay, mask=decay_mask),
    optax.scale_by_learning_rate(schedule),
    *([] if layer_decay is None else [optax.stateless(functools.partial(_slow_layers, decay=layer_decay))]),
  )
  return Optimizer(init=chain.init, update=chain.update, schedule=schedule)


def _slow_layers(updates: Params, params: Params | None, *, decay: float) -> Params:
  return jax.tree.map(lambda update, rate: update * rate, updates, layer_rates(updates, decay))


def _muon_beside(rest: optax.GradientTransformation) -> optax.GradientTransformation:
  """Muon for the leaves that decay (the matrices) and `rest` for the others."""
  # The last two axes are the matrix. The axes before them are a stack's depth or a convolution's taps.
  axes = lambda tree: jax.tree.map(lambda x: contrib.MuonDimensionNumbers(x.ndim - 2, x.ndim - 1), tree)
  rescale = lambda x: x * (MATCHED_RMS * max(x.shape[-2:]) ** 0.5)  # the RMS of an orthogonal matrix is max ** -0.5
  muon = optax.chain(
    contrib.scale_by_muon(weight_dimension_numbers=axes),
    optax.stateless(lambda updates, _: jax.tree.map(rescale, updates)),
  )
  labels = lambda params: jax.tree.map(lambda matrix: "matrices" if matrix else "rest", decay_mask(params))
  return optax.partition({"matrices": muon, "rest": rest}, labels)
