"""Distances between two sets of pictures or clips by their features: FID and FVD (Frechet), KID (kernel MMD).

Frechet distance (Heusel et al. 2017; for clips Unterthiner et al. 2018): |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))
of the means and covariances. KID (Binkowski et al. 2018): the unbiased squared MMD with the kernel (x y / d + 1)^3, the
mean over random subsets.
"""

from __future__ import annotations

import dataclasses

import numpy as np

SUBSETS, SUBSET_SIZE, SEED = 100, 1000, 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoFeatures:
  """Features of the examples of one video: pictures, or clips."""

  key: str
  times: np.ndarray  # int [n], the first frame of each example
  features: np.ndarray  # float [n, d]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureState:
  """The features of all videos. They are kept whole: KID needs them, and so do covariances of few examples.

  Results are computed from the videos in the order of their keys, so they depend neither on the split nor on the order
  of merging. Each example takes d numbers.
  """

  videos: tuple[VideoFeatures, ...] = ()

  def merge(self, other: FeatureState) -> FeatureState:
    return FeatureState(videos=self.videos + other.videos)

  def shared_with(self, other: FeatureState) -> np.ndarray:
    """float [n, d]: the features of the examples (video and time) that `other` has too, in the order of the keys."""
    times = {video.key: video.times for video in other.videos}
    ordered = sorted((video for video in self.videos if video.key in times), key=lambda video: video.key)
    kept = [video.features[np.isin(video.times, times[video.key])] for video in ordered]
    return np.concatenate(kept).astype(np.float64) if kept else np.zeros((0, 0))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
  """Of features [n, d] and [m, d], at least two each.

  The trace of the root is the sum of the singular values of X Y', where X'X = C1 and Y'Y = C2. No root of a matrix is
  computed, so that covariances of low rank need no epsilon.
  """
  (mean_a, root_a), (mean_b, root_b) = map(_moments, (a, b))
  shared = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
  return float(np.square(mean_a - mean_b).sum() + np.square(root_a).sum() + np.square(root_b).sum() - 2 * shared)


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(mean [d], X [min(n, d), d] with X'X the unbiased covariance)."""
  x = np.asarray(x, np.float64)
  if len(x) < 2:
    raise ValueError("a covariance needs two examples")
  mean = x.mean(axis=0)
  centred = (x - mean) / np.sqrt(len(x) - 1)
  root: np.ndarray = centred if len(x) <= x.shape[1] else np.linalg.qr(centred, mode="r")  # type: ignore[assignment]
  return mean, root


def kernel_distance(
  a: np.ndarray, b: np.ndarray, *, subsets: int = SUBSETS, size: int = SUBSET_SIZE, seed: int = SEED
) -> tuple[float, float]:
  """(mean, standard deviation) over subsets of the unbiased squared MMD of features [n, d] and [m, d]; may be negative.

  A subset has `size` examples of each set, or as many as the smaller set has.
  """
  a, b = (np.asarray(x, np.float64) for x in (a, b))
  size = min(size, len(a), len(b))
  if size < 2:
    raise ValueError("an unbiased distance needs two examples")
  rng = np.random.default_rng(seed)
  if size == len(a) == len(b):
    subsets = 1  # all subsets are the whole
  draw = lambda x: x[rng.choice(len(x), size, replace=False)]
  values = [_unbiased_mmd(draw(a), draw(b)) for _ in range(subsets)]
  return float(np.mean(values)), float(np.std(values))


def _unbiased_mmd(a: np.ndarray, b: np.ndarray) -> float:
  kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3
  within = sum((gram.sum() - np.trace(gram)) / (len(a) * (len(a) - 1)) for gram in (kernel(a, a), kernel(b, b)))
  return float(within - 2 * kernel(a, b).mean())
