"""Principal components of the bare picture: what a token of as many numbers holds that has learned nothing.

They are the floor beside the factors of the tokens (`evaluation.factors`).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from synclipmae_jax.baselines.linear import area_weights

SIZE = 32  # pixels a side
FITTED = 1_000  # pictures that the components are found on, at most


def shrink(frames: np.ndarray, size: int = SIZE) -> np.ndarray:
  """uint8 [n, S, S, 3] -> float32 [n, size, size, 3] in [0, 1], resampled by area."""
  weights = area_weights(frames.shape[1] / 2, frames.shape[1], frames.shape[1], cells=size).astype(np.float32)
  rows = np.einsum("is,nstc->nitc", weights, frames.astype(np.float32) / 255, optimize=True)
  return np.einsum("jt,nitc->nijc", weights, rows, optimize=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Components:
  """uint8 frames [n, S, S, 3] -> the principal components [n, D] of their pictures of 32 x 32 pixels."""

  mean: np.ndarray  # [3072]
  directions: np.ndarray  # [3072, D], of length one, largest variance first

  def __call__(self, frames: np.ndarray) -> np.ndarray:
    return (shrink(frames).reshape(len(frames), -1) - self.mean) @ self.directions


def fit_components(frames: np.ndarray, count: int) -> Components:
  """The `count` directions of largest variance of frames uint8 [n, S, S, 3], of which FITTED are taken, evenly spread;
  fewer where fewer frames are given."""
  chosen = np.linspace(0, len(frames) - 1, min(len(frames), FITTED)).round().astype(int)
  pictures = shrink(frames[chosen]).reshape(len(chosen), -1)
  mean = pictures.mean(axis=0)
  centred = pictures - mean
  # From the inner products of the pictures: there are fewer of them than pixels.
  values, vectors = np.linalg.eigh(centred.astype(np.float64) @ centred.T)
  kept = np.flatnonzero(values > 1e-9 * values.max())[::-1][:count]
  directions = centred.T @ vectors[:, kept] / np.sqrt(values[kept])
  return Components(mean=mean, directions=directions.astype(np.float32))
