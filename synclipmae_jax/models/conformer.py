"""Conformer encoder (Gulati et al. 2020) in the form of Auto-AVSR: tokens of frames -> states for CTC and decoder.

A block is x + FF(x)/2, x + attention(x) with relative positions, x + convolution(x), x + FF(x)/2, LayerNorm; every
part normalises its own input.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from synclipmae_jax.models import flops
from synclipmae_jax.models.layers import LayerNorm, Linear, rematerialise, stack_blocks
from synclipmae_jax.models.sequence import NO_DROPOUT, Dropout, FeedForward, RelativeAttention, distances, valid_frames
from synclipmae_jax.sharding import constrain
from synclipmae_jax.types import InputError

# `auto_avsr` is the encoder of mpc001/auto_avsr (170 M parameters). The others are ours.
SIZES = {
  "auto_avsr": dict(width=768, depth=12, heads=12, mlp_width=3072, kernel=31),
  "base": dict(width=256, depth=12, heads=4, mlp_width=1024, kernel=31),
  "small": dict(width=144, depth=4, heads=4, mlp_width=576, kernel=15),
  "tiny": dict(width=16, depth=2, heads=2, mlp_width=32, kernel=3),  # tests
}
NORMS = ("layer", "batch")
Norm = Literal["layer", "batch"]


class RunningNorm(nnx.Module):
  """Batch norm with fixed statistics, which are parameters. Only converted checkpoints have them."""

  def __init__(self, width: int, *, epsilon: float = 1e-5):
    self.epsilon = epsilon
    self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))
    self.mean, self.var = nnx.Param(jnp.zeros(width)), nnx.Param(jnp.ones(width))

  def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    mean, var = map(jax.lax.stop_gradient, (self.mean[...], self.var[...]))
    y = (x.astype(jnp.float32) - mean) * (self.scale * jax.lax.rsqrt(var + self.epsilon)) + self.bias
    return y.astype(x.dtype)


class DepthwiseConv(nnx.Module):
  """One filter over time for each channel, with zeros beyond both ends.

  In float32, the dtype of CPU runs, it is a sum over the taps: XLA's grouped convolution takes seven times as long
  there, forward and backward.
  """

  def __init__(self, width: int, kernel: int, *, compute_dtype, rngs: nnx.Rngs):
    if kernel % 2 == 0:
      raise ValueError(f"the kernel of a Conformer has an odd number of taps, not {kernel}")
    bound = kernel**-0.5  # of torch's Conv1d
    self.kernel = nnx.Param(jax.random.uniform(rngs.params(), (kernel, width), jnp.float32, -bound, bound))
    self.bias = nnx.Param(jnp.zeros(width))
    self.compute_dtype = compute_dtype

  def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
    kernel, bias = (p[...].astype(self.compute_dtype) for p in (self.kernel, self.bias))
    taps, frames = len(kernel), x.shape[1]
    if jnp.dtype(self.compute_dtype) != jnp.float32:
      y = jax.lax.conv_general_dilated(
        x, kernel[:, None], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=x.shape[-1]
      )
      return y + bias
    padded = jnp.pad(x, ((0, 0), (taps // 2, taps // 2), (0, 0)))

    @jax.checkpoint  # the slices are not kept for the gradient
    def add(y, tap):
      place, weight = tap
      return y + jax.lax.dynamic_slice_in_dim(padded, place, frames, axis=1) * weight, None

    return jax.lax.scan(add, jnp.broadcast_to(bias, x.shape), (jnp.arange(taps), kernel))[0]


class Convolution(nnx.Module):
  """Pointwise, GLU, depthwise, norm, SiLU, pointwise. Frames beyond the end are zero for the depthwise filter."""

  def __init__(self, width: int, kernel: int, *, norm: Norm, epsilon: float, compute_dtype, rngs: nnx.Rngs):
    if norm not in NORMS:
      raise InputError(f"unknown norm {norm!r} of the Conformer's convolution: {' or '.join(NORMS)}")
    self.gate = Linear(width, 2 * width, compute_dtype=compute_dtype, rngs=rngs)
    self.depthwise = DepthwiseConv(width, kernel, compute_dtype=compute_dtype, rngs=rngs)
    if norm == "layer":
      self.norm = LayerNorm(width, epsilon=epsilon, compute_dtype=compute_dtype, rngs=rngs)
    else:
      self.norm = RunningNorm(width)
    self.out = Linear(width, width, compute_dtype=compute_dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "b t d"], valid: Bool[Array, "b t"]) -> Float[Array, "b t d"]:
    value, gate = jnp.split(self.gate(x), 2, axis=-1)
    x = jnp.where(valid[..., None], value * jax.nn.sigmoid(gate), 0)
    return self.out(jax.nn.silu(self.norm(self.depthwise(x))))


class ConformerBlock(nnx.Module):
  """One block; see the head of this file."""

  def __init__(
    self, width: int, heads: int, mlp_width: int, kernel: int, *, norm: Norm, epsilon: float, compute_dtype,
    rngs: nnx.Rngs,
  ):  # fmt: skip
    new_norm = lambda: LayerNorm(width, epsilon=epsilon, compute_dtype=compute_dtype, rngs=rngs)
    self.norm_macaron = new_norm()
    self.macaron = FeedForward(width, mlp_width, compute_dtype=compute_dtype, rngs=rngs)
    self.norm_attention = new_norm()
    self.attention = RelativeAttention(width, heads, compute_dtype=compute_dtype, rngs=rngs)
    self.norm_conv = new_norm()
    self.conv = Convolution(width, kernel, norm=norm, epsilon=epsilon, compute_dtype=compute_dtype, rngs=rngs)
    self.norm_mlp = new_norm()
    self.mlp = FeedForward(width, mlp_width, compute_dtype=compute_dtype, rngs=rngs)
    self.norm_out = new_norm()

  def __call__(
    self, x: Float[Array, "b t d"], valid: Bool[Array, "b t"], positions: Float[Array, "p d"], dropout: Dropout
  ) -> Float[Array, "b t d"]:
    x = constrain(x)
    x = x + 0.5 * dropout.at(0)(self.macaron(self.norm_macaron(x), dropout.at(1)))
    x = x + dropout.at(2)(self.attention(self.norm_attention(x), positions, valid[:, None]))
    x = x + dropout.at(3)(self.conv(self.norm_conv(x), valid))
    x = x + 0.5 * dropout.at(4)(self.mlp(self.norm_mlp(x), dropout.at(5)))
    return self.norm_out(x)


class Conformer(nnx.Module):
  """Tokens [B, T, C] of `lengths` frames -> states [B, T, D]. States beyond the length of an example mean nothing.

  A valid state depends on valid tokens only. `norm="batch"` and `epsilon=1e-12` are those of converted checkpoints.
  """

  def __init__(
    self,
    in_features: int,
    *,
    width: int,
    depth: int,
    heads: int,
    mlp_width: int,
    kernel: int,
    norm: Norm = "layer",
    epsilon: float = 1e-6,
    compute_dtype=jnp.float32,
    unroll: int | bool = 1,
    remat: str = "none",
    rngs: nnx.Rngs,
  ):
    self.in_features, self.width, self.depth, self.mlp_width, self.kernel = in_features, width, depth, mlp_width, kernel
    self.unroll, self.remat = unroll, remat
    self.projection = Linear(in_features, width, compute_dtype=compute_dtype, rngs=rngs)
    make = lambda rngs: ConformerBlock(
      width, heads, mlp_width, kernel, norm=norm, epsilon=epsilon, compute_dtype=compute_dtype, rngs=rngs
    )
    self.blocks = stack_blocks(make, depth, rngs) if depth else None  # without blocks it is a linear probe
    self.norm = LayerNorm(width, epsilon=epsilon, compute_dtype=compute_dtype, rngs=rngs)

  def __call__(
    self, tokens: Float[Array, "b t c"], lengths: Int[Array, " b"], dropout: Dropout = NO_DROPOUT
  ) -> Float[Array, "b t d"]:
    frames = tokens.shape[1]
    x = dropout.at(self.depth)(self.projection(tokens) * math.sqrt(self.width))
    if self.blocks is None:
      return self.norm(x)
    valid, positions = valid_frames(lengths, frames), jnp.asarray(distances(frames, self.width))
    graph, leaves = nnx.split(self.blocks)

    def block(x, inputs):
      leaves, number = inputs
      return nnx.merge(graph, leaves)(x, valid, positions, dropout.at(number)), None

    x, _ = jax.lax.scan(rematerialise(block, self.remat), x, (leaves, jnp.arange(self.depth)), unroll=self.unroll)
    return self.norm(x)

  def flops(self, frames: int) -> int:
    """Forward FLOPs of one example of `frames` frames."""
    d = self.width
    feed_forward = 4 * flops.dense(frames, d, self.mlp_width)
    attention = flops.dense(frames, d, 4 * d) + flops.attention(frames, frames, d)
    by_distance = flops.dense(2 * frames - 1, d, d) + flops.dense(frames, d, 2 * frames - 1)
    convolution = flops.dense(frames, d, 3 * d) + flops.dense(frames, self.kernel, d)
    block = feed_forward + attention + by_distance + convolution
    return flops.dense(frames, self.in_features, d) + self.depth * block
