"""Maps hidden states of the speech encoder to audio tokens of the same width as the visual prompt tokens."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from synclipmae_jax.models import flops
from synclipmae_jax.models.layers import LayerNorm, Linear, gelu
from synclipmae_jax.types import InputError


class AudioAdapter(nnx.Module):
  """LayerNorm, Linear, exact GELU, Linear over concatenated layers (paper section 3.2, "Audio Features and Adapter").

  `in_features` is L * C of the speech encoder for `layers="all"` (the paper) and C for `layers="last"` (ablation B1).
  Raises InputError for another value of `layers`.
  """

  def __init__(
    self,
    *,
    rngs: nnx.Rngs,
    in_features: int,
    width: int,
    layers: Literal["all", "last"] = "all",
    compute_dtype=jnp.float32,
  ):
    if layers not in ("all", "last"):
      raise InputError(f"unknown audio layers {layers!r}: all or last")
    self.layers = layers
    self.in_features, self.width = in_features, width
    self.norm = LayerNorm(in_features, compute_dtype=compute_dtype, rngs=rngs)
    self.hidden = Linear(in_features, width, compute_dtype=compute_dtype, rngs=rngs)
    self.out = Linear(width, width, compute_dtype=compute_dtype, rngs=rngs)

  @jax.named_scope("audio_adapter")
  def __call__(self, states: Float[Array, "*b l c"]) -> Float[Array, "*b d"]:
    """[..., L, C] hidden states -> [..., D] audio tokens."""
    if self.layers == "last":
      states = states[..., -1:, :]
    x = self.hidden(self.norm(rearrange(states, "... l c -> ... (l c)")))
    return self.out(gelu(x))

  def flops(self, tokens: int) -> int:
    """Forward FLOPs of `tokens` tokens."""
    return flops.dense(tokens, self.in_features, self.width) + flops.dense(tokens, self.width, self.width)
