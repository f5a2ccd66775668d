"""Which rows of a clip's features a probe averages over. A row is a frame, or a clip of frames of a video encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from synclipmae_jax.types import InputError

PROTOCOLS = ("frames", "clips", "all")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """The rows whose logits are averaged.

  `frames`: the middles of `frames` equal parts of the clip. `clips`: `clips` runs of `clip_frames` neighbouring frames,
  evenly spread from the first frame to the last, as VideoMAE and MARLIN are tested. `all`: every row.

  A clip with fewer rows than asked for gives some of them several times, as evenly as can be; a run that is longer than
  the clip is the clip, so sampled. Where a row is of `row_frames` frames, so many rows are taken as have the frames
  that are asked for.
  """

  protocol: str = "frames"
  frames: int = 80
  clips: int = 5
  clip_frames: int = 16
  row_frames: int = 1

  def __post_init__(self):
    if self.protocol not in PROTOCOLS:
      raise InputError(f"unknown probe.protocol {self.protocol!r}: one of {', '.join(PROTOCOLS)}")
    if min(self.frames, self.clips, self.clip_frames) < 1:
      raise InputError(
        "probe.frames, probe.clips and probe.clip_frames are at least 1, not"
        f" {self.frames}, {self.clips} and {self.clip_frames}"
      )

  @property
  def shortest(self) -> int:
    """Clips with fewer rows give some of them several times."""
    return {"frames": self._rows_of(self.frames), "clips": self._rows_of(self.clip_frames), "all": 1}[self.protocol]

  def _rows_of(self, frames: int) -> int:
    return -(-frames // self.row_frames)

  def rows(self, count: int) -> np.ndarray:
    """The rows of a clip of `count` rows (at least one), int [n]."""
    match self.protocol:
      case "all":
        return np.arange(count)
      case "frames":
        return _spread(count, self._rows_of(self.frames))
    length = self._rows_of(self.clip_frames)
    run = _spread(min(count, length), length)
    starts = np.linspace(0, max(0, count - length), self.clips).round().astype(int)
    return (starts[:, None] + run).ravel()


def join(tokens: Sequence[np.ndarray], *, beside: bool) -> np.ndarray:
  """Tokens [..., D] each -> float32, their mean [..., D] or, `beside` one another, [..., n D]."""
  tokens = [np.asarray(token, np.float32) for token in tokens]
  return np.concatenate(tokens, axis=-1) if beside else np.mean(tokens, axis=0)


def _spread(count: int, wanted: int) -> np.ndarray:
  """The middles of `wanted` equal parts of `count` rows."""
  return ((2 * np.arange(wanted) + 1) * count) // (2 * wanted)
