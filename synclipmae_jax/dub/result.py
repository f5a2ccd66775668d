"""What `Dubber.dub` says of its work."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dubbed:
  """What was done."""

  out: str
  frames: int  # of the result
  dubbed: int  # of them: with a generated mouth
  segments: int
  seconds: float
  driven_by: str  # "audio" or "video"
  fit: str
  checkpoint: str
  mouth_gain: float | None  # dB (`metrics.dubbing.mouth_gain`); None where the model does not say what to expect
  known: bool | None  # whether that is as much as of the faces that it was trained on
  notes: tuple[str, ...]
