"""What `sync` says about a file: plain numbers, JSON-ready.

Signs and units. A lag is positive when the video lags the audio: the picture comes late, and the sound must be delayed
by as much to mend it. One frame is 40 ms: whatever the file's rate, lags are counted on the clock of 25 frames/s.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from synclipmae_jax.types import FPS

MS_PER_FRAME = 1000 / FPS
VERDICTS = ("in_sync", "out_of_sync", "not_synchronizable")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaceResult:
  """One face that was followed through the file."""

  id: int  # 0 is the face that is on screen most
  start: float  # s, first and last frame it is seen in
  end: float
  box: tuple[float, ...]  # its median box: x0, y0, x1, y1 as fractions of the picture
  speaking: float  # fraction of the file's speech frames that are its own
  lag_frames: float | None  # None where it cannot be told
  confidence: float
  score: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameResult:
  """One frame of the clock of 25 frames/s."""

  t: float  # s, from the file's first picture
  lag: int | None  # frames, the best of the smoothed scores; None where not all lags can be tried
  score: float | None  # of audio and lips at that lag, -1 .. 1, smoothed
  face: int | None  # the face that speaks, else the one that is followed; None without one
  speech: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyncResult:
  """The answer for one file."""

  file: str
  fps: float  # of the file
  duration_s: float
  lag_frames: float | None  # at 25 frames/s; None where not synchronizable
  lag_ms: float | None
  confidence: float  # calibrated probability that |error| <= 1 frame
  interval: tuple[int, int] | None  # the lags, in frames, that hold 95 % of the probability
  score: float  # mean score of audio and lips at the lag, -1 .. 1
  verdict: str  # one of VERDICTS
  reason: str  # one sentence: why this verdict
  drift_ms_per_min: float | None  # how the lag changes over the file; None where it is too short to tell
  faces: tuple[FaceResult, ...]
  frames: tuple[FrameResult, ...]
  curve: tuple[float, ...]  # the mean score of every lag, -15 .. 15
  checkpoint: str  # the model that was asked
  notes: tuple[str, ...] = ()  # what a reader must know: a truncated tail, synthetic training data, ...
  # float16 [len(frames), 31], s(l, t), nan where not all lags can be tried: for a plot, never in the JSON.
  score_map: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)

  def to_json(self) -> dict[str, Any]:
    """One object of plain values; what is not defined is null."""
    plain = _plain(dataclasses.asdict(dataclasses.replace(self, score_map=None)))
    del plain["score_map"]
    return plain


def _plain(value: Any) -> Any:
  if isinstance(value, dict):
    return {name: _plain(entry) for name, entry in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(entry) for entry in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
