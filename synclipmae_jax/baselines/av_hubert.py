"""The encoder of AV-HuBERT (Shi et al. 2022; facebookresearch/av_hubert): features of lips and of sound -> states.

The features of both sides, each brought to the width of the encoder, lie side by side; a side that is not given is
zero. Then come a convolution for the places, pre-LN blocks and a LayerNorm, as in wav2vec 2.0.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from synclipmae_jax.models.layers import EncoderBlock, LayerNorm, Linear, gelu, scan_blocks, stack_blocks
from synclipmae_jax.types import InputError

EPSILON = 1e-5  # of all layer norms of fairseq
SOUND = 104  # features of a frame: four times 26 log-mel energies


class AvHubert(nnx.Module):
  """Features of lips [B, T, in_features] (`LipResNet`), of sound [B, T, sound], or of both -> states [B, T, width].

  All clips of a batch are of one length. Raises InputError without features.
  """

  def __init__(
    self,
    *,
    in_features: int,
    width: int,
    depth: int,
    heads: int,
    mlp_width: int,
    sound: int = SOUND,
    pos_kernel: int = 128,
    pos_groups: int = 16,
    rngs: nnx.Rngs,
  ):
    self.width = width
    dense = lambda size, out: Linear(size, out, compute_dtype=jnp.float32, rngs=rngs)
    norm = lambda size: LayerNorm(size, epsilon=EPSILON, rngs=rngs)
    self.lips, self.sound = dense(in_features, width), dense(sound, width)
    self.norm_features, self.projection = norm(2 * width), dense(2 * width, width)
    padding = [(pos_kernel // 2, (pos_kernel - 1) // 2)]
    self.positional_conv = nnx.Conv(
      width, width, pos_kernel, padding=padding, feature_group_count=pos_groups, rngs=rngs
    )
    self.blocks = stack_blocks(
      lambda rngs: EncoderBlock(width, heads, mlp_width, epsilon=EPSILON, compute_dtype=jnp.float32, rngs=rngs),
      depth,
      rngs,
    )
    self.norm = norm(width)

  def __call__(
    self, lips: Float[Array, "b t c"] | None = None, sound: Float[Array, "b t s"] | None = None
  ) -> Float[Array, "b t d"]:
    if lips is None and sound is None:
      raise InputError("AV-HuBERT needs features of lips, of sound, or of both")
    seen = None if lips is None else self.lips(lips)
    heard = None if sound is None else self.sound(sound)
    known = heard if seen is None else seen
    both = [jnp.zeros_like(known) if side is None else side for side in (heard, seen)]
    x = self.projection(self.norm_features(jnp.concatenate(both, axis=-1)))
    return self.norm(scan_blocks(self.blocks, x + gelu(self.positional_conv(x))))
