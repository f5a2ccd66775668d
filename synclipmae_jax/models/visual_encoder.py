"""Per-frame ViT with three learnable prompt tokens: identity, vocal motion, ambient motion (paper section 3.2).

The backbone is the plain pre-LN ViT-L/16 of Sapiens-0.3B (facebookresearch/sapiens,
pretrain/mmpretrain/models/selfsup/mae.py `MAEViT`). Smaller sizes use the same code.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from synclipmae_jax.models import flops
from synclipmae_jax.models.layers import EncoderBlock, LayerNorm, Linear, scan_blocks, stack_blocks
from synclipmae_jax.models.position import sincos_position

# ImageNet statistics on the 0..1 scale. Sapiens uses the same statistics on the 0..255 scale.
PIXEL_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
PIXEL_STD = np.array([0.229, 0.224, 0.225], np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameTokens:
  """Per-frame tokens of one view, in the encoder's compute dtype."""

  identity: Float[Array, "b f d"]
  vocal: Float[Array, "b f d"]
  ambient: Float[Array, "b f d"]
  patches: Float[Array, "b f k d"]  # K = 0 if nobody asked for them


def normalise_pixels(pixels: Float[Array, "*b p"]) -> Float[Array, "*b p"]:
  """Patch pixels in [0, 1] -> pixels normalised by the ImageNet statistics (channels vary fastest)."""
  repeats = pixels.shape[-1] // 3
  return (pixels - np.tile(PIXEL_MEAN, repeats)) / np.tile(PIXEL_STD, repeats)


def denormalise_pixels(pixels: Float[Array, "*b p"]) -> Float[Array, "*b p"]:
  """Inverse of `normalise_pixels`, clipped to [0, 1]."""
  repeats = pixels.shape[-1] // 3
  return jnp.clip(pixels * np.tile(PIXEL_STD, repeats) + np.tile(PIXEL_MEAN, repeats), 0.0, 1.0)


class VisualEncoder(nnx.Module):
  """ViT over the visible patches of each frame. The prompt tokens are prepended after masking and have no position.

  `class_token` adds the class token that the Sapiens blocks were trained with; its output is not used.
  Raises ValueError if `image_size` is not a multiple of `patch`.
  """

  def __init__(
    self,
    *,
    image_size: int,
    patch: int,
    width: int,
    depth: int,
    heads: int,
    mlp_width: int,
    class_token: bool = False,
    compute_dtype=jnp.float32,
    unroll: bool | int = 1,
    remat: str = "none",
    rngs: nnx.Rngs,
  ):
    if image_size % patch:
      raise ValueError(f"image size {image_size} is not a multiple of the patch size {patch}")
    self.grid = image_size // patch
    self.patch = patch
    self.width = width
    self.depth = depth
    self.mlp_width = mlp_width
    self.compute_dtype = compute_dtype
    self.unroll = unroll
    self.remat = remat
    self.patch_embedding = Linear(patch * patch * 3, width, compute_dtype=compute_dtype, rngs=rngs)
    # A parameter, so that it can be filled with a donor's table. It is not trained, as in MAE and Sapiens.
    self.position = nnx.Param(jnp.asarray(sincos_position(self.grid, width, rows_first=True)))
    normal = nnx.initializers.normal(0.02)
    self.prompt_tokens = nnx.Param(normal(rngs.params(), (3, width)))
    self.class_token = nnx.Param(normal(rngs.params(), (1, width))) if class_token else None
    # The first row of a donor's table, added to the class token and not trained. It is zero without a donor.
    self.class_position = nnx.Param(jnp.zeros((1, width))) if class_token else None
    self.blocks = stack_blocks(
      lambda r: EncoderBlock(width, heads, mlp_width, compute_dtype=compute_dtype, rngs=r), depth, rngs
    )
    self.norm = LayerNorm(width, compute_dtype=compute_dtype, rngs=rngs)

  @jax.named_scope("visual_encoder")
  def __call__(
    self, pixels: Float[Array, "b f k p"], indices: Int[Array, "b f k"], *, prompts_only: bool = False
  ) -> FrameTokens:
    """Encodes the visible patches (normalised pixels and their indices) of F independent frames of B clips.

    With `prompts_only` the tokens have no `patches`.
    """
    clips, frames, visible, _ = pixels.shape
    position = jax.lax.stop_gradient(self.position[...])[indices].astype(self.compute_dtype)
    x = (self.patch_embedding(pixels) + position).reshape(clips * frames, visible, self.width)
    prefix = self.prompt_tokens[...]
    if self.class_token is not None:
      placed = self.class_token[...] + jax.lax.stop_gradient(self.class_position[...])
      prefix = jnp.concatenate([prefix, placed])
    prefix = prefix.astype(x.dtype)
    x = jnp.concatenate([jnp.broadcast_to(prefix, (len(x), *prefix.shape)), x], axis=1)
    wanted = len(prefix) if prompts_only else None
    x = scan_blocks(self.blocks, x, unroll=self.unroll, remat=self.remat, wanted=wanted)
    x = self.norm(x).reshape(clips, frames, -1, self.width)
    return FrameTokens(identity=x[:, :, 0], vocal=x[:, :, 1], ambient=x[:, :, 2], patches=x[:, :, len(prefix) :])

  def flops(self, visible: int) -> int:
    """Forward FLOPs of one view of one frame."""
    tokens = 3 + (self.class_token is not None) + visible
    blocks = self.depth * flops.transformer_block(tokens, self.width, self.mlp_width)
    return flops.dense(visible, 3 * self.patch**2, self.width) + blocks
