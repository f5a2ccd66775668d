"""A square region of a picture, with any rotation, and its pixels."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
  """A square. Coordinates are pixels of the picture; pixel k covers [k, k + 1)."""

  centre: np.ndarray  # [2]
  side: float
  angle: float = 0.0  # rotation from the x axis towards the y axis, radians

  @property
  def axes(self) -> np.ndarray:
    """[2, 2]: the upper and the left side, as vectors in the picture."""
    cos, sin = np.cos(self.angle), np.sin(self.angle)
    return self.side * np.array([[cos, sin], [-sin, cos]])

  def to_picture(self, points: np.ndarray) -> np.ndarray:
    """Points [..., 2] in fractions of the window -> float32 [..., 2] in pixels of the picture."""
    return ((points - 0.5) @ self.axes + self.centre).astype(np.float32)


def cut_window(image: np.ndarray, window: Window, *, size: int) -> np.ndarray:
  """The pixels of a window, uint8 [size, size, 3], of an image, uint8 [H, W, 3].

  Outside of the image they are black. Windows larger than `size` are averaged.
  """
  corners = window.to_picture(np.array([[0, 0], [0, 1], [1, 0], [1, 1]])).astype(float)
  low = np.maximum(np.floor(corners.min(0)).astype(int) - 2, 0)
  high = np.minimum(np.ceil(corners.max(0)).astype(int) + 2, image.shape[1::-1])
  if (high <= low).any():
    return np.zeros((size, size, 3), np.uint8)
  part = Image.fromarray(np.ascontiguousarray(image[low[1] : high[1], low[0] : high[0]]))
  origin, (right, down) = corners[0] - low, window.axes
  if window.angle == 0 and (origin >= 0).all() and (origin + window.side <= part.size).all():
    return np.asarray(part.resize((size, size), Image.Resampling.BILINEAR, box=(*origin, *(origin + window.side))))
  if (scale := int(window.side / size)) > 1:  # bilinear sampling uses 2 x 2 pixels; average first if more are needed
    part, origin = part.reduce(scale), origin / scale
  right, down = right / (size * max(1, scale)), down / (size * max(1, scale))
  coefficients = (right[0], down[0], origin[0], right[1], down[1], origin[1])
  return np.asarray(part.transform((size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR))
