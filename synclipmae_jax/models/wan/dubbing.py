"""Dubbing: the velocity of Wan2.1-VACE under control tokens. Switching their kind changes only the tokens.

Wan's output is the velocity. To say the noise of every pixel, a transformer must be wider than a patch has numbers. A
small one on pixels is not, so its output is the clean latents instead, from which the velocity follows (Li and He 2025,
"Back to Basics: Let Denoising Generative Models Denoise"). Or it is what has to be added to the picture of the person,
which is let through by a gate a latent: what stays in its place need not pass the width of the transformer.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from synclipmae_jax.models.wan.audio_pack import AudioPack
from synclipmae_jax.models.wan.conditioning import REFERENCES
from synclipmae_jax.models.wan.dit import PATCH, Dit
from synclipmae_jax.models.wan.flow_matching import TIMES
from synclipmae_jax.models.wan.vace import Vace, wan_vace
from synclipmae_jax.types import InputError

DRIVES = ("audio", "video")
PREDICTS = ("velocity", "clean", "residual")
LEAST_NOISE = 0.05  # level that the error of clean latents is divided by at least


@dataclasses.dataclass(frozen=True, kw_only=True)
class DubbingModel:
  """The three modules, bound to their parameters, and what their output is, one of `PREDICTS`."""

  dit: Dit
  vace: Vace
  audio_pack: AudioPack
  predicts: str = "velocity"

  def velocity(
    self,
    latents: Float[Array, "b s h w z"],
    context: Float[Array, "b s h w c"],
    text: Float[Array, "b m e"],
    t: Float[Array, " b"],
    tokens: Float[Array, "b t d"],
    *,
    driven: Bool[Array, " b"] | None = None,
  ) -> Float[Array, "b s h w z"]:
    """Noise minus clean latents, float32, of noisy latents with the references first (`conditioning.REFERENCES`).

    `t` in [0, 1000]; `tokens`: one per frame; where `driven` is false, there is no control. Raises InputError for
    tokens that do not fit the latents, and where `wan_vace` does.
    """
    _, frames, rows, columns, _ = latents.shape
    addition = self.audio_pack(
      tokens, grid=(frames, rows // PATCH, columns // PATCH), references=len(REFERENCES), driven=driven
    )
    output = wan_vace(self.dit, self.vace, latents, context, text, t, addition=addition)
    if self.predicts == "velocity":
      return output
    if self.predicts == "residual":
      identity = context[:, REFERENCES.index("identity")][:, None, ..., : latents.shape[-1]]
      output = output[..., :-1] + jax.nn.sigmoid(output[..., -1:]) * identity
    level = jnp.maximum(t / TIMES, LEAST_NOISE)[:, None, None, None, None]
    return (latents - output) / level


def output_channels(predicts: str, latent: int) -> int:
  """Channels of the transformer's output; a residual has one more, the gate."""
  return latent + (predicts == "residual")


def tokens_of(drive: str, *, audio: Float[Array, "b t d"], video: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
  """The control tokens of `--drive`: audio tokens, or the vocal-motion tokens of a video. Raises InputError."""
  if drive not in DRIVES:
    raise InputError(f"unknown drive {drive!r}: {' or '.join(DRIVES)}")
  return audio if drive == "audio" else video
