"""VACE's context of a masked video with references (ali-vilab/VACE, vace/models/wan/wan_vace.py).

A latent frame of the context has the latents of the picture without the region to generate (inactive), those of the
region alone (reactive), and the mask, whose pixels become channels: 16 + 16 + 64 = 96 with the Wan VAE. A reference is
one picture, encoded alone, with zeros for the rest, in a latent frame of its own before the video.
"""

from __future__ import annotations

from typing import Protocol

import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jaxtyping import Array, Bool, Float

from synclipmae_jax.types import InputError

# The order of the reference frames: the person, then the last picture before the segment, next to the video. The
# original code keeps the order of its list and diffusers reverses it; training and sampling use this one.
REFERENCES = ("identity", "history")


class VideoAutoencoder(Protocol):
  """What conditioning asks of an autoencoder: `models.wan.vae.Vae`, or the stand-in `space_to_depth`."""

  latent: int  # channels
  space_stride: int  # pixels per latent along height and width
  time_stride: int  # frames per latent frame, after the first

  def encode(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b s h2 w2 z"]: ...
  def decode(self, latents: Float[Array, "b s h2 w2 z"]) -> Float[Array, "b t h w 3"]: ...


def without(video: Float[Array, "b t h w 3"], mask: Bool[Array, "b h w"]) -> Float[Array, "b t h w 3"]:
  """The video in [-1, 1] with the region of the mask grey, which is 0.

  The model sees this one, never the region itself: in training that would show it the answer.
  """
  return jnp.where(mask[:, None, :, :, None], 0.0, video)


def mask_channels(mask: Bool[Array, "b h w"], *, stride: int, frames: int) -> Float[Array, "b s h2 w2 c"]:
  """A mask that is constant in time -> `frames` latent frames of stride * stride channels, (row, column); 1: generate.

  VACE takes the mask of the nearest frame; all of them are equal here.
  """
  channels = rearrange(mask, "b (h p) (w q) -> b h w (p q)", p=stride, q=stride).astype(jnp.float32)
  return repeat(channels, "b h w c -> b s h w c", s=frames)


def context(
  inactive: Float[Array, "b s h w z"], reactive: Float[Array, "b s h w z"], mask: Bool[Array, "b h2 w2"]
) -> Float[Array, "b s h w c"]:
  """The context of the video: inactive and reactive latents and the mask.

  Raises InputError for a mask of another size than the latents by a whole number.
  """
  stride = mask.shape[1] // inactive.shape[2]
  if mask.shape[1:] != (stride * inactive.shape[2], stride * inactive.shape[3]):
    raise InputError(f"a mask of {mask.shape[1:]} does not fit latents of {inactive.shape[2:4]}")
  channels = mask_channels(mask, stride=stride, frames=inactive.shape[1])
  return jnp.concatenate([inactive, jnp.broadcast_to(reactive, inactive.shape), channels], axis=-1)


def with_references(
  video: Float[Array, "b s h w c"], references: Float[Array, "b r h w z"]
) -> Float[Array, "b s2 h w c"]:
  """`video`, a context or latents, after the latents of the references in the order of `REFERENCES`.

  Channels that references lack are zero: no region to generate, no mask.
  """
  missing = video.shape[-1] - references.shape[-1]
  padded = jnp.pad(references, [(0, 0)] * 4 + [(0, missing)])
  return jnp.concatenate([padded.astype(video.dtype), video], axis=1)


def encode_context(
  vae: VideoAutoencoder, video: Float[Array, "b t h w 3"], mask: Bool[Array, "b h w"]
) -> Float[Array, "b s h2 w2 c"]:
  """`context` of a video in [-1, 1] as VACE makes it: both parts are cut out in pixels and encoded apart.

  For dubbing, `video` is already `without` the region, so that the reactive part is that of a grey picture.
  """
  reactive = jnp.where(mask[:, None, :, :, None], video, 0.0)
  return context(vae.encode(without(video, mask)), vae.encode(reactive), mask)


def encode_pictures(vae: VideoAutoencoder, pictures: Float[Array, "b r h w 3"]) -> Float[Array, "b r h2 w2 z"]:
  """Latents of pictures, each encoded alone."""
  one = vae.encode(rearrange(pictures, "b r h w c -> (b r) 1 h w c"))
  return rearrange(one, "(b r) 1 h w z -> b r h w z", b=pictures.shape[0])


def to_unit(frames: np.ndarray) -> np.ndarray:
  """uint8 -> float32 in [-1, 1]."""
  return frames.astype(np.float32) / 127.5 - 1
