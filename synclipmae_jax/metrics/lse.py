"""Exact definitions of LSE-C and LSE-D, the synchronisation scores of the dubbing literature.

For each clip a model gives one vector per window of sound, a_0 … a_{W-1}, and one per window of pictures,
v_0 … v_{W-1}, both on the timeline of the clip. The windows are one frame apart (25 per second); W of them are whole.
d(l, i) is the distance between v_i and a_{i-l}, the sound that belongs to v_i if the video lags the audio by l frames,
for l in -15..15.

`lse_d`, `lse_c`, `lse_lag`: with SyncNet v2 (`baselines.syncnet`). Identical to `calc_pdist` and `evaluate` of
  joonson/syncnet_python with vshift 15, which the evaluation of Wav2Lip uses.
      d(l, i) = || v_i - a_{i-l} + 1e-6 ||_2   (1e-6 is added to every entry), a_j = 0 for j outside 0..W-1
      D(l) = mean over i = 0..W-1 of d(l, i)
      LSE-D = min_l D(l),  LSE-C = median_l D(l) - LSE-D  (the median of the 31),  lag = argmin_l D(l)
  The windows of the script have 5 frames and start at frames 0, 1, …, T - 6. Its `AV offset` equals our lag, sign
  included: it pads the sound by 15 and prints 15 - j for the best row j. Row j compares v_i with a_{i+j-15}, so that
  l = 15 - j.
`lse_d_masked`, `lse_c_masked`, `lse_lag_masked`: the same, but D(l) is the mean over i = 15..W-16 only, where no sound
  is missing. Zero vectors are nearer to real vectors than mismatched ones and otherwise lower D at large lags. Not
  defined for fewer than 31 windows.
`stable_lse_d`, `stable_lse_c`, `stable_lse_lag`, `stable_lse_cosine`: with StableSyncNet (windows of 16 frames), by our
  own definition: edges masked as above and d(l, i) = || v_i / |v_i| - a_{i-l} / |a_{i-l}| ||_2, between 0 and 2.
  stable_lse_cosine is the mean of cos(v_i, a_{i-l}) over the same i at that lag. The "stable SyncNet evaluator" of the
  SyncLipMAE paper is not published, and the released `eval_sync_conf.py` of LatentSync loads SyncNet v2. The values
  here are not comparable with either.

The score of a set of clips is the mean over the clips. Smaller D and larger C are better.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from synclipmae_jax.metrics.bootstrap import Estimate, clip_bootstrap
from synclipmae_jax.metrics.sync import LAGS, MAX_LAG, unit

MIN_WINDOWS = 2 * MAX_LAG + 1  # the smallest number with one window that has the sound of every lag
EPSILON = 1e-6  # of torch.nn.functional.pairwise_distance
SYNCNET_COLUMNS = ("lse_d", "lse_c", "lse_lag", "lse_d_masked", "lse_c_masked", "lse_lag_masked")
STABLE_COLUMNS = ("stable_lse_d", "stable_lse_c", "stable_lse_lag", "stable_lse_cosine")


def padded_distances(audio: Any, lips: Any) -> np.ndarray:
  """d(l, i) of the SyncNet script: [W, 31], row i, column l + 15. Sound outside the clip is zero."""
  audio, lips = np.asarray(audio, np.float64), np.asarray(lips, np.float64)
  padded = np.pad(audio, ((MAX_LAG, MAX_LAG), (0, 0)))
  return _distances(padded, lips, EPSILON)


def masked_distances(audio: Any, lips: Any, *, epsilon: float = EPSILON) -> np.ndarray:
  """d(l, i) of the windows i = 15..W-16, which have the sound of every lag: [W - 30, 31], or [0, 31] for W < 31."""
  audio, lips = np.asarray(audio, np.float64), np.asarray(lips, np.float64)
  return _distances(audio, lips[MAX_LAG : max(len(lips) - MAX_LAG, MAX_LAG)], epsilon)


def _distances(audio: np.ndarray, lips: np.ndarray, epsilon: float) -> np.ndarray:
  """[N, 31] distances of the rows of `lips`. The first row of `audio` is the sound of the first row at lag 15."""
  columns = [np.linalg.norm(lips - audio[MAX_LAG - lag :][: len(lips)] + epsilon, axis=1) for lag in LAGS]
  return np.stack(columns, axis=1)


def summary(distances: np.ndarray) -> tuple[float, float, float]:
  """(LSE-D, LSE-C, lag in frames) of distances [N, 31]; NaN for N = 0.

  If several lags have the same minimum, the largest lag is taken, as in the SyncNet script.
  """
  if not len(distances):
    return np.nan, np.nan, np.nan
  curve = distances.mean(axis=0)
  return curve.min(), np.median(curve) - curve.min(), LAGS[::-1][curve[::-1].argmin()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipLse:
  """The scores of one clip.

  `values` are by column name, NaN if not defined. `curve` is D(l) of the 31 lags: zero-padded for SyncNet, masked for
  StableSyncNet.
  """

  key: str
  windows: int
  values: dict[str, float]
  curve: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class LseState:
  """Per-clip scores of one of the two models. `merge` is exact for any split of the clips and any order."""

  columns: tuple[str, ...]
  clips: tuple[ClipLse, ...] = ()

  @classmethod
  def from_syncnet(cls, key: str, audio: Any, lips: Any) -> LseState:
    """Scores of SyncNet v2's vectors of the whole windows, float [W, D] each (`SyncNetTokens.windows`).

    Raises ValueError for other shapes or values that are not finite.
    """
    _check(key, audio, lips)
    padded, masked = padded_distances(audio, lips), masked_distances(audio, lips)
    return cls._of(key, len(audio), SYNCNET_COLUMNS, (*summary(padded), *summary(masked)), padded.mean(axis=0))

  @classmethod
  def from_stable_syncnet(cls, key: str, audio: Any, lips: Any) -> LseState:
    """Scores of StableSyncNet's vectors of the whole windows, float [W, D] each, not necessarily of unit length.

    Raises ValueError for other shapes or values that are not finite.
    """
    _check(key, audio, lips)
    distances = masked_distances(unit(audio), unit(lips), epsilon=0.0)
    least, confidence, lag = summary(distances)
    curve, cosine = np.full(len(LAGS), np.nan), np.nan
    if len(distances):
      curve = distances.mean(axis=0)
      cosine = 1 - np.mean(distances[:, int(lag) + MAX_LAG] ** 2) / 2  # |u - v|^2 = 2 - 2 cos
    return cls._of(key, len(audio), STABLE_COLUMNS, (least, confidence, lag, cosine), curve)

  @classmethod
  def _of(cls, key, windows, columns, values, curve) -> LseState:
    values = dict(zip(columns, map(float, values), strict=True))
    return cls(columns=columns, clips=(ClipLse(key=key, windows=windows, values=values, curve=curve),))

  def merge(self, other: LseState) -> LseState:
    if self.columns != other.columns:
      raise ValueError("scores of SyncNet and of StableSyncNet cannot be merged")
    return LseState(columns=self.columns, clips=self.clips + other.clips)

  def compute(self) -> dict[str, Estimate]:
    """Mean over clips of every column with its 95 % interval. Clips on which a column is not defined are left out."""
    clips = sorted(self.clips, key=lambda clip: clip.key)
    values = np.array([[clip.values[name] for name in self.columns] for clip in clips]).reshape(-1, len(self.columns))
    return dict(zip(self.columns, clip_bootstrap(values, ~np.isnan(values)), strict=True))


def _check(key: str, audio: Any, lips: Any) -> None:
  audio, lips = np.asarray(audio), np.asarray(lips)
  if audio.ndim != 2 or audio.shape != lips.shape or not len(audio):
    raise ValueError(f"{key}: audio {audio.shape} and lips {lips.shape} must both be [W, D], W at least 1")
  if not (np.isfinite(audio).all() and np.isfinite(lips).all()):
    raise ValueError(f"{key}: the vectors contain values that are not finite")
