"""The AudioPack: control tokens, one per frame, become what is added to VACE's embedded context (OmniAvatar).

OmniAvatar adds audio before many blocks; the paper adds it once, after the patch embedding of VACE and before its first
block, and takes audio tokens or vocal-motion tokens. Which of them changes nothing here.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Bool, Float

from synclipmae_jax.models import flops
from synclipmae_jax.models.layers import LayerNorm, Linear, gelu
from synclipmae_jax.models.wan.dit import Grid, sinusoid
from synclipmae_jax.models.wan.vace import ZeroLinear
from synclipmae_jax.types import InputError


class AudioPack(nnx.Module):
  """Groups of tokens -> a narrow layer with the sinusoid of the group's number -> the width of the transformer.

  The VAE's first latent frame holds one frame and each later one the next `group` frames, so the first token is
  repeated `group` - 1 times and every latent frame has `group` tokens. The last layer starts at zero: an untrained
  AudioPack adds nothing. Features between the layers are float32.
  """

  def __init__(
    self,
    *,
    token_width: int = 1024,
    width: int = 1536,
    hidden: int = 256,
    group: int = 4,
    compute_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.token_width, self.width, self.hidden, self.group = token_width, width, hidden, group
    self.pack = Linear(group * token_width, hidden, compute_dtype=compute_dtype, rngs=rngs)
    self.norm = LayerNorm(hidden, rngs=rngs)
    self.project = ZeroLinear(hidden, width, compute_dtype=compute_dtype, rngs=rngs)

  @jax.named_scope("audio_pack")
  def __call__(
    self,
    tokens: Float[Array, "b t c"],
    *,
    grid: Grid,
    references: int,
    driven: Bool[Array, " b"] | None = None,
  ) -> Float[Array, "b n d"]:
    """The addition for `Vace`, one row for each token of `grid` (latent frames, rows, columns), float32.

    It is the same all over a latent frame, and zero on the first `references` latent frames. Where `driven` is false,
    all of it is zero: the null of guidance, with which the model is VACE without control.
    Raises InputError if the tokens are not those of the remaining latent frames.
    """
    frames = grid[0] - references
    if tokens.shape[1:] != (1 + self.group * (frames - 1), self.token_width):
      raise InputError(
        f"{frames} latent frames take {1 + self.group * (frames - 1)} tokens of {self.token_width} numbers, not"
        f" {tokens.shape[1]} of {tokens.shape[2]}"
      )
    tokens = jnp.concatenate([jnp.repeat(tokens[:, :1], self.group - 1, axis=1), tokens], axis=1)
    groups = rearrange(tokens, "b (s g) c -> b s (g c)", g=self.group)
    x = self.norm(self.pack(groups)).astype(jnp.float32) + sinusoid(jnp.arange(frames, dtype=jnp.float32), self.hidden)
    added = self.project(gelu(x)).astype(jnp.float32)
    if driven is not None:
      added = jnp.where(driven[:, None, None], added, 0.0)
    added = jnp.pad(added, ((0, 0), (references, 0), (0, 0)))
    return repeat(added, "b s d -> b (s n) d", n=grid[1] * grid[2])

  def flops(self, frames: int) -> int:
    """Forward FLOPs of one sample of `frames` latent frames, without references."""
    return flops.dense(frames, self.group * self.token_width, self.hidden) + flops.dense(
      frames, self.hidden, self.width
    )
