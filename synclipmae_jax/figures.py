"""The one way in which pictures are drawn: matplotlib without pyplot, so there is no backend, display or state.

matplotlib is imported when a picture is drawn: it is slow to import.
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
  """An empty figure of a size in inches."""
  from matplotlib.figure import Figure

  return Figure(figsize=(width, height), layout="constrained", dpi=DPI)


def pixels(figure: Figure) -> np.ndarray:
  """The drawn figure, uint8 [H, W, 3]."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(figure: Figure, path: str | os.PathLike) -> np.ndarray:
  """Writes a PNG whole or not at all, since a picture may be looked at while a run draws it anew; returns `pixels`."""
  from PIL import Image

  image, path = pixels(figure), Path(path)
  partial = path.with_name(path.name + ".tmp")
  Image.fromarray(image).save(partial, format="png")
  partial.replace(path)
  return image
