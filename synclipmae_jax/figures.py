"""Draws all figures with matplotlib but without pyplot: no backend selection, display or global state.

matplotlib is slow to import, so it is imported when a figure is drawn.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  from matplotlib.figure import Figure

DPI = 110


def new_figure(width: float, height: float) -> Figure:
  """An empty figure; `width` and `height` in inches."""
  from matplotlib.figure import Figure

  return Figure(figsize=(width, height), layout="constrained", dpi=DPI)


def pixels(figure: Figure) -> np.ndarray:
  """The drawn figure, uint8 [H, W, 3]."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(figure: Figure, path: str | os.PathLike) -> np.ndarray:
  """Writes a PNG atomically, because a run may replace a picture while it is viewed; returns `pixels`."""
  from PIL import Image

  image, path = pixels(figure), Path(path)
  partial = path.with_name(path.name + ".tmp")
  Image.fromarray(image).save(partial, format="png")
  partial.replace(path)
  return image
