"""Where a new shot begins. A cut changes what colours the picture holds; a moving head or a lamp does not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from synclipmae_jax.data.media.video import Frame

_CHANGE = 10.0  # mean change of a pixel, of 255
_HISTOGRAM = 0.3  # share of the pixels that took another colour
_STANDS_OUT = 3.0  # times the change of the source frames around it


class SceneCuts:
  """Watches frames go by (`watch`) and tells afterwards at which of them a new shot begins (`cuts`)."""

  def __init__(self):
    self._times: list[int] = []
    self._changes: list[tuple[float, float]] = []

  def watch(self, frames: Iterable[Frame]) -> Iterator[Frame]:
    seen, before, colours = None, None, None
    for frame in frames:
      if frame.source != seen:  # a repeated source frame is no evidence of stillness
        step = max(1, min(frame.image.shape[:2]) // 32)
        small = frame.image[::step, ::step].astype(np.float32)
        histogram = _colours(small)
        if before is not None and before.shape == small.shape:
          self._times.append(frame.index)
          self._changes.append((np.abs(small - before).mean(), np.abs(histogram - colours).sum() / 2))
        seen, before, colours = frame.source, small, histogram
      yield frame

  @property
  def cuts(self) -> list[int]:
    """Frames at which a new shot begins, ascending."""
    if not self._times:
      return []
    change, moved = np.array(self._changes).T
    padded = np.pad(change, 2)
    around = (padded[:-4] + padded[1:-3] + padded[3:-1] + padded[4:]) / 4
    is_cut = (change > _CHANGE) & (moved > _HISTOGRAM) & (change > _STANDS_OUT * around)
    return [t for t, cut in zip(self._times, is_cut, strict=True) if cut]


def _colours(image: np.ndarray) -> np.ndarray:
  """Histograms of light, red-green and blue-yellow, 16 bins each, summing to 1 over all three."""
  red, green, blue = image[..., 0], image[..., 1], image[..., 2]
  axes = (red + green + blue) / 3, (red - green) / 2 + 128, (blue - (red + green) / 2) / 2 + 128
  bins = [np.bincount((axis.ravel() / 16).astype(int).clip(0, 15), minlength=16) for axis in axes]
  return np.concatenate(bins) / (3 * red.size)
