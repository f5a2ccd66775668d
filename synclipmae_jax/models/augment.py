"""Image augmentation on the device, with one random draw per clip.

Photometric jitter of the face-preserving view (paper section 3.2): brightness, contrast, saturation and hue are affine
maps of RGB. Their composition is one 3x3 matrix and one offset per clip, applied to the visible patches only.

Not in the paper: crop jitter imitates the differences between the face crops of different detectors and postures, blur,
light and noise those of cameras, box jitter those of landmarks.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Key, Shaped, UInt8

from synclipmae_jax.types import KEYPOINTS, Batch

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
  grey: float = 0.0,
) -> tuple[Float[Array, "3 3"], Float[Array, " 3"]]:
  """(matrix, offset) of one clip's jitter on RGB in [0, 1]: `rgb @ matrix + offset`, to be clipped to [0, 1].

  The strengths are those of torchvision's ColorJitter: factors in 1 ± strength, and `hue` in turns. Hue is rotated in
  the YIQ plane. `mean_luma` is the mean grey value of the clip, which contrast leaves unchanged. With probability
  1 - `probability` the result is the identity. With probability `grey` the saturation is 0 in any case.
  """
  apply_key, *keys = jax.random.split(key, 5)
  amounts = jnp.array([brightness, contrast, saturation, hue])
  draw = jax.vmap(lambda k: jax.random.uniform(k, minval=-1.0, maxval=1.0))(jnp.stack(keys)) * amounts
  draw = jnp.where(jax.random.bernoulli(apply_key, probability), draw, 0.0)
  bright, contrasted, saturated = 1 + draw[0], 1 + draw[1], 1 + draw[2]
  if grey:
    saturated = jnp.where(jax.random.bernoulli(jax.random.fold_in(key, 0), grey), 0.0, saturated)

  luma = jnp.outer(jnp.asarray(LUMA), jnp.ones(3))
  saturate = saturated * jnp.eye(3) + (1 - saturated) * luma
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
  # Sums of three terms: a CPU takes half the time of a product with a matrix of three rows.
  mapped = sum(rgb[..., c : c + 1] * matrix[:, None, None, None, c] for c in range(3)) + offset[:, None, None, None]
  return jnp.clip(mapped, 0.0, 1.0).reshape(pixels.shape)


def mean_luma(frames: Shaped[Array, "b t h w 3"]) -> Float[Array, " b"]:
  """Mean grey value of each clip, in the units of `frames`: uint8 RGB, or floats."""
  clips, time, height, width, channels = frames.shape
  dtype = jnp.int32 if frames.dtype == jnp.uint8 else jnp.float32
  columns = frames.reshape(clips, time * height, width * channels).astype(dtype).sum(axis=1)  # whole rows at a time
  rgb = columns.reshape(clips, width, channels).astype(jnp.float32).sum(axis=1) / (time * height * width)
  return rgb @ LUMA


def crop_jitter(
  key: Key[Array, ""],
  frames: UInt8[Array, "t s s 3"],
  boxes: Float[Array, "n t 4"],
  points: Float[Array, "t p 2"],
  *,
  zoom: float,
  shift: float,
  mirror: float = 0.0,
  stretch: float = 1.0,
  rotation: float = 0.0,
) -> tuple[UInt8[Array, "t s s 3"], Float[Array, "n t 4"], Float[Array, "t p 2"]]:
  """A random view of the frames of one clip, the same for all of them; boxes and points move with it.

  The factor is log-uniform in [1 / `zoom`, `zoom`], that of the width against the height in [1 / `stretch`, `stretch`].
  The shift is uniform in [-`shift`, `shift`] along each axis, in fractions of the side, the angle in [-`rotation`,
  `rotation`] degrees. `mirror` is the probability of a mirrored view. Pixels beyond an edge repeat the edge. Boxes keep
  their sides parallel to the axes, and their size but for the factor; boxes and points of -1 (none) are unchanged.
  `points` are those of `types.KEYPOINTS`, of which left and right change places in a mirrored view, or none.
  """
  keys = jax.random.split(key, 5)
  uniform = lambda key, *shape: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
  factor, aspect = zoom ** uniform(keys[0]), stretch ** (0.5 * uniform(keys[1]))
  angle, moved = jnp.deg2rad(rotation) * uniform(keys[2]), shift * uniform(keys[3], 2)
  flipped = jnp.where(jax.random.bernoulli(keys[4], mirror), -1.0, 1.0)
  scale = factor * jnp.stack([aspect, 1 / aspect])
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  # From a position in the view to one in the picture, both relative to the centre: scaled, then rotated.
  towards = jnp.array([[cos, -sin], [sin, cos]]) * jnp.stack([flipped / scale[0], 1 / scale[1]])
  place = lambda at: (at - 0.5 - moved) @ jnp.linalg.inv(towards).T + 0.5
  frames = _warp(frames, towards, moved)
  if points.shape[1]:
    points = jnp.where(points > -1, place(points), points)
    points = jnp.where(flipped < 0, points[:, _MIRRORED], points)
  corners = boxes.reshape(*boxes.shape[:-1], 2, 2)
  centre = place(corners.mean(axis=-2))
  half = (corners[..., 1, :] - corners[..., 0, :]) / 2 * scale
  there = jnp.concatenate([centre - half, centre + half], axis=-1)
  return frames, jnp.where(_known(boxes), jnp.clip(there, 0.0, 1.0), boxes), points


_OTHER_SIDE = {"left": "right", "right": "left"}
_MIRRORED = np.array([
  KEYPOINTS.index("_".join([_OTHER_SIDE.get(side, side), *rest])) for side, *rest in (n.split("_") for n in KEYPOINTS)
])  # fmt: skip


def crop_jitter_of_pairs(keys: Key[Array, " b"], batch: Batch, **strengths: float) -> Batch:
  """`crop_jitter` of a batch: the same for both clips of a pair, which exchange their identity tokens."""
  keys = jnp.repeat(rearrange(keys, "(r w) -> r w", w=2)[:, 0], 2)
  boxes = jnp.stack([batch["face_box"], batch["mouth_box"]], axis=1)
  points = batch.get("keypoints", jnp.zeros((*batch["frames"].shape[:2], 0, 2)))
  jitter = jax.vmap(lambda key, frames, boxes, points: crop_jitter(key, frames, boxes, points, **strengths))
  frames, boxes, points = jitter(keys, batch["frames"], boxes, points)
  moved = dict(frames=frames, face_box=boxes[:, 0], mouth_box=boxes[:, 1], keypoints=points)
  return {**batch, **{name: value for name, value in moved.items() if name in batch}}


def _warp(
  frames: UInt8[Array, "t s s 3"], towards: Float[Array, "2 2"], moved: Float[Array, " 2"]
) -> UInt8[Array, "t s s 3"]:
  """Bilinear sampling at `towards @ (position - 0.5) + 0.5 + moved`; one gather of rows for all frames of a clip."""
  size = frames.shape[1]
  at = (jnp.stack(jnp.meshgrid(jnp.arange(size), jnp.arange(size)), axis=-1) + 0.5) / size - 0.5  # [S, S, (x, y)]
  seen = jnp.clip((at @ towards.T + 0.5 + moved) * size - 0.5, 0, size - 1)
  low = jnp.minimum(jnp.floor(seen).astype(jnp.int32), size - 2)
  part = (seen - low)[..., None]
  pixels = rearrange(frames, "t h w c -> (h w) (t c)")
  corner = lambda dx, dy: pixels[(low[..., 1] + dy) * size + low[..., 0] + dx].astype(jnp.float32)
  upper, lower = (corner(0, dy) * (1 - part[..., 0, :]) + corner(1, dy) * part[..., 0, :] for dy in (0, 1))
  seen = jnp.rint(upper * (1 - part[..., 1, :]) + lower * part[..., 1, :]).astype(jnp.uint8)
  return rearrange(seen, "h w (t c) -> t h w c", c=3)


def blur_and_light(
  key: Key[Array, ""], frames: UInt8[Array, "t s s 3"], *, blur: float, light: float
) -> Float[Array, "t s s 3"]:
  """Frames of one clip in [0, 1], blurred and lit from a side, the same for all of them.

  The standard deviation of the blur is uniform in [0, `blur`] pixels. The light is a factor that changes linearly over
  the picture, from 1 - a at one edge to 1 + a at the other, a uniform in [-`light`, `light`] along each axis.
  """
  blur_key, light_key = jax.random.split(key)
  size = frames.shape[1]
  deviation = blur * jax.random.uniform(blur_key) + 1e-3
  pixel = jnp.arange(size)
  weights = jax.nn.softmax(-0.5 * jnp.square((pixel[:, None] - pixel) / deviation), axis=-1)
  ramp = (2 * (pixel + 0.5) / size - 1) * jax.random.uniform(light_key, (2, 1), minval=-light, maxval=light)
  lit = 1 + ramp[1][:, None] + ramp[0]
  blurred = jnp.einsum("ij,kl,tjlc->tikc", weights, weights, frames.astype(jnp.float32) / 255)
  return jnp.clip(blurred * lit[..., None], 0.0, 1.0)


def noise(key: Key[Array, ""], pixels: Float[Array, "t k p"], *, amount: float) -> Float[Array, "t k p"]:
  """Pixels in [0, 1] with uniform noise, of a standard deviation that is uniform in [0, `amount`] for the clip."""
  strength_key, noise_key = jax.random.split(key)
  drawn = jax.random.bits(noise_key, pixels.shape, jnp.uint8).astype(jnp.float32) / 255 - 0.5
  deviation = amount * jax.random.uniform(strength_key)
  return jnp.clip(pixels + 12**0.5 * deviation * drawn, 0.0, 1.0)


def box_jitter(key: Key[Array, ""], boxes: Float[Array, "*n 4"], *, amount: float) -> Float[Array, "*n 4"]:
  """Boxes of one clip, each moved and scaled along each axis by normal noise of `amount` of its side; -1 stays."""
  move_key, scale_key = jax.random.split(key)
  corners = boxes.reshape(*boxes.shape[:-1], 2, 2)
  side = corners[..., 1, :] - corners[..., 0, :]
  centre = corners.mean(axis=-2) + amount * side * jax.random.normal(move_key, side.shape)
  half = side / 2 * jnp.exp(amount * jax.random.normal(scale_key, side.shape))
  return jnp.where(_known(boxes), jnp.clip(jnp.concatenate([centre - half, centre + half], axis=-1), 0.0, 1.0), boxes)


def zoomed(
  frames: UInt8[Array, "t s s 3"], boxes: Float[Array, "n t 4"], *, factor: float | Float[Array, ""]
) -> tuple[UInt8[Array, "t s s 3"], Float[Array, "n t 4"]]:
  """Enlarges frames about their centre by `factor`, and maps the boxes accordingly.

  Boxes are in fractions of the image. Pixels beyond an edge repeat the edge. Boxes of -1 (no box) are unchanged.
  """
  seen = _warp(frames, jnp.eye(2) / factor, jnp.zeros(2))
  there = jnp.clip((boxes - 0.5) * factor + 0.5, 0.0, 1.0)
  return seen, jnp.where(_known(boxes), there, boxes)


def mirrored(
  frames: UInt8[Array, "t s s 3"], boxes: Float[Array, "n t 4"]
) -> tuple[UInt8[Array, "t s s 3"], Float[Array, "n t 4"]]:
  """Frames as in a mirror, and their boxes. Boxes of -1 (no box) are unchanged."""
  left, top, right, bottom = jnp.moveaxis(boxes, -1, 0)
  there = jnp.stack([1 - right, top, 1 - left, bottom], axis=-1)
  return frames[:, :, ::-1], jnp.where(_known(boxes), there, boxes)


def _known(boxes: Float[Array, "*n 4"]) -> Bool[Array, "*n 1"]:
  return boxes[..., 2:3] > boxes[..., :1]
