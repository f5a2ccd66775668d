"""From two token sequences to a lag, and to how far it may be believed.

Scores. A lag l is positive when the video lags the audio. s(l, t) is the mean of two cosines between audio at t and
vocal motion at t + l: of the tokens without their local mean, and of their change from frame to frame. The lag of a
stretch is the best of its mean curve m(l) = mean_t s(l, t) over the search range, -15 .. 15 frames. (The plain cosine
of the protocol, metrics.sync, does as well on footage like the training data; on a photograph whose jaw moves it finds
nothing in one clip of three, where these two find the lag with z = 3 to 5.)

Evidence. Whether a peak means anything is judged by the file itself: the same tokens held against each other at all
lags up to 60 frames but those of the peak show how far a mean score strays where nothing matches. With mu and sigma
the mean and the spread of those, z(l) = (m(l) - mu) / sigma has no unit, so it carries over from one model, face and
microphone to another far better than a cosine does. A still mouth, another speaker and noise have no lag at which z
stands out.

Confidence. Two numbers describe a stretch: the z of its peak, and by how much the peak stands above the best lag more
than one frame away. `calibration.Calibration` turns them into probabilities; what it knows was fitted on clips whose
lag is known.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.stats

from synclipmae_jax.metrics.sync import LAGS, MAX_LAG, smooth, unit
from synclipmae_jax.sync.calibration import Calibration, Evidence
from synclipmae_jax.types import FPS, SAMPLES_PER_FRAME

WIDE = 60  # frames: how far chance is sampled
WIDE_LAGS = np.arange(-WIDE, WIDE + 1)
_NEAR = slice(WIDE - MAX_LAG, WIDE + MAX_LAG + 1)  # the search range in them
HALF_MEAN = 125  # frames on each side over which tokens are centred
MIN_OVERLAP = 16  # frames that must have a lag for it to count: 31 frames then have all lags of the search range
PEAK_WIDTH = 3  # frames around the best lag that say nothing about chance
MIN_SPREAD = 1e-4  # of a mean cosine: below it there is nothing but rounding
BLOCK = 64  # frames whose wide sums are kept together: enough to weigh a stretch of a file by itself
SMOOTHING = 51  # frames the lag of a single frame is read from
SPEECH_FLOOR = -55.0  # dB of full scale
SPEECH_RANGE = 30.0  # dB below the loud parts of the file
MIN_SPEECH = 12  # frames, half a second
DRIFT_WINDOW, DRIFT_HOP = 4, 1  # blocks: 10 s, every 2.6 s
DRIFT_WINDOWS = 8  # fewer tell no slope
_MOST_WINDOWS = 1000  # of the longest files: each pair of them is a slope


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
  """What `LagScorer` keeps of n frames."""

  scores: np.ndarray  # float16 [n, 31]: s(l, t); rows of nan where not all lags exist
  wide_sum: np.ndarray  # float64 [blocks, 121]: the sum of s(l, t) over the frames of a block that have the lag
  wide_count: np.ndarray  # int64 [blocks, 121]: how many frames those are


class LagScorer:
  """Collects s(l, t) of one face from tokens that arrive in order of time, in constant memory but for 31 numbers a
  frame. The local mean is over the 10 s around each frame: it holds the speaker, the light and the microphone.
  """

  def __init__(self):
    self._raw = _Window(HALF_MEAN)
    self._compared = _Window(WIDE)  # rows whose inner product is s
    self._rows: list[np.ndarray] = []
    self._sums: list[np.ndarray] = []
    self._counts: list[np.ndarray] = []

  def push(self, audio: np.ndarray, vocal: np.ndarray) -> None:
    """float [n, D] each: the next n frames; a row of nan where there is no token, as where the face is not seen.

    Raises ValueError where the two differ in shape.
    """
    audio, vocal = np.asarray(audio, np.float32), np.asarray(vocal, np.float32)
    if audio.ndim != 2 or audio.shape != vocal.shape:
      raise ValueError(f"audio {audio.shape} and vocal {vocal.shape} tokens must both be [n, D]")
    self._raw.push(np.stack([audio, vocal], axis=1))
    self._advance(last=False)

  def finish(self) -> Scores:
    """All that was pushed; the scorer is done with."""
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
      motion = np.where(np.isfinite(motion), motion, 0)  # beside a frame without a token
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


def _from_zero(rows: np.ndarray) -> np.ndarray:
  """Running sums along axis 0, one row longer than `rows`: the sum of [a, b) is the difference of two of them."""
  return np.concatenate([np.zeros_like(rows[:1], np.float64), rows.cumsum(axis=0, dtype=np.float64)])


class _Window:
  """A stretch of a stream, in blocks of BLOCK frames, each with up to `reach` frames on both sides of it."""

  def __init__(self, reach: int):
    self._held: np.ndarray | None = None
    self._reach, self._at = reach, 0  # the next block begins at row `_at` of what is held

  def push(self, rows: np.ndarray) -> None:
    self._held = rows if self._held is None else np.concatenate([self._held, rows])

  def blocks(self, *, last: bool):
    """Yields (held rows, first row, stop row) of each block whose surroundings are there; `last`: none will follow."""
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
  """The lag of one face's stretch and what speaks for it."""

  lag: int | None  # frames; None where there are too few to try every lag
  confidence: float  # P(|error| <= 1 frame); where there seems to be no lag, times the probability that there is one
  interval: tuple[int, int] | None  # lags, in frames
  score: float  # mean score at the lag, -1 .. 1
  synchronizable: float  # probability that there is a lag to be found
  curve: np.ndarray  # float64 [31], the mean score of every lag; nan where there is none
  drift_ms_per_min: float | None
  frame_lags: np.ndarray  # int [n]; NO_LAG where a frame has none
  frame_scores: np.ndarray  # float32 [n], smoothed; nan where a frame has no lag
  peak: float  # the z of the best lag: comparable between faces


