"""VACE: blocks beside the Wan backbone that compute hints for it from a masked video and references.

Source: ali-vilab/VACE and Wan-Video/Wan2.1, wan/modules/vace_model.py. `Vace` is a separate module, so that it can be
trained while the backbone stays frozen.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from synclipmae_jax.models import flops
from synclipmae_jax.models.layers import Linear, rematerialise, stack_blocks
from synclipmae_jax.models.wan.dit import PATCH, Block, Conditioning, Dit, block_flops, patchify
from synclipmae_jax.sharding import constrain
from synclipmae_jax.types import InputError


class ZeroLinear(Linear):
  """Dense layer initialised to zero, so that what ends in it changes nothing before it is trained."""

  def __init__(self, in_features: int, out_features: int, *, compute_dtype, rngs: nnx.Rngs):
    super().__init__(in_features, out_features, compute_dtype=compute_dtype, rngs=rngs)
    self.kernel[...] = jnp.zeros_like(self.kernel[...])


class VaceBlock(Block):
  """A block of the backbone with a projection of its output to a hint."""

  def __init__(self, width: int, heads: int, mlp_width: int, *, compute_dtype, rngs: nnx.Rngs):
    super().__init__(width, heads, mlp_width, compute_dtype=compute_dtype, rngs=rngs)
    self.after_projection = ZeroLinear(width, width, compute_dtype=compute_dtype, rngs=rngs)


class Vace(nnx.Module):
  """Hints for blocks 0, `stride`, 2 * `stride`, ... of the backbone. The defaults are VACE-1.3B (15 of 30 blocks).

  The context has 96 channels: 16 latent channels of the region to keep, 16 of the region to generate, and 64 of the
  mask (8 x 8 pixels to channels).
  """

  def __init__(
    self,
    *,
    width: int = 1536,
    depth: int = 15,
    stride: int = 2,
    heads: int = 12,
    mlp_width: int = 8960,
    context_channels: int = 96,
    compute_dtype=jnp.float32,
    unroll: bool | int = 1,
    remat: str = "none",
    rngs: nnx.Rngs,
  ):
    self.width, self.depth, self.stride, self.mlp_width = width, depth, stride, mlp_width
    self.context_channels = context_channels
    self.unroll, self.remat = unroll, remat
    self.patch_embedding = Linear(PATCH**2 * context_channels, width, compute_dtype=compute_dtype, rngs=rngs)
    self.before_projection = ZeroLinear(width, width, compute_dtype=compute_dtype, rngs=rngs)
    self.blocks = stack_blocks(
      lambda r: VaceBlock(width, heads, mlp_width, compute_dtype=compute_dtype, rngs=r), depth, rngs
    )

  @jax.named_scope("vace")
  def __call__(
    self,
    x: Float[Array, "b n d"],
    context_latents: Float[Array, "b t h w c"],
    conditioning: Conditioning,
    *,
    scale: float | Float[Array, " v"] = 1.0,
    addition: Array | None = None,
  ) -> Float[Array, "v b n d"]:
    """One hint per VACE block, times `scale` (one value for all, or one per block).

    `x` are the embedded tokens of the backbone before its first block. `addition` (broadcastable to [B, N, D]) is added
    to the embedded context tokens. Raises InputError if the context and `x` have different numbers of tokens.
    """
    context = self.patch_embedding(patchify(context_latents)).astype(jnp.float32)
    if context.shape != x.shape:
      raise InputError(f"the context has {context.shape[:2]} tokens (batch, tokens), the latents have {x.shape[:2]}")
    if addition is not None:
      context = context + addition
    context = self.before_projection(context) + x
    graph, leaves = nnx.split(self.blocks)

    def body(context, inputs):
      leaves, scale = inputs
      block = nnx.merge(graph, leaves)
      context = block(context, conditioning)
      hint = block.after_projection(context)
      return context, constrain(hint * scale.astype(hint.dtype))

    scales = jnp.broadcast_to(jnp.asarray(scale, jnp.float32), self.depth)
    return jax.lax.scan(rematerialise(body, self.remat), context, (leaves, scales), unroll=self.unroll)[1]

  def flops(self, tokens: int, *, text_length: int = 512) -> int:
    """Forward FLOPs of one sample of `tokens` tokens."""
    projections = flops.dense(tokens, self.width, (self.depth + 1) * self.width)
    blocks = self.depth * block_flops(tokens, text_length, self.width, self.mlp_width)
    return flops.dense(tokens, PATCH**2 * self.context_channels, self.width) + projections + blocks


def wan_vace(
  dit: Dit,
  vace: Vace,
  latents: Float[Array, "b t h w c"],
  context_latents: Float[Array, "b t2 h2 w2 c2"],
  text: Float[Array, "b m d"],
  t: Float[Array, " b"],
  *,
  scale: float | Float[Array, " v"] = 1.0,
  addition: Array | None = None,
) -> Float[Array, "b t h w o"]:
  """The velocity (noise minus clean latents) that Wan2.1-VACE predicts, float32, channels-last.

  Args: `t` in [0, 1000]; `text` at most `dit.text_length` embeddings, unpadded or padded with zeros; `scale` and
  `addition` as for `Vace`. Raises InputError for latents of odd height or width, for a context on another grid, and for
  a longer text.
  """
  _, frames, rows, columns, _ = latents.shape
  x = dit.embed(latents)
  conditioning = dit.condition(t, text, grid=(frames, rows // PATCH, columns // PATCH))
  hints = vace(x, context_latents, conditioning, scale=scale, addition=addition)
  return dit.predict(dit.transform(x, conditioning, hints, stride=vace.stride), conditioning)
