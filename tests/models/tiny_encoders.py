"""Tiny speech encoders and their input, for the tests of several modules."""

from __future__ import annotations

import math

import jax
import numpy as np
from flax import nnx

from synclipmae_jax.models.logmel import LogMel
from synclipmae_jax.models.wav2vec2 import Wav2Vec2
from synclipmae_jax.types import audio_context_samples

TINY = dict(width=32, depth=2, heads=4, mlp_width=48, conv_width=16, pos_kernel=16, pos_groups=4)


def drawn(make):
  """The module with all parameters random, biases and scales included. NumPy draws them, without compilation."""
  module = nnx.eval_shape(make)
  rng = np.random.default_rng(1)

  def draw(path, leaf):
    values = rng.standard_normal(leaf.shape, np.float32)
    match str(path[-2].key):
      case "kernel":
        fan_in = math.prod(leaf.shape[:-1]) / (leaf.shape[0] if "blocks" in str(path) else 1)
        return values / np.float32(math.sqrt(fan_in))
      case "scale":
        return 1 + values / 4
      case "bias":
        return values / 4

  nnx.update(module, jax.tree_util.tree_map_with_path(draw, nnx.state(module)))
  return module


def encoder_of(kind: str, **changes):
  """A tiny wav2vec 2.0 with alignment `kind`, or the log-mel front end."""
  if kind == "logmel":
    return LogMel(**changes)
  return drawn(lambda: Wav2Vec2(rngs=nnx.Rngs(0), alignment=kind, **(TINY | changes)))


def sound(frames: int, *, windows: int = 1, seed: int = 0) -> np.ndarray:
  shape = windows, audio_context_samples(frames)
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def compiled(function):
  """`function` under `jit`, with the parameters of its module as constants."""
  return jax.jit(lambda waveform: function(waveform))
