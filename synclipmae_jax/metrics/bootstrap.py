"""Means over clips with confidence intervals. Clips are resampled, because adjacent frames are not independent."""

from __future__ import annotations

import dataclasses

import numpy as np

RESAMPLES = 1000
SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
  """A mean and its 95 % interval. The mean of no clips and the interval of fewer than two clips are NaN."""

  value: float
  low: float = np.nan
  high: float = np.nan


def clip_bootstrap(
  values: np.ndarray, weights: np.ndarray | None = None, *, resamples: int = RESAMPLES, seed: int = SEED
) -> list[Estimate]:
  """Weighted means of M quantities over C clips, with percentile bootstrap intervals from resampled clips.

  Args:
    values: [C, M], one row per clip. An entry of weight 0 is ignored and may be NaN.
    weights: [C, M], default 1. With the number of queries as weight, the result is the mean over all queries.
    resamples: number of times that C clips are drawn with replacement.
    seed: seed of the draw. The result depends on the order of the rows, so callers sort them.

  Returns:
    M estimates.
  """
  values = np.asarray(values, np.float64)
  weights = np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
  values = np.where(weights > 0, values, 0.0)
  clips = len(values)
  if not clips:
    return [Estimate(value=np.nan) for _ in range(values.shape[1])]
  counts = np.random.default_rng(seed).multinomial(clips, np.full(clips, 1 / clips), size=resamples)
  mean = _ratio((weights * values).sum(0), weights.sum(0))
  drawn = _ratio(counts @ (weights * values), counts @ weights)  # [resamples, M]
  intervals = np.full((2, values.shape[1]), np.nan)
  known = (weights > 0).sum(0) > 1
  # A resample may contain no clip on which a quantity is defined. It is NaN for that quantity and ignored.
  intervals[:, known] = np.nanpercentile(drawn[:, known], [2.5, 97.5], axis=0)
  columns = zip(mean, *intervals, strict=True)
  return [Estimate(value=float(m), low=float(low), high=float(high)) for m, low, high in columns]


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
  return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)
