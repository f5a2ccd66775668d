"""Image augmentation on the device, with one random draw per clip.

Photometric jitter of the face-preserving view (paper section 3.2): brightness, contrast, saturation and hue are affine
maps of RGB. Their composition is one 3x3 matrix and one offset per clip, applied to the visible patches only.

Crop jitter (not in the paper): imitates the differences between the face crops of different detectors.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], np.float32)
YIQ_TO_RGB = np.linalg.inv(RGB_TO_YIQ).astype(np.float32)


def jitter_affine(
  key: Key[Array, ""],
  mean_luma: Float[Array, ""],
  *,
  brightness: float,
  contrast: float,
  saturation: float,
  hue: float,
  probability: float,
) -> tuple[Float[Array, "3 3"], Float[Array, " 3"]]:
  """(matrix, offset) of one clip's jitter on RGB in [0, 1]: `rgb @ matrix + offset`, to be clipped to [0, 1].

  The strengths are those of torchvision's ColorJitter: factors in 1 ± strength, and `hue` in turns. Hue is rotated in
  the YIQ plane. `mean_luma` is the mean grey value of the clip, which contrast leaves unchanged. With probability
  1 - `probability` the result is the identity.
  """
  apply_key, *keys = jax.random.split(key, 5)
  amounts = jnp.array([brightness, contrast, saturation, hue])
  draw = jax.vmap(lambda k: jax.random.uniform(k, minval=-1.0, maxval=1.0))(jnp.stack(keys)) * amounts
  draw = jnp.where(jax.random.bernoulli(apply_key, probability), draw, 0.0)
  bright, contrasted, saturated = 1 + draw[0], 1 + draw[1], 1 + draw[2]

  grey = jnp.outer(jnp.asarray(LUMA), jnp.ones(3))
  saturate = saturated * jnp.eye(3) + (1 - saturated) * grey
  angle = 2 * jnp.pi * draw[3]
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  turn = jnp.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
  rotate = (YIQ_TO_RGB @ turn @ RGB_TO_YIQ).T

  colour = saturate @ rotate
  offset = jnp.full(3, (1 - contrasted) * bright * mean_luma)  # both colour maps leave grey unchanged
  return bright * contrasted * colour, offset


def apply_affine(
  pixels: Float[Array, "b t k p"], matrix: Float[Array, "b 3 3"], offset: Float[Array, "b 3"]
) -> Float[Array, "b t k p"]:
  """Applies per-clip colour maps to patch pixels in [0, 1] (channels vary fastest) and clips to [0, 1]."""
  rgb = pixels.reshape(*pixels.shape[:-1], -1, 3)
  mapped = jnp.einsum("btkpc,bcd->btkpd", rgb, matrix) + offset[:, None, None, None]
  return jnp.clip(mapped, 0.0, 1.0).reshape(pixels.shape)


def crop_jitter(
  key: Key[Array, ""],
  frames: UInt8[Array, "t s s 3"],
  boxes: Float[Array, "n t 4"],
  *,
  zoom: float,
  shift: float,
  mirror: float = 0.0,
) -> tuple[UInt8[Array, "t s s 3"], Float[Array, "n t 4"]]:
  """`recrop` of one clip with a random factor and shift, mirrored with probability `mirror`.

  The factor is log-uniform in [1 / `zoom`, `zoom`]. The shift is uniform in [-`shift`, `shift`] along each axis, in
  fractions of the side.
  """
  zoom_key, shift_key = jax.random.split(key)
  if mirror:
    mirrored = jax.random.bernoulli(jax.random.fold_in(key, 0), mirror)
    frames = jnp.where(mirrored, frames[:, :, ::-1], frames)
    known = boxes[..., 2:3] > boxes[..., :1]
    left, top, right, bottom = jnp.moveaxis(boxes, -1, 0)
    boxes = jnp.where(mirrored & known, jnp.stack([1 - right, top, 1 - left, bottom], axis=-1), boxes)
  factor = zoom ** jax.random.uniform(zoom_key, minval=-1.0, maxval=1.0)
  return recrop(frames, boxes, factor=factor, moved=jax.random.uniform(shift_key, (2,), minval=-shift, maxval=shift))


def recrop(
  frames: UInt8[Array, "t s s 3"],
  boxes: Float[Array, "n t 4"],
  *,
  factor: float | Float[Array, ""],
  moved: Float[Array, " 2"],
) -> tuple[UInt8[Array, "t s s 3"], Float[Array, "n t 4"]]:
  """Enlarges frames about their centre by `factor` and shifts the view by `moved`; maps the boxes accordingly.

  `moved` is (x, y) in fractions of the side; boxes are in fractions of the image. Pixels beyond an edge repeat the
  edge. Boxes of -1 (no box) are unchanged.
  """
  size = frames.shape[1]
  pixel = jnp.arange(size)
  seen = ((pixel + 0.5) / size - 0.5) / factor + 0.5 + moved[:, None]  # [2, S]: source position of each new pixel
  seen = jnp.clip(seen * size - 0.5, 0, size - 1)
  columns, rows = jnp.maximum(0.0, 1 - jnp.abs(seen[..., None] - pixel))  # bilinear weights [S, S] of each axis
  frames = jnp.einsum("ij,kl,tjlc->tikc", rows, columns, frames.astype(jnp.float32))
  there = (boxes - 0.5 - jnp.tile(moved, 2)) * factor + 0.5
  known = boxes[..., 2:3] > boxes[..., :1]
  return jnp.rint(frames).astype(jnp.uint8), jnp.where(known, jnp.clip(there, 0.0, 1.0), boxes)
