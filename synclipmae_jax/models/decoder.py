"""MAE-style decoder whose blocks cross-attend to the prompt tokens.

Source: paper section 3.2, "Decoder with Prompt Cross-Attention". The rest is the decoder of ViTMAE-B (8 blocks,
width 512, 16 heads).

A block is self-attention over all N patch tokens, cross-attention to (identity, ambient, conditioning), and an MLP. The
video-driven and the audio-driven pass differ in the conditioning token only, so everything before the first
cross-attention is the same in both. The first self-attention is therefore computed once, and the scan runs over
(cross-attention, MLP, next self-attention).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Float, Int

from synclipmae_jax.models import flops
from synclipmae_jax.models.layers import (
  CrossAttention,
  LayerNorm,
  Linear,
  Mlp,
  SelfAttention,
  rematerialise,
  stack_blocks,
)
from synclipmae_jax.models.position import sincos_position
from synclipmae_jax.sharding import constrain


class PatchAttention(nnx.Module):
  """Residual pre-LN self-attention. Optional `context` tokens are added to the sequence for this layer only."""

  def __init__(self, width: int, heads: int, *, compute_dtype, rngs: nnx.Rngs):
    self.norm = LayerNorm(width, compute_dtype=compute_dtype, rngs=rngs)
    self.attention = SelfAttention(width, heads, compute_dtype=compute_dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "b n d"], context: Float[Array, "b m d"] | None = None) -> Float[Array, "b n d"]:
    x = constrain(x)
    if context is None:
      return x + self.attention(self.norm(x))
    joined = jnp.concatenate([context, x], axis=1)
    return x + self.attention(self.norm(joined))[:, context.shape[1] :]


class PromptedMlp(nnx.Module):
  """Residual pre-LN cross-attention to the prompts (absent in ablation C1), then the residual pre-LN MLP."""

  def __init__(self, width: int, heads: int, mlp_width: int, *, cross: bool, compute_dtype, rngs: nnx.Rngs):
    self.norm_cross = LayerNorm(width, compute_dtype=compute_dtype, rngs=rngs) if cross else None
    self.cross = CrossAttention(width, heads, compute_dtype=compute_dtype, rngs=rngs) if cross else None
    self.norm_mlp = LayerNorm(width, compute_dtype=compute_dtype, rngs=rngs)
    self.mlp = Mlp(width, mlp_width, compute_dtype=compute_dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "b n d"], prompts: Float[Array, "b m d"]) -> Float[Array, "b n d"]:
    x = constrain(x)
    if self.cross is not None:
      x = x + self.cross(self.norm_cross(x), prompts)
    return x + self.mlp(self.norm_mlp(x))


class DecoderBlock(nnx.Module):
  """The two halves of a block. They are separate because the scan starts between them."""

  def __init__(self, width: int, heads: int, mlp_width: int, *, cross: bool, compute_dtype, rngs: nnx.Rngs):
    self.patch_attention = PatchAttention(width, heads, compute_dtype=compute_dtype, rngs=rngs)
    self.prompted_mlp = PromptedMlp(width, heads, mlp_width, cross=cross, compute_dtype=compute_dtype, rngs=rngs)


class Decoder(nnx.Module):
  """Reconstructs all N patches of a frame from its visible patch tokens and three prompts, once per conditioning token.

  `conditioning` is `cross_attention` (the paper) or `concatenate` (ablation C1: the prompts are concatenated to the
  tokens of every self-attention and there is no cross-attention). Raises ValueError for another value.
  """

  def __init__(
    self,
    *,
    grid: int,
    patch: int,
    token_width: int,
    width: int,
    depth: int,
    heads: int,
    mlp_width: int,
    conditioning: str = "cross_attention",
    compute_dtype=jnp.float32,
    unroll: bool | int = 1,
    remat: str = "none",
    rngs: nnx.Rngs,
  ):
    if conditioning not in ("cross_attention", "concatenate"):
      raise ValueError(f"unknown decoder conditioning {conditioning!r}: cross_attention or concatenate")
    self.concatenate = conditioning == "concatenate"
    self.patches = grid * grid
    self.patch = patch
    self.token_width, self.width, self.depth, self.mlp_width = token_width, width, depth, mlp_width
    self.compute_dtype = compute_dtype
    self.unroll = unroll
    self.remat = remat
    self.embed_patches = Linear(token_width, width, compute_dtype=compute_dtype, rngs=rngs)
    self.embed_prompts = Linear(token_width, width, compute_dtype=compute_dtype, rngs=rngs)
    self.mask_token = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (1, width)))
    self.position = nnx.Param(jnp.asarray(sincos_position(grid, width, rows_first=False)))
    self.blocks = stack_blocks(
      lambda r: DecoderBlock(width, heads, mlp_width, cross=not self.concatenate, compute_dtype=compute_dtype, rngs=r),
      depth,
      rngs,
    )
    self.norm = LayerNorm(width, compute_dtype=compute_dtype, rngs=rngs)
    self.to_pixels = Linear(width, patch * patch * 3, compute_dtype=compute_dtype, rngs=rngs)

  def restore(self, tokens: Float[Array, "b f k d"], indices: Int[Array, "b f k"]) -> Float[Array, "b f n d"]:
    """Puts visible tokens at their positions and the mask token elsewhere, then adds the positional table.

    The scatter is a product with a one-hot matrix. It is exact, and its gradient is a matmul instead of a scatter-add.
    """
    place = jax.nn.one_hot(indices, self.patches, dtype=tokens.dtype)
    masked = 1 - place.sum(axis=2)
    position = jax.lax.stop_gradient(self.position[...]).astype(tokens.dtype)
    mask_token = self.mask_token[...].astype(tokens.dtype)
    return jnp.einsum("bfkn,bfkd->bfnd", place, tokens) + masked[..., None] * mask_token + position

  @jax.named_scope("decoder")
  def __call__(
    self,
    patches: Float[Array, "b f k c"],
    indices: Int[Array, "b f k"],
    *,
    identity: Float[Array, "b f c"],
    ambient: Float[Array, "b f c"],
    conditioning: Float[Array, "b f q c"],
  ) -> Float[Array, "b f q n p"]:
    """Normalised pixels of every patch, float32, for each of the Q conditioning tokens (vocal | audio)."""
    clips, frames, passes = conditioning.shape[:3]
    x = self.restore(self.embed_patches(patches), indices)
    shared = repeat(jnp.stack([identity, ambient], axis=2), "b f m c -> b f q m c", q=passes)
    prompts = jnp.concatenate([shared, conditioning[:, :, :, None]], axis=3)
    prompts = self.embed_prompts(rearrange(prompts, "b f q m c -> (b f q) m c"))
    context = prompts if self.concatenate else None

    attention, attention_leaves = nnx.split(self.blocks.patch_attention)
    mlp, mlp_leaves = nnx.split(self.blocks.prompted_mlp)
    at = lambda leaves, index: jax.tree.map(lambda leaf: leaf[index], leaves)

    first = nnx.merge(attention, at(attention_leaves, 0))
    if self.concatenate:  # the context makes the passes differ from the first block on
      x = first(repeat(x, "b f n d -> (b f q) n d", q=passes), context)
    else:
      x = repeat(first(rearrange(x, "b f n d -> (b f) n d")), "bf n d -> (bf q) n d", q=passes)

    def body(x, leaves):
      mlp_leaf, attention_leaf = leaves
      x = nnx.merge(mlp, mlp_leaf)(x, prompts)
      return nnx.merge(attention, attention_leaf)(x, context), None

    between = (at(mlp_leaves, slice(None, -1)), at(attention_leaves, slice(1, None)))
    x, _ = jax.lax.scan(rematerialise(body, self.remat), x, between, unroll=self.unroll)
    x = nnx.merge(mlp, at(mlp_leaves, -1))(x, prompts)
    pixels = self.to_pixels(self.norm(x)).astype(jnp.float32)
    return rearrange(pixels, "(b f q) n p -> b f q n p", b=clips, f=frames)

  def flops(self, visible: int, passes: int = 2) -> int:
    """Forward FLOPs of one frame; the first self-attention is counted once."""
    width, patches = self.width, self.patches
    restore = flops.dense(visible, self.token_width, width) + flops.dense(patches, visible, width)
    prompts = passes * flops.dense(3, self.token_width, width)
    mlp = 2 * flops.dense(patches, width, self.mlp_width)
    to_pixels = flops.dense(patches, width, 3 * self.patch**2)
    if self.concatenate:
      tokens = patches + 3
      attention = flops.dense(tokens, width, 4 * width) + flops.attention(tokens, tokens, width)
      return restore + prompts + passes * (self.depth * (attention + mlp) + to_pixels)
    attention = flops.dense(patches, width, 4 * width) + flops.attention(patches, patches, width)
    cross = flops.dense(patches, width, 2 * width) + flops.dense(3, width, 2 * width)
    cross += flops.attention(patches, 3, width)
    per_pass = self.depth * (cross + mlp) + (self.depth - 1) * attention + to_pixels
    return restore + prompts + attention + passes * per_pass
