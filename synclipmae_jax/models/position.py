"""Fixed 2-D positional tables of a square grid of patches: generation, and resizing of a donor's table."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

CUBIC = -0.75  # coefficient of cubic convolution in torch; PIL, TensorFlow and JAX use -0.5


def sincos_position(grid: int, width: int, *, rows_first: bool) -> Float[np.ndarray, "n d"]:
  """Fixed 2-D sine-cosine table, computed in float64, returned as float32.

  With `rows_first` the channel order is that of Sapiens, [sin row | cos row | sin column | cos column]; otherwise the
  column half comes first, as in MAE. Raises ValueError if `width` is not divisible by 4.
  """
  if width % 4:
    raise ValueError(f"a 2-D sine-cosine table needs a width divisible by 4, got {width}")
  omega = 10000.0 ** -(np.arange(width // 4) / (width // 4))
  angles = np.arange(grid)[:, None] * omega
  axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)  # [grid, width / 2]
  rows, columns = np.repeat(axis, grid, axis=0), np.tile(axis, (grid, 1))
  halves = (rows, columns) if rows_first else (columns, rows)
  return np.concatenate(halves, axis=-1).astype(np.float32)


def resize_position(table: Float[np.ndarray, "n d"], grid: int) -> Float[np.ndarray, "m d"]:
  """Resizes the table of a square grid: [n * n, D] -> [grid * grid, D] float32.

  Same as Sapiens and ViT: torch's bicubic `F.interpolate(size=grid, align_corners=False, antialias=False)` (mmpretrain,
  utils/embed.py). Raises ValueError if the number of rows is not a square.
  """
  old = math.isqrt(len(table))
  if old * old != len(table):
    raise ValueError(f"a positional table of {len(table)} rows does not belong to a square grid")
  table = np.asarray(table, np.float32)
  if old == grid:
    return table
  weights = bicubic_weights(old, grid)
  square = np.einsum("rs,ct,std->rcd", weights, weights, table.reshape(old, old, -1), optimize=True)
  return square.reshape(grid * grid, -1).astype(np.float32)


def bicubic_weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
  """Weights of the `old` samples in each `new` sample: four neighbours of the half-pixel centre, border repeated."""
  centres = (np.arange(new) + 0.5) * old / new - 0.5
  neighbours = np.floor(centres).astype(int)[:, None] + np.arange(-1, 3)
  distance = np.abs(centres[:, None] - neighbours)
  near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1  # up to 1
  far = CUBIC * (((distance - 5) * distance + 8) * distance - 4)  # from 1 to 2
  weights = np.zeros((new, old))
  np.add.at(weights, (np.arange(new)[:, None], neighbours.clip(0, old - 1)), np.where(distance <= 1, near, far))
  return weights
