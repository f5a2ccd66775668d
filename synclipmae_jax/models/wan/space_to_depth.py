"""A stand-in for the Wan VAE with its interface: an exact rearrangement of pixels, without parameters.

It serves small models, which train without a download and in which a learned autoencoder of their size would blur the
mouth. Its latents are pixels: they are not compressed, and no model trained with it works with the Wan VAE.
"""

from __future__ import annotations

import jax.numpy as jnp
from einops import rearrange, reduce
from jaxtyping import Array, Float

from synclipmae_jax.types import InputError


class SpaceToDepth:
  """`space_stride` x `space_stride` pixels of `time_stride` frames become the channels of one latent.

  Like the VAE's, the first latent frame holds one frame: it counts as often as the others and is averaged on the way
  back, so that `decode(encode(video))` is the video.
  """

  def __init__(self, *, space_stride: int = 4, time_stride: int = 4):
    self.space_stride, self.time_stride = space_stride, time_stride
    self.latent = 3 * space_stride**2 * time_stride

  def encode(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b s h2 w2 z"]:
    """Latents of RGB in [-1, 1]: S = (T - 1) // time_stride + 1 frames. Later frames that fill no latent are ignored.

    Raises InputError if H or W is not a multiple of `space_stride`.
    """
    _, frames, height, width, channels = video.shape
    if channels != 3 or frames < 1 or height % self.space_stride or width % self.space_stride:
      raise InputError(
        f"the stand-in takes [B, T >= 1, H, W, 3], H and W multiples of {self.space_stride}, not {list(video.shape)}"
      )
    whole = 1 + (frames - 1) // self.time_stride * self.time_stride
    video = jnp.concatenate([jnp.repeat(video[:, :1], self.time_stride - 1, axis=1), video[:, :whole]], axis=1)
    return rearrange(
      video, "b (s t) (h p) (w q) c -> b s h w (t p q c)", t=self.time_stride, p=self.space_stride, q=self.space_stride
    )

  def decode(self, latents: Float[Array, "b s h2 w2 z"]) -> Float[Array, "b t h w 3"]:
    """RGB, clipped to [-1, 1]: time_stride * (S - 1) + 1 frames. Raises InputError for other channels."""
    if latents.shape[-1] != self.latent:
      raise InputError(f"the stand-in decodes {self.latent} latent channels, not {latents.shape[-1]}")
    sizes = dict(t=self.time_stride, p=self.space_stride, q=self.space_stride)
    video = rearrange(latents, "b s h w (t p q c) -> b s t (h p) (w q) c", **sizes)
    first = reduce(video[:, :1], "b s t h w c -> b s h w c", "mean")
    rest = rearrange(video[:, 1:], "b s t h w c -> b (s t) h w c")
    return jnp.clip(jnp.concatenate([first, rest], axis=1), -1, 1)