NO_LAG = np.iinfo(np.int16).min


def estimate(scores: Scores, calibration: Calibration) -> LagEstimate:
  """Reads the lag, its confidence and its drift off the scores of one face."""
  frame_lags, frame_scores = _frame_lags(scores.scores)
  curve = _mean_curve(scores)
  shared = dict(frame_lags=frame_lags, frame_scores=frame_scores, curve=curve[_NEAR])
  evidence = _evidence(curve, len(scores.scores))
  if evidence is None:
    return LagEstimate(
      lag=None, confidence=0.0, interval=None, score=0.0, synchronizable=0.0, drift_ms_per_min=None, peak=0.0, **shared
    )
  right, present = calibration.probabilities(evidence)
  return LagEstimate(
    lag=int(LAGS[evidence.best]),
    confidence=right if present >= 0.5 else right * present,
    interval=calibration.interval(evidence),
    score=float(curve[_NEAR][evidence.best]),
    synchronizable=present,
    drift_ms_per_min=_drift(scores, calibration),
    peak=float(evidence.curve[evidence.best]),
    **shared,
  )


def evidence_of(scores: Scores) -> Evidence | None:
  """What the whole stretch shows; None where it is too short to try every lag."""
  return _evidence(_mean_curve(scores), len(scores.scores))


def _mean_curve(scores: Scores, blocks: slice = slice(None)) -> np.ndarray:
  """float64 [121]: m(l); nan for lags that too few frames have."""
  total, count = scores.wide_sum[blocks].sum(axis=0), scores.wide_count[blocks].sum(axis=0)
  return np.divide(total, count, out=np.full(len(WIDE_LAGS), np.nan), where=count >= MIN_OVERLAP)


def _evidence(curve: np.ndarray, frames: int) -> Evidence | None:
  near = curve[_NEAR]
  if not np.isfinite(near).all():
    return None
  chance = np.isfinite(curve) & (np.abs(WIDE_LAGS - LAGS[near.argmax()]) > PEAK_WIDTH)
  spread = max(float(curve[chance].std()), MIN_SPREAD)
  return Evidence(curve=(near - curve[chance].mean()) / spread, frames=frames)


def _frame_lags(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  lags, best = np.full(len(scores), NO_LAG, np.int16), np.full(len(scores), np.nan, np.float32)
  valid = np.flatnonzero(np.isfinite(scores[:, 0]))
  if len(valid):
    smoothed = smooth(scores[valid].astype(np.float32), SMOOTHING)
    lags[valid], best[valid] = LAGS[smoothed.argmax(axis=1)], smoothed.max(axis=1)
  return lags, best


def _drift(scores: Scores, calibration: Calibration) -> float | None:
  """Slope of the lag over the file, ms a minute (Theil-Sen over windows of 10 s that show a lag); None where fewer
  than `DRIFT_WINDOWS` of them do."""
  times, lags = [], []
  hop = max(DRIFT_HOP, len(scores.wide_sum) // _MOST_WINDOWS)
  for start in range(0, len(scores.wide_sum) - DRIFT_WINDOW + 1, hop):
    curve = _mean_curve(scores, slice(start, start + DRIFT_WINDOW))
    evidence = _evidence(curve, DRIFT_WINDOW * BLOCK)
    if evidence is not None and calibration.probabilities(evidence)[1] >= 0.5:
      times.append((start + DRIFT_WINDOW / 2) * BLOCK / FPS / 60)
      lags.append((LAGS[evidence.best] + _vertex(evidence.curve)) * 1000 / FPS)
  return float(scipy.stats.theilslopes(lags, times).slope) if len(times) >= DRIFT_WINDOWS else None


def _vertex(curve: np.ndarray) -> float:
  """Where between frames the peak lies, in -0.5 .. 0.5: the vertex of the parabola through it and its neighbours."""
  k = int(curve.argmax())
  if not 0 < k < len(curve) - 1:
    return 0.0
  left, middle, right = curve[k - 1 : k + 2]
  bend = left - 2 * middle + right
  return float(np.clip((left - right) / (2 * bend), -0.5, 0.5)) if bend < 0 else 0.0


def level_db(waveform: np.ndarray) -> np.ndarray:
  """Level of each whole frame of float [640 * n] in [-1, 1]: float32 [n], dB of full scale."""
  frames = len(waveform) // SAMPLES_PER_FRAME
  power = np.square(waveform[: frames * SAMPLES_PER_FRAME].reshape(frames, -1), dtype=np.float64).mean(axis=1)
  return (10 * np.log10(power + 1e-12)).astype(np.float32)


def speech_activity(level: np.ndarray) -> np.ndarray:
  """bool [n]: frames loud enough for speech, above -55 dB and within 30 dB of the loud parts of the file."""
  if not len(level):
    return np.zeros(0, bool)
  return level > max(SPEECH_FLOOR, float(np.percentile(level, 95)) - SPEECH_RANGE)
