"""Dubbing: the velocity of Wan2.1-VACE under control tokens. Switching their kind changes only the tokens."""

from __future__ import annotations

import dataclasses

from jaxtyping import Array, Bool, Float

from synclipmae_jax.models.wan.audio_pack import AudioPack
from synclipmae_jax.models.wan.conditioning import REFERENCES
from synclipmae_jax.models.wan.dit import PATCH, Dit
from synclipmae_jax.models.wan.vace import Vace, wan_vace
from synclipmae_jax.types import InputError

DRIVES = ("audio", "video")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DubbingModel:
  """The three modules, bound to their parameters."""

  dit: Dit
  vace: Vace
  audio_pack: AudioPack

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
    return wan_vace(self.dit, self.vace, latents, context, text, t, addition=addition)


def tokens_of(drive: str, *, audio: Float[Array, "b t d"], video: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
  """The control tokens of `--drive`: audio tokens, or the vocal-motion tokens of a video. Raises InputError."""
  if drive not in DRIVES:
    raise InputError(f"unknown drive {drive!r}: {' or '.join(DRIVES)}")
  return audio if drive == "audio" else video
