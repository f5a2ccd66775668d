"""Temporal lag detection: Acc and Offset under smoothing windows K = 1, 5, 15 (paper section 5, tables 1 and 6).

The score of lag l at audio frame t is s(l, t) = cos(audio_t, vocal_{t+l}) for l in -15..15. A positive lag means that
the video lags the audio. Models trained with another comparison are scored with it: minus the distance of SyncNet's
vectors ("l2"), or the output of a model that scores pairs ("pairs"). Only frames with all 31 lags inside the clip, t in
[15, T - 15), are scored. Zero padding would bias the lag towards the edges, because a zero vector scores better than a
mismatch: with SyncNet-style padding the accuracy of random features changes from 9.7 % to 6.0 %.

The score rows of these frames are averaged over a centred window of K frames (truncated at the ends) before the best
lag of each frame is taken. A frame is correct if its lag is within one frame of the true lag. Offset is the mean
absolute error in frames. Both are means over the frames of a clip, then over clips with equal weight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from synclipmae_jax.metrics.bootstrap import Estimate, clip_bootstrap

MAX_LAG = 15
LAGS = np.arange(-MAX_LAG, MAX_LAG + 1)
TOLERANCE = 1
WINDOWS = (1, 5, 15)
MIN_FRAMES = 2 * MAX_LAG + max(WINDOWS)  # the smallest number that fills the widest window once
SIMILARITIES = ("cosine", "l2", "pairs")
TIE = 1e-9  # scores closer than this are tied (below the precision of float32 tokens)

PairScores = Callable[[Any, Any], Any]  # (audio [n, ...], video [n, ...]) -> [n], larger for a better match

COLUMNS = tuple(f"{name}/k{k}" for name in ("acc", "offset") for k in WINDOWS) + ("utterance/acc", "utterance/offset")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTokens:
  """The two token sequences of one clip and its true lag in frames. An unknown lag is None and taken as 0.

  `similarity`, one of SIMILARITIES, is the comparison of the tokens. Tokens of "pairs" are the inputs of a function of
  pairs: they have any shape after their first axis, and audio and video may differ in it.

  Raises ValueError for an unknown similarity, for shapes that do not match and for values that are not finite.
  """

  key: str
  audio: np.ndarray  # float [T, D]
  vocal: np.ndarray  # float [T, D]
  lag: int | None = 0
  similarity: str = "cosine"

  def __post_init__(self):
    object.__setattr__(self, "audio", np.asarray(self.audio))
    object.__setattr__(self, "vocal", np.asarray(self.vocal))
    if self.similarity not in SIMILARITIES:
      raise ValueError(f"{self.key}: unknown similarity {self.similarity!r}: one of {', '.join(SIMILARITIES)}")
    if self.similarity == "pairs":
      if self.audio.shape[:1] != self.vocal.shape[:1] or self.audio.ndim < 2 or self.vocal.ndim < 2:
        raise ValueError(f"{self.key}: audio {self.audio.shape} and vocal {self.vocal.shape} must both be [T, ...]")
    elif self.audio.ndim != 2 or self.audio.shape != self.vocal.shape:
      raise ValueError(f"{self.key}: audio {self.audio.shape} and vocal {self.vocal.shape} tokens must both be [T, D]")
    if not (np.isfinite(self.audio).all() and np.isfinite(self.vocal).all()):
      raise ValueError(f"{self.key}: the tokens contain values that are not finite")

  @property
  def true_lag(self) -> int:
    return self.lag or 0

  @property
  def frames(self) -> int:
    return len(self.audio)


def unit(x: Any, dtype=np.float64) -> np.ndarray:
  """Rows scaled to unit length. A zero row stays zero, so that its cosine with any vector is 0."""
  x = np.asarray(x, dtype)
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.finfo(dtype).tiny)


def lag_scores(audio: Any, vocal: Any, similarity: str = "cosine") -> np.ndarray:
  """s(l, t) of the frames that have all lags: [T - 30, 31]; row i is audio frame i + 15, column j is lag j - 15.

  Raises ValueError for fewer than 31 frames.
  """
  middle, rows = _scored_frames(audio)
  if similarity == "cosine":
    audio, vocal = unit(audio), unit(vocal)
    score = lambda a, v: np.einsum("td,td->t", a, v)
  else:
    audio, vocal = (np.asarray(x, np.float64) for x in (audio, vocal))
    score = lambda a, v: -np.linalg.norm(a - v, axis=1)
  return np.stack([score(audio[middle], vocal[j : j + rows]) for j in range(len(LAGS))], axis=1)


def pair_lag_scores(audio: Any, vocal: Any, pair_scores: PairScores) -> np.ndarray:
  """`lag_scores` by a function of pairs, for 31 (T - 30) pairs with one call per lag."""
  middle, rows = _scored_frames(audio)
  columns = [pair_scores(audio[middle], vocal[j : j + rows]) for j in range(len(LAGS))]
  return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)


def _scored_frames(audio: Any) -> tuple[slice, int]:
  rows = len(audio) - 2 * MAX_LAG
  if rows < 1:
    raise ValueError(f"{len(audio)} frames are too few: at least {2 * MAX_LAG + 1} are required for as many lags")
  return slice(MAX_LAG, MAX_LAG + rows), rows


def smooth(scores: np.ndarray, window: int) -> np.ndarray:
  """Moving average over rows in a centred window of odd width, truncated at the ends: [M, 31] -> [M, 31]."""
  total = np.concatenate([np.zeros_like(scores[:1]), np.cumsum(scores, axis=0)])
  row = np.arange(len(scores))
  start, stop = np.maximum(row - window // 2, 0), np.minimum(row + window // 2 + 1, len(scores))
  return (total[stop] - total[start]) / (stop - start)[:, None]


def judge(scores: np.ndarray, true_lag: int) -> tuple[np.ndarray, np.ndarray]:
  """(correct, absolute error in frames) of the best lag of each row of [..., 31].

  If several lags tie for the best, both are expectations over them, so constant tokens score exactly chance.
  """
  best = scores >= scores.max(axis=-1, keepdims=True) - TIE
  weight = best / best.sum(axis=-1, keepdims=True)
  error = np.abs(LAGS - true_lag)
  return weight @ (error <= TOLERANCE), weight @ error


def chance(true_lag: int) -> tuple[float, float]:
  """(Acc, Offset) of a lag drawn uniformly from the 31, against `true_lag`: 3/31 and 240/31 frames for 0."""
  acc, offset = judge(np.zeros(len(LAGS)), true_lag)
  return float(acc), float(offset)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipLag:
  """The results of one clip."""

  key: str
  true_lag: int
  frames: int  # number of scored frames
  values: np.ndarray  # float64 [len(COLUMNS)]
  curve: np.ndarray  # float64 [31], the mean over frames of s(l, t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LagState:
  """Per-clip results. `merge` is exact for any split of the clips and any order."""

  clips: tuple[ClipLag, ...] = ()

  @classmethod
  def from_clip(cls, clip: ClipTokens, pair_scores: PairScores | None = None) -> LagState:
    """Results of one clip. `pair_scores` compares tokens of similarity "pairs"."""
    if clip.similarity == "pairs":
      scores = pair_lag_scores(clip.audio, clip.vocal, pair_scores)
    else:
      scores = lag_scores(clip.audio, clip.vocal, clip.similarity)
    return cls.from_scores(clip.key, scores, clip.true_lag)

  @classmethod
  def from_scores(cls, key: str, scores: np.ndarray, lag: int) -> LagState:
    """Results of the scores s(l, t) of the scored frames, [M, 31]. Raises ValueError if a score is not finite."""
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or scores.shape[1] != len(LAGS) or not len(scores) or not np.isfinite(scores).all():
      raise ValueError(f"{key}: the scores {scores.shape} must be finite and of shape [M, {len(LAGS)}]")
    curve = scores.mean(axis=0)
    judged = [judge(smooth(scores, k), lag) for k in WINDOWS]
    values = [correct.mean() for correct, _ in judged] + [error.mean() for _, error in judged]
    values += judge(curve, lag)  # utterance-level lag of the paper: one lag per clip
    return cls(clips=(ClipLag(key=key, true_lag=lag, frames=len(scores), values=np.array(values), curve=curve),))

  def merge(self, other: LagState) -> LagState:
    return LagState(clips=self.clips + other.clips)

  def compute(self) -> dict[str, Estimate]:
    """One estimate for every name of COLUMNS: acc as a fraction, offset in frames."""
    values = [clip.values for clip in sorted(self.clips, key=lambda clip: clip.key)]
    return dict(zip(COLUMNS, clip_bootstrap(np.reshape(values, (-1, len(COLUMNS)))), strict=True))

  def chance(self) -> dict[str, float]:
    """Chance level of every name of COLUMNS for the true lags of these clips; NaN without clips."""
    levels = np.array([chance(clip.true_lag) for clip in self.clips]).reshape(-1, 2)
    acc, offset = levels.mean(axis=0) if len(levels) else (np.nan, np.nan)
    return {name: float(acc if "acc" in name else offset) for name in COLUMNS}
