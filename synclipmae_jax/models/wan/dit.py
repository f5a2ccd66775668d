"""The Wan2.1 video diffusion transformer (Wan-Video/Wan2.1, wan/modules/model.py).

Latents are channels-last, [B, T, H, W, C]. A token is a patch of 1 x 2 x 2 latents; tokens are in the order (t, h, w).
The residual stream, modulation, norms, time embedding and head are float32; the other matmuls are `compute_dtype`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from synclipmae_jax.models import flops
from synclipmae_jax.models.layers import (
  CrossAttention,
  LayerNorm,
  Linear,
  SelfAttention,
  attend,
  rematerialise,
  stack_blocks,
)
from synclipmae_jax.sharding import constrain
from synclipmae_jax.types import InputError

PATCH = 2  # latent rows and latent columns per token; a token has one latent frame
EPSILON = 1e-6
Grid = tuple[int, int, int]  # tokens along time, rows, columns
Rope = tuple[Float[np.ndarray, "n half"], Float[np.ndarray, "n half"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditioning:
  """The inputs of every block other than its tokens."""

  grid: Grid
  time: Float[Array, "b d"]
  modulation: Float[Array, "b six d"]  # from the time embedding; each block adds its own parameters
  text: Float[Array, "b m d"]
  rope: Rope


@jax.named_scope("norm")
def standardise(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
  """LayerNorm without parameters, in float32 with the two-pass variance."""
  x = x.astype(jnp.float32)
  x = x - x.mean(axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + EPSILON)


def rope_table(grid: Grid, head_width: int) -> Rope:
  """Cosines and sines of the rotary angles, one row per token and one column per pair of channels.

  Of 128 channels, 44 encode time, 42 the row and 42 the column, each axis with its own frequencies.
  Raises ValueError for an odd `head_width`.
  """
  if head_width % 2:
    raise ValueError(f"rotary embedding requires an even number of channels per head, got {head_width}")
  side = 2 * (head_width // 6)
  positions = np.indices(grid).reshape(3, -1, 1)
  angles = np.concatenate(
    [
      position * 10000.0 ** -(np.arange(0, width, 2) / max(width, 1))
      for position, width in zip(positions, (head_width - 2 * side, side, side), strict=True)
    ],
    axis=-1,
  )
  return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(x: Float[Array, "b n d"], rope: Rope, *, heads: int) -> Float[Array, "b n d"]:
  """Rotates the channel pairs (0, 1), (2, 3), ... of each head by the angles of the tokens.

  The output has all first members of the pairs before all second members. Queries and keys have the same order, so
  their products do not change and the channels are not interleaved again.
  """
  cos, sin = (table[:, None] for table in rope)
  x = rearrange(x, "b n (h d two) -> two b n h d", h=heads, two=2)
  turned = jnp.concatenate([x[0] * cos - x[1] * sin, x[0] * sin + x[1] * cos], axis=-1)
  return rearrange(turned, "b n h d -> b n (h d)")


def sinusoid(t: Float[Array, " b"], features: int) -> Float[Array, "b f"]:
  """[cos | sin] of t in [0, 1000] times 10000^-(i / half), to float32 precision.

  A float32 product near 1000 has an error of 3e-5. The integer part of t is therefore multiplied by frequencies of 11
  bits, which is exact. The remainder of the angle, less than 1, is added by the addition theorem.
  """
  half = features // 2
  frequencies = 10000.0 ** -(np.arange(half) / half)
  coarse = frequencies.astype(np.float16).astype(np.float64)
  f32 = lambda x: x.astype(np.float32)
  t = t.astype(jnp.float32)[:, None]
  whole = jnp.round(t)
  exact = whole * f32(coarse)
  rest = whole * f32(frequencies - coarse) + (t - whole) * f32(frequencies)
  cos, sin, cos_rest, sin_rest = jnp.cos(exact), jnp.sin(exact), jnp.cos(rest), jnp.sin(rest)
  return jnp.concatenate([cos * cos_rest - sin * sin_rest, sin * cos_rest + cos * sin_rest], axis=-1)


def patchify(latents: Float[Array, "b t h w c"]) -> Float[Array, "b n p"]:
  """Latents -> tokens before their embedding. Raises InputError if height or width is odd."""
  if latents.shape[2] % PATCH or latents.shape[3] % PATCH:
    raise InputError(f"latents of {latents.shape[2]} x {latents.shape[3]} do not divide into patches of 2 x 2")
  return rearrange(latents, "b t (h p) (w q) c -> b (t h w) (p q c)", p=PATCH, q=PATCH)


class RotarySelfAttention(SelfAttention):
  """Self-attention. Queries and keys are RMS-normalised over the full width in float32, then rotated."""

  def __init__(self, width: int, heads: int, *, compute_dtype, rngs: nnx.Rngs):
    super().__init__(width, heads, compute_dtype=compute_dtype, rngs=rngs)
    self.norm_query = nnx.RMSNorm(width, epsilon=EPSILON, dtype=jnp.float32, rngs=rngs)
    self.norm_key = nnx.RMSNorm(width, epsilon=EPSILON, dtype=jnp.float32, rngs=rngs)

  @jax.named_scope("self_attention")
  def __call__(self, x: Float[Array, "b n d"], rope: Rope) -> Float[Array, "b n d"]:
    q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
    q = rotate(self.norm_query(q), rope, heads=self.heads).astype(v.dtype)
    k = rotate(self.norm_key(k), rope, heads=self.heads).astype(v.dtype)
    return self.out(attend(q, k, v, heads=self.heads))


class NormedCrossAttention(CrossAttention):
  """Cross-attention. Queries and keys are RMS-normalised over the full width in float32."""

  def __init__(self, width: int, heads: int, *, compute_dtype, rngs: nnx.Rngs):
    super().__init__(width, heads, compute_dtype=compute_dtype, rngs=rngs)
    self.norm_query = nnx.RMSNorm(width, epsilon=EPSILON, dtype=jnp.float32, rngs=rngs)
    self.norm_key = nnx.RMSNorm(width, epsilon=EPSILON, dtype=jnp.float32, rngs=rngs)

  @jax.named_scope("cross_attention")
  def __call__(self, x: Float[Array, "b n d"], context: Float[Array, "b m d"]) -> Float[Array, "b n d"]:
    k, v = jnp.split(self.key_value(context), 2, axis=-1)
    q, k = self.norm_query(self.query(x)).astype(v.dtype), self.norm_key(k).astype(v.dtype)
    return self.out(attend(q, k, v, heads=self.heads))


class Mlp(nnx.Module):
  """Linear, `activation`, Linear."""

  def __init__(
    self, in_features: int, hidden: int, out_features: int, activation: Callable, *, compute_dtype, rngs: nnx.Rngs
  ):
    self.activation = activation
    self.up = Linear(in_features, hidden, compute_dtype=compute_dtype, rngs=rngs)
    self.down = Linear(hidden, out_features, compute_dtype=compute_dtype, rngs=rngs)

  @jax.named_scope("mlp")
  def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b e"]:
    return self.down(self.activation(self.up(x)))


def tanh_gelu(x: Array) -> Array:
  return jax.nn.gelu(x, approximate=True)


class Block(nnx.Module):
  """Self-attention, cross-attention to the text, MLP. The time shifts, scales and gates the first and the last."""

  def __init__(self, width: int, heads: int, mlp_width: int, *, compute_dtype, rngs: nnx.Rngs):
    self.modulation = nnx.Param(nnx.initializers.normal(width**-0.5)(rngs.params(), (6, width)))
    self.attention = RotarySelfAttention(width, heads, compute_dtype=compute_dtype, rngs=rngs)
    self.norm_cross = LayerNorm(width, epsilon=EPSILON, rngs=rngs)
    self.cross = NormedCrossAttention(width, heads, compute_dtype=compute_dtype, rngs=rngs)
    self.mlp = Mlp(width, mlp_width, width, tanh_gelu, compute_dtype=compute_dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "b n d"], conditioning: Conditioning) -> Float[Array, "b n d"]:
    x = constrain(x)
    modulation = (conditioning.modulation + self.modulation[...])[:, :, None]
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (modulation[:, i] for i in range(6))
    x = x + gate * self.attention(standardise(x) * (1 + scale) + shift, conditioning.rope)
    x = x + self.cross(self.norm_cross(x), conditioning.text)
    return x + mlp_gate * self.mlp(standardise(x) * (1 + mlp_scale) + mlp_shift)


def block_flops(tokens: int, text: int, width: int, mlp_width: int) -> int:
  """Forward FLOPs of one block on one sequence."""
  cross = flops.dense(tokens + text, width, 2 * width) + flops.attention(tokens, text, width)
  return flops.transformer_block(tokens, width, mlp_width) + cross


class Head(nnx.Module):
  """Maps tokens to the latent values of their patches."""

  def __init__(self, width: int, out_features: int, *, rngs: nnx.Rngs):
    self.modulation = nnx.Param(nnx.initializers.normal(width**-0.5)(rngs.params(), (2, width)))
    self.projection = Linear(width, out_features, compute_dtype=jnp.float32, rngs=rngs)

  def __call__(self, x: Float[Array, "b n d"], time: Float[Array, "b d"]) -> Float[Array, "b n p"]:
    shift, scale = jnp.split(self.modulation[...] + time[:, None], 2, axis=1)
    with jax.default_matmul_precision("highest"):
      return self.projection(standardise(x) * (1 + scale) + shift)


class Dit(nnx.Module):
  """The backbone. The defaults are Wan2.1-1.3B; parameters are float32.

  `vace.wan_vace` calls `embed` and `condition`, then `transform` with the hints of the VACE blocks, then `predict`.
  """

  def __init__(
    self,
    *,
    width: int = 1536,
    depth: int = 30,
    heads: int = 12,
    mlp_width: int = 8960,
    text_width: int = 4096,
    text_length: int = 512,
    time_features: int = 256,
    in_channels: int = 16,
    out_channels: int = 16,
    compute_dtype=jnp.float32,
    unroll: bool | int = 1,
    remat: str = "none",
    rngs: nnx.Rngs,
  ):
    self.width, self.depth, self.heads, self.mlp_width = width, depth, heads, mlp_width
    self.text_width, self.text_length, self.time_features = text_width, text_length, time_features
    self.in_channels, self.out_channels = in_channels, out_channels
    self.unroll, self.remat = unroll, remat
    self.patch_embedding = Linear(PATCH**2 * in_channels, width, compute_dtype=compute_dtype, rngs=rngs)
    self.text_embedding = Mlp(text_width, width, width, tanh_gelu, compute_dtype=compute_dtype, rngs=rngs)
    self.time_embedding = Mlp(time_features, width, width, jax.nn.silu, compute_dtype=jnp.float32, rngs=rngs)
    self.time_projection = Linear(width, 6 * width, compute_dtype=jnp.float32, rngs=rngs)
    self.blocks = stack_blocks(
      lambda r: Block(width, heads, mlp_width, compute_dtype=compute_dtype, rngs=r), depth, rngs
    )
    self.head = Head(width, PATCH**2 * out_channels, rngs=rngs)

  @jax.named_scope("dit")
  def embed(self, latents: Float[Array, "b t h w c"]) -> Float[Array, "b n d"]:
    """Noisy latents -> tokens, float32. Raises InputError if height or width is odd."""
    return self.patch_embedding(patchify(latents)).astype(jnp.float32)

  @jax.named_scope("dit")
  def condition(self, t: Float[Array, " b"], text: Float[Array, "b m d"], *, grid: Grid) -> Conditioning:
    """Conditioning of time t in [0, 1000] (noise level times 1000) and umT5 embeddings without padding.

    The text is padded with zeros to `text_length` and attention includes the padding, as in the training of the model;
    without the padding the output changes by 2 %. Raises InputError for a longer text.
    """
    missing = self.text_length - text.shape[1]
    if missing < 0:
      raise InputError(f"a text of {text.shape[1]} tokens does not fit into {self.text_length}")
    text = jnp.pad(text, ((0, 0), (0, missing), (0, 0)))
    with jax.default_matmul_precision("highest"):
      time = self.time_embedding(sinusoid(t, self.time_features))
      modulation = self.time_projection(jax.nn.silu(time))
    return Conditioning(
      grid=grid,
      time=time,
      modulation=rearrange(modulation, "b (six d) -> b six d", six=6),
      text=self.text_embedding(text),
      rope=rope_table(grid, self.width // self.heads),
    )

  @jax.named_scope("dit")
  def transform(
    self, x: Float[Array, "b n d"], conditioning: Conditioning, hints: Float[Array, "v b n d"], *, stride: int
  ) -> Float[Array, "b n d"]:
    """Applies all blocks and adds hint i after block i * stride.

    The scan runs over whole groups of `stride` blocks with one hint each. A shorter last group follows the scan.
    Raises ValueError for another number of hints.
    """
    graph, leaves = nnx.split(self.blocks)
    block = rematerialise(lambda x, leaves: nnx.merge(graph, leaves)(x, conditioning), self.remat)
    at = lambda leaves, index: jax.tree.map(lambda leaf: leaf[index], leaves)

    def group(x, inputs):
      leaves, hint = inputs
      for i in range(len(jax.tree.leaves(leaves)[0])):
        x = block(x, at(leaves, i))
        x = x + hint if i == 0 else x
      return x, None

    whole, rest = divmod(self.depth, stride)
    if len(hints) != whole + (rest > 0):
      raise ValueError(
        f"{self.depth} blocks take {whole + (rest > 0)} hints, one per {stride} blocks, not {len(hints)}"
      )
    grouped = jax.tree.map(lambda leaf: leaf[: whole * stride].reshape(whole, stride, *leaf.shape[1:]), leaves)
    if self.unroll is True:
      # Not a scan: its carry has a gradient everywhere, and here nothing that is trained precedes the first hint.
      for i in range(whole):
        x, _ = group(x, (at(grouped, i), hints[i]))
    else:
      x, _ = jax.lax.scan(group, x, (grouped, hints[:whole]), unroll=self.unroll)
    if rest:
      x, _ = group(x, (at(leaves, slice(whole * stride, None)), hints[-1]))
    return x

  @jax.named_scope("dit")
  def predict(self, x: Float[Array, "b n d"], conditioning: Conditioning) -> Float[Array, "b t h w c"]:
    """Tokens -> the velocity (noise minus clean latents), float32."""
    t, h, w = conditioning.grid
    patches = self.head(x, conditioning.time)
    return rearrange(patches, "b (t h w) (p q c) -> b t (h p) (w q) c", t=t, h=h, w=w, p=PATCH, q=PATCH)

  def flops(self, tokens: int) -> int:
    """Forward FLOPs of one sample of `tokens` tokens."""
    ends = flops.dense(tokens, self.width, PATCH**2 * (self.in_channels + self.out_channels))
    text = flops.dense(self.text_length, self.text_width + self.width, self.width)
    time = flops.dense(1, self.time_features + 7 * self.width, self.width)
    return ends + text + time + self.depth * block_flops(tokens, self.text_length, self.width, self.mlp_width)
