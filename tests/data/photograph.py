"""Synthetic footage with a real face: the photograph of an astronaut that is part of scikit-image.

The position of the face was measured with a face mesh in the full photograph and checked by eye.
"""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

HEAD = 240  # side of the square with the head, pixels
FACE = np.array([73, 78, 167, 184]) / HEAD  # x0, y0, x1, y1 of the face in the square: ear to ear, brow to chin
MOUTH = np.array([115, 150]) / HEAD


@functools.cache
def head() -> Image.Image:
  from skimage.data import astronaut

  return Image.fromarray(astronaut()[:HEAD, 105 : 105 + HEAD])


def picture(*heads: tuple[float, ...], width: int = 360, height: int = 288, mirrored: bool = False) -> np.ndarray:
  """uint8 [height, width, 3]: heads on grey, each given as (centre x, centre y, side, degrees clockwise, default 0)."""
  image = Image.new("RGB", (width, height), (90, 90, 90))
  for x, y, side, *degrees in heads:
    one = head().transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else head()
    one = one.resize((round(side), round(side)), Image.Resampling.BOX if side < HEAD else Image.Resampling.BICUBIC)
    mask = Image.new("L", one.size, 255)
    if degrees and degrees[0]:
      one, mask = (part.rotate(-degrees[0], Image.Resampling.BICUBIC, expand=True) for part in (one, mask))
    image.paste(one, (round(x - one.width / 2), round(y - one.height / 2)), mask)
  return np.asarray(image)


def face_of(x: float, y: float, side: float, *, width: int = 360, height: int = 288) -> np.ndarray:
  """float [4]: the face box of an upright head of `picture`, in fractions of the picture."""
  return (FACE * side + np.tile([x - side / 2, y - side / 2], 2)) / np.tile([width, height], 2)
