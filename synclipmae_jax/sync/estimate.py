"""Estimates the lag between two token sequences and its confidence.

Scores. A lag l is positive when the video lags the audio. s(l, t) is the mean of two cosines between audio at t and
vocal motion at t + l: of the tokens minus their local mean, and of their change from frame to frame. (The plain cosine
of the protocol, metrics.sync, is as good on footage like the training data. On a photograph whose jaw moves it finds no
lag in one clip of three, where these two find it with z = 3 to 5.)

Evidence. The mean score of a lag is m(l) = mean_t s(l, t) over the n(l) frames that have the lag. How far it varies
without a match is measured in the file itself, at all lags up to 60 frames except those of the peak: with their mean
mu and the standard deviation sigma of sqrt(n(l)) (m(l) - mu), z(l) = sqrt(n(l)) (m(l) - mu) / sigma has no unit and is
much more comparable between models, faces, microphones and lengths than a cosine. The lag of a stretch is the maximum
of z(l) over the search range, -15 .. 15 frames. A still mouth, another speaker and noise have no lag with a high z.
(Without n(l), the means of few frames at the far lags of a short stretch win by chance and hide the variation of the
near ones: of 80 SynthTalk stretches of 1.4 to 6 s with noisy lips, 75 % get an answer where 85 % do with it, at the
same share of false answers.)

Confidence. Two numbers describe a stretch: the z of its peak, and the difference between the peak and the best lag more
than one frame away. `calibration.Calibration`, fitted on clips of known lag, converts them to probabilities.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from synclipmae_jax.metrics.sync import LAGS, MAX_LAG, smooth, unit
from synclipmae_jax.sync.calibration import Calibration, Evidence
from synclipmae_jax.types import FPS

WIDE = 60  # frames: largest lag for sampling chance scores
WIDE_LAGS = np.arange(-WIDE, WIDE + 1)
_NEAR = slice(WIDE - MAX_LAG, WIDE + MAX_LAG + 1)  # the search range inside WIDE_LAGS
HALF_MEAN = 125  # frames on each side for the local mean of the tokens
MIN_OVERLAP = 16  # minimum frames for a lag: with it, 31 frames have all lags of the search range
PEAK_WIDTH = 3  # frames around the best lag that are excluded from chance
MIN_SPREAD = 1e-4  # of a mean cosine; smaller spreads are rounding errors
BLOCK = 64  # frames per block of wide sums
SMOOTHING = 51  # frames of the window for the lag of a single frame
MIN_SPEECH = 12  # frames, half a second
DRIFT_WINDOW, DRIFT_HOP = 4, 1  # blocks: 10 s, every 2.6 s
DRIFT_WINDOWS = 8  # minimum number of windows for a slope
_MOST_WINDOWS = 1000  # maximum number of windows: the cost is quadratic in it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
  """Scores of n frames, from `LagScorer`."""

  scores: np.ndarray  # float16 [n, 31]: s(l, t); rows of nan if not all lags exist
  wide_sum: np.ndarray  # float64 [blocks, 121]: sum of s(l, t) over the frames of a block that have the lag
  wide_count: np.ndarray  # int64 [blocks, 121]: number of these frames


class LagScorer:
  """Computes s(l, t) of one face from tokens in order of time. Memory is constant except for 31 numbers per frame.

  The local mean over the 10 s around each frame removes constant effects of speaker, light and microphone.
  """

  def __init__(self):
    self._raw = _Window(HALF_MEAN)
    self._compared = _Window(WIDE)  # rows whose inner product is s
    self._rows: list[np.ndarray] = []
    self._sums: list[np.ndarray] = []
    self._counts: list[np.ndarray] = []

  def push(self, audio: np.ndarray, vocal: np.ndarray) -> None:
    """Adds the next n frames, float [n, D] each; a row of nan if there is no token (the face is not visible).

    Raises ValueError if the shapes differ.
    """
    audio, vocal = np.asarray(audio, np.float32), np.asarray(vocal, np.float32)
    if audio.ndim != 2 or audio.shape != vocal.shape:
      raise ValueError(f"audio {audio.shape} and vocal {vocal.shape} tokens must both be [n, D]")
    self._raw.push(np.stack([audio, vocal], axis=1))
    self._advance(last=False)

  def finish(self) -> Scores:
    """The scores of all frames. The scorer must not be used afterwards."""
    self._advance(last=True)
    lags, wide = len(LAGS), len(WIDE_LAGS)
    return Scores(
      scores=np.concatenate([np.zeros((0, lags), np.float16), *self._rows]),
      wide_sum=np.reshape(self._sums, (-1, wide)),
      wide_count=np.reshape(np.array(self._counts, np.int64), (-1, wide)),
    )

  def _advance(self, *, last: bool) -> None:
    for window, at, stop in self._raw.blocks(last=last):
      known = np.isfinite(window[..., 0])
      total = _from_zero(np.where(known[..., None], window, 0))
      count = _from_zero(known)
      middle = np.arange(at, stop)
      low, high = np.maximum(middle - HALF_MEAN, 0), np.minimum(middle + HALF_MEAN + 1, len(window))
      mean = (total[high] - total[low]) / np.maximum(count[high] - count[low], 1)[..., None]
      motion = np.gradient(window, axis=0)[at:stop] if len(window) > 1 else np.zeros_like(window)
      motion = np.where(np.isfinite(motion), motion, 0)  # next to a frame without a token
      parts = [unit(part, np.float32) for part in (window[at:stop] - mean, motion)]
      self._compared.push(np.concatenate(parts, axis=-1) / np.float32(np.sqrt(2)))
    for window, at, stop in self._compared.blocks(last=last):
      known = np.isfinite(window[..., 0])
      window = np.where(known[..., None], window, 0)
      every = window[at:stop, 0] @ window[:, 1].T  # [block, window]
      partner = np.arange(at, stop)[:, None] + WIDE_LAGS
      inside = partner.clip(0, len(window) - 1)
      exists = (partner == inside) & known[at:stop, :1] & known[inside, 1]
      scores = np.where(exists, np.take_along_axis(every, inside, axis=1), 0.0)
      self._sums.append(scores.sum(axis=0, dtype=np.float64))
      self._counts.append(exists.sum(axis=0))
      rows = np.where(exists[:, _NEAR].all(axis=1, keepdims=True), scores[:, _NEAR], np.nan)
      self._rows.append(rows.astype(np.float16))


def compare(audio: np.ndarray, vocal: np.ndarray) -> Scores:
  """Scores of two signals of one number a frame, float [n] each: s(l, t) is their product in units of their rms."""
  scaled = [x / max(float(np.sqrt(np.square(x).mean())), 1e-6) for x in (audio, vocal)]
  partner = np.arange(len(audio))[:, None] + WIDE_LAGS
  inside = partner.clip(0, len(audio) - 1)
  exists = partner == inside
  scores = np.where(exists, scaled[0][:, None] * scaled[1][inside], 0.0)
  rows, firsts = (
    np.where(exists[:, _NEAR].all(axis=1, keepdims=True), scores[:, _NEAR], np.nan),
    range(0, len(audio), BLOCK),
  )
  return Scores(
    scores=rows.astype(np.float16),
    wide_sum=np.add.reduceat(scores, firsts, axis=0),
    wide_count=np.add.reduceat(exists.astype(np.int64), firsts, axis=0),
  )


def _from_zero(rows: np.ndarray) -> np.ndarray:
  """Cumulative sums along axis 0, one row longer than `rows`: the sum of [a, b) is out[b] - out[a]."""
  return np.concatenate([np.zeros_like(rows[:1], np.float64), rows.cumsum(axis=0, dtype=np.float64)])


class _Window:
  """A stretch of a stream in blocks of BLOCK frames, each with up to `reach` frames of context on both sides."""

  def __init__(self, reach: int):
    self._held: np.ndarray | None = None
    self._reach, self._at = reach, 0  # the next block begins at row `_at` of `_held`

  def push(self, rows: np.ndarray) -> None:
    self._held = rows if self._held is None else np.concatenate([self._held, rows])

  def blocks(self, *, last: bool):
    """Yields (rows, first row, stop row) of each block with complete context; `last`: no more rows will follow."""
    while self._held is not None:
      left = len(self._held) - self._at
      if left <= 0 or (left < BLOCK + self._reach and not last):
        return
      stop = min(self._at + BLOCK, len(self._held))
      begin = max(0, self._at - self._reach)
      yield self._held[begin : stop + self._reach], self._at - begin, stop - begin
      self._held, self._at = self._held[max(0, stop - self._reach) :], min(stop, self._reach)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LagEstimate:
  """The lag of one face and its evidence."""

  lag: int | None  # frames; None with too few frames to try every lag
  confidence: float  # P(|error| <= 1 frame); multiplied by `synchronizable` if that is below 0.5
  interval: tuple[int, int] | None  # lags, in frames
  score: float  # mean score at the lag, -1 .. 1
  synchronizable: float  # probability that a lag exists
  right: float  # P(|error| <= 1 frame) if a lag exists
  curve: np.ndarray  # float64 [31], the mean score of every lag; nan if undefined
  drift_ms_per_min: float | None
  frame_lags: np.ndarray  # int [n]; NO_LAG for a frame without a lag
  frame_scores: np.ndarray  # float32 [n], smoothed; nan for a frame without a lag
  peak: float  # the z of the best lag: comparable between faces


NO_LAG = np.iinfo(np.int16).min


def estimate(scores: Scores, calibration: Calibration) -> LagEstimate:
  """The lag of one face from its scores, with confidence and drift."""
  frame_lags, frame_scores = _frame_lags(scores.scores)
  curve, count = _mean_curve(scores)
  shared = dict(frame_lags=frame_lags, frame_scores=frame_scores, curve=curve[_NEAR])
  evidence = _evidence(curve, count, len(scores.scores))
  if evidence is None:
    return LagEstimate(
      lag=None, confidence=0.0, interval=None, score=0.0, synchronizable=0.0, right=0.0, drift_ms_per_min=None,
      peak=0.0, **shared,
    )  # fmt: skip
  right, present = calibration.probabilities(evidence)
  return LagEstimate(
    lag=int(LAGS[evidence.best]),
    confidence=right if present >= 0.5 else right * present,
    interval=calibration.interval(evidence),
    score=float(curve[_NEAR][evidence.best]),
    synchronizable=present,
    right=right,
    drift_ms_per_min=_drift(scores, calibration),
    peak=float(evidence.curve[evidence.best]),
    **shared,
  )


def evidence_of(scores: Scores) -> Evidence | None:
  """Evidence of the whole stretch; None if it is too short to try every lag."""
  return _evidence(*_mean_curve(scores), len(scores.scores))


def _mean_curve(scores: Scores, blocks: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
  """(float64 [121]: m(l), nan for lags with fewer than MIN_OVERLAP frames; int64 [121]: n(l))."""
  total, count = scores.wide_sum[blocks].sum(axis=0), scores.wide_count[blocks].sum(axis=0)
  return np.divide(total, count, out=np.full(len(WIDE_LAGS), np.nan), where=count >= MIN_OVERLAP), count


def _evidence(curve: np.ndarray, count: np.ndarray, frames: int) -> Evidence | None:
  if not np.isfinite(curve[_NEAR]).all():
    return None
  chance = np.isfinite(curve)
  for _ in range(2):  # first with all lags, then without those of the peak
    excess = np.sqrt(count) * (curve - np.average(curve[chance], weights=count[chance]))
    chance = np.isfinite(curve) & (np.abs(WIDE_LAGS - LAGS[excess[_NEAR].argmax()]) > PEAK_WIDTH)
  excess = np.sqrt(count) * (curve - np.average(curve[chance], weights=count[chance]))
  least = MIN_SPREAD * np.sqrt(count[chance].mean())
  spread = max(float(np.sqrt(np.square(excess[chance]).mean())), least)
  return Evidence(curve=excess[_NEAR] / spread, frames=frames)


def _frame_lags(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  lags, best = np.full(len(scores), NO_LAG, np.int16), np.full(len(scores), np.nan, np.float32)
  valid = np.flatnonzero(np.isfinite(scores[:, 0]))
  if len(valid):
    smoothed = smooth(scores[valid].astype(np.float32), SMOOTHING)
    lags[valid], best[valid] = LAGS[smoothed.argmax(axis=1)], smoothed.max(axis=1)
  return lags, best


def _drift(scores: Scores, calibration: Calibration) -> float | None:
  """Slope of the lag over the file, ms per minute (Theil-Sen over windows of 10 s that have a lag).

  None if fewer than `DRIFT_WINDOWS` windows have a lag.
  """
  times, lags = [], []
  hop = max(DRIFT_HOP, len(scores.wide_sum) // _MOST_WINDOWS)
  for start in range(0, len(scores.wide_sum) - DRIFT_WINDOW + 1, hop):
    evidence = _evidence(*_mean_curve(scores, slice(start, start + DRIFT_WINDOW)), DRIFT_WINDOW * BLOCK)
    if evidence is not None and calibration.probabilities(evidence)[1] >= 0.5:
      times.append((start + DRIFT_WINDOW / 2) * BLOCK / FPS / 60)
      lags.append((LAGS[evidence.best] + _vertex(evidence.curve)) * 1000 / FPS)
  if len(times) < DRIFT_WINDOWS:
    return None
  import scipy.stats  # slow to import, and short files have no slope

  return float(scipy.stats.theilslopes(lags, times).slope)


def _vertex(curve: np.ndarray) -> float:
  """Sub-frame position of the peak, in -0.5 .. 0.5: the vertex of the parabola through it and its neighbours."""
  k = int(curve.argmax())
  if not 0 < k < len(curve) - 1:
    return 0.0
  left, middle, right = curve[k - 1 : k + 2]
  bend = left - 2 * middle + right
  return float(np.clip((left - right) / (2 * bend), -0.5, 0.5)) if bend < 0 else 0.0
