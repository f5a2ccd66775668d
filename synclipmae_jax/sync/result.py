"""Results of `sync` for a file: plain, JSON-ready values.

Signs and units. A lag is positive when the video lags the audio: the picture is late, and delaying the sound by the lag
corrects it. One frame is 40 ms: lags are counted at 25 frames/s for files of any frame rate.
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
  """One face tracked through the file."""

  id: int  # 0 is the face that is visible longest
  start: float  # s, first and last frame in which it is visible
  end: float
  box: tuple[float, ...]  # median box: x0, y0, x1, y1 as fractions of the picture
  speaking: float  # fraction of the file's speech frames attributed to it
  lag_frames: float | None  # None if it cannot be determined
  confidence: float
  score: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameResult:
  """One frame at 25 frames/s."""

  t: float  # s, from the file's first picture
  lag: int | None  # frames, maximum of the smoothed scores; None if not all lags can be tried
  score: float | None  # of audio and lips at that lag, -1 .. 1, smoothed
  face: int | None  # the speaking face, else the tracked face; None without a face
  speech: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyncResult:
  """The result for one file."""

  file: str
  fps: float  # of the file
  duration_s: float
  lag_frames: float | None  # at 25 frames/s; None if not synchronizable
  lag_ms: float | None
  confidence: float  # calibrated probability that |error| <= 1 frame
  interval: tuple[int, int] | None  # the lags, in frames, that hold 95 % of the probability
  score: float  # mean score of audio and lips at the lag, -1 .. 1
  verdict: str  # one of VERDICTS
  reason: str  # one sentence: the reason for the verdict
  drift_ms_per_min: float | None  # change of the lag over the file; None if the file is too short
  faces: tuple[FaceResult, ...]
  frames: tuple[FrameResult, ...]
  curve: tuple[float, ...]  # the mean score of every lag, -15 .. 15
  checkpoint: str  # the model
  notes: tuple[str, ...] = ()  # caveats: a truncated tail, synthetic training data, ...
  # float16 [len(frames), 31], s(l, t), nan if not all lags can be tried. For plots; not in the JSON.
  score_map: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)

  def to_json(self) -> dict[str, Any]:
    """One object of plain values; undefined values are null."""
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
