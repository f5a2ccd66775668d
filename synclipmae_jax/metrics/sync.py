"""Temporal lag detection: Acc and Offset under smoothing windows K = 1, 5, 15 (paper section 5, tables 1 and 6).

The score of lag l at audio frame t is s(l, t) = cos(audio_t, vocal_{t+l}) for l in -15..15; a positive lag means that
the video lags the audio. Only frames with all 31 lags inside the clip, t in [15, T - 15), are scored. Zero padding
instead pushes the answer to the edges (a zero vector beats every mismatch): SyncNet-style padding turns the accuracy
of random features from 9.7 % into 6.0 %.

K is the width of a centred window over which the score rows of those frames are averaged (truncated at the ends)
before the best lag of each frame is taken. A frame is correct within one frame of the true lag; Offset is the mean
absolute error in frames. Both are means over the frames of a clip, then over clips, each clip counting once.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from synclipmae_jax.metrics.bootstrap import Estimate, clip_bootstrap

MAX_LAG = 15
LAGS = np.arange(-MAX_LAG, MAX_LAG + 1)
TOLERANCE = 1
WINDOWS = (1, 5, 15)
MIN_FRAMES = 2 * MAX_LAG + max(WINDOWS)  # so that even the widest window is filled once
TIE = 1e-9  # scores closer than this are tied: float32 tokens cannot tell them apart

COLUMNS = tuple(f"{name}/k{k}" for name in ("acc", "offset") for k in WINDOWS) + ("utterance/acc", "utterance/offset")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTokens:
  """The two token sequences of one clip and its true lag (None where nobody knows it: 0 is assumed).

  Raises ValueError where the sequences differ in shape or hold a value that is not finite.
  """

  key: str
  audio: np.ndarray  # float [T, D]
  vocal: np.ndarray  # float [T, D]
  lag: int | None = 0

  def __post_init__(self):
    object.__setattr__(self, "audio", np.asarray(self.audio))
    object.__setattr__(self, "vocal", np.asarray(self.vocal))
    if self.audio.ndim != 2 or self.audio.shape != self.vocal.shape:
      raise ValueError(f"{self.key}: audio {self.audio.shape} and vocal {self.vocal.shape} tokens must both be [T, D]")
    if not (np.isfinite(self.audio).all() and np.isfinite(self.vocal).all()):
      raise ValueError(f"{self.key}: its tokens hold values that are not finite")

  @property
  def true_lag(self) -> int:
    return self.lag or 0

  @property
  def frames(self) -> int:
    return len(self.audio)


def unit(x: Any, dtype=np.float64) -> np.ndarray:
  """Rows scaled to length one; a zero row stays zero, so that its cosine with anything is 0."""
  x = np.asarray(x, dtype)
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.finfo(dtype).tiny)


def lag_scores(audio: Any, vocal: Any) -> np.ndarray:
  """s(l, t) of the frames that have all lags: [T - 30, 31]; row i is audio frame i + 15, column j lag j - 15."""
  audio, vocal = unit(audio), unit(vocal)
  rows = len(audio) - 2 * MAX_LAG
  if rows < 1:
    raise ValueError(f"{len(audio)} frames are too few: {2 * MAX_LAG + 1} lags need at least as many frames")
  middle = audio[MAX_LAG : MAX_LAG + rows]
  return np.stack([np.einsum("td,td->t", middle, vocal[j : j + rows]) for j in range(len(LAGS))], axis=1)


def smooth(scores: np.ndarray, window: int) -> np.ndarray:
  """Mean of each row with its neighbours in a centred window (odd), truncated at the ends. [M, 31] -> [M, 31]."""
  total = np.concatenate([np.zeros_like(scores[:1]), np.cumsum(scores, axis=0)])
  row = np.arange(len(scores))
  start, stop = np.maximum(row - window // 2, 0), np.minimum(row + window // 2 + 1, len(scores))
  return (total[stop] - total[start]) / (stop - start)[:, None]


def judge(scores: np.ndarray, true_lag: int) -> tuple[np.ndarray, np.ndarray]:
  """(correct, absolute error in frames) of the best lag of each row of [..., 31].

  Where several lags tie for the best, both are expectations over them: constant tokens score exactly chance.
  """
  best = scores >= scores.max(axis=-1, keepdims=True) - TIE
  weight = best / best.sum(axis=-1, keepdims=True)
  error = np.abs(LAGS - true_lag)
  return weight @ (error <= TOLERANCE), weight @ error


def chance(true_lag: int) -> tuple[float, float]:
  """(Acc, Offset) of a lag drawn uniformly from the 31, judged against `true_lag`: 3/31 and 240/31 frames at 0."""
  acc, offset = judge(np.zeros(len(LAGS)), true_lag)
  return float(acc), float(offset)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipLag:
  """What one clip contributes."""

  key: str
  true_lag: int
  frames: int  # scored ones
  values: np.ndarray  # float64 [len(COLUMNS)]
  curve: np.ndarray  # float64 [31], the mean over frames of s(l, t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LagState:
  """Per-clip results; `merge` is exact over any split of the clips, and in any order."""

  clips: tuple[ClipLag, ...] = ()

  @classmethod
  def from_clip(cls, clip: ClipTokens) -> LagState:
    scores = lag_scores(clip.audio, clip.vocal)
    curve = scores.mean(axis=0)
    judged = [judge(smooth(scores, k), clip.true_lag) for k in WINDOWS]
    values = [correct.mean() for correct, _ in judged] + [error.mean() for _, error in judged]
    values += judge(curve, clip.true_lag)  # the utterance-level lag of the paper: one answer a clip
    return cls(
      clips=(
        ClipLag(key=clip.key, true_lag=clip.true_lag, frames=len(scores), values=np.array(values), curve=curve),
      )
    )

  def merge(self, other: LagState) -> LagState:
    return LagState(clips=self.clips + other.clips)

  def compute(self) -> dict[str, Estimate]:
    """One estimate for every name of COLUMNS: fractions for acc, frames for offset."""
    values = [clip.values for clip in sorted(self.clips, key=lambda clip: clip.key)]
    return dict(zip(COLUMNS, clip_bootstrap(np.reshape(values, (-1, len(COLUMNS)))), strict=True))

  def chance(self) -> dict[str, float]:
    """Chance level of every name of COLUMNS for the lags that these clips have; NaN without clips."""
    levels = np.array([chance(clip.true_lag) for clip in self.clips]).reshape(-1, 2)
    acc, offset = levels.mean(axis=0) if len(levels) else (np.nan, np.nan)
    return {name: float(acc if "acc" in name else offset) for name in COLUMNS}
