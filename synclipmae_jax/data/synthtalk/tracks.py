"""Smooth curves in time: blur for coarticulation, and smooth noise for motion that is not speech."""

from __future__ import annotations

import numpy as np


def _kernel(sigma: float) -> np.ndarray:
  radius = int(np.ceil(3.5 * sigma))
  kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
  return kernel / kernel.sum()


def smooth(track: np.ndarray, sigma: float) -> np.ndarray:
  """[steps, ...] blurred along axis 0 by a Gaussian of `sigma` steps. The kernel is symmetric and adds no delay."""
  kernel = _kernel(sigma)
  edges = [(len(kernel) // 2,) * 2] + [(0, 0)] * (track.ndim - 1)
  return np.apply_along_axis(np.convolve, 0, np.pad(track, edges, mode="edge"), kernel, mode="valid")


def wander(rng: np.random.Generator, steps: int, sigma: float) -> np.ndarray:
  """[steps]: stationary noise of unit variance and correlation time `sigma` steps.

  More steps are drawn and then trimmed, because noise smoothed with a padded edge jumps at its first and last steps.
  """
  kernel = _kernel(sigma)
  kernel /= np.linalg.norm(kernel)
  return np.convolve(rng.standard_normal(steps + len(kernel) - 1), kernel, mode="valid")
