"""The segments of a video of any length: each is generated at once, after the last picture of the one before."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from synclipmae_jax.data.dubbing import SEGMENT
from synclipmae_jax.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
  """Frames [start, stop) of a video, at most `SEGMENT`.

  `first` is the first frame of its shot, whose picture is the identity reference of all segments of the shot.
  """

  start: int
  stop: int
  first: int

  @property
  def history(self) -> int | None:
    """The frame before the segment, as it was put together; None at the beginning of a shot."""
    return self.start - 1 if self.start > self.first else None

  def take(self, rows: np.ndarray) -> np.ndarray:
    """`SEGMENT` rows of an array [T, ...], one per frame; the last is repeated where the segment is shorter."""
    return rows[np.minimum(np.arange(self.start, self.start + SEGMENT), self.stop - 1)]

  def give(self, rows: np.ndarray) -> np.ndarray:
    """The rows of the segment's own frames of what was generated for `take`."""
    return rows[: self.stop - self.start]


def plan(face: np.ndarray, *, cuts: Iterable[int] = ()) -> list[Segment]:
  """The segments of a video, in order.

  `face` [T]: whether a frame has a face; one without is in no segment and stays as it is. `cuts` are the first frames
  of new shots. A shot begins after a gap in the face and at a cut; within it, segments follow one another without gap
  or overlap and only the last is shorter than `SEGMENT`. Raises InputError if no frame has a face.
  """
  face = np.asarray(face, bool)
  if face.ndim != 1 or not face.any():
    raise InputError("there is no face in the video")
  begins = face & ~np.concatenate([[False], face[:-1]])
  begins[[cut for cut in cuts if 0 <= cut < len(face)]] = True
  starts = np.flatnonzero(begins & face)
  gaps = np.append(np.flatnonzero(~face), len(face))
  shots = []
  for start, following in zip(starts, [*starts[1:], len(face)], strict=True):
    shots.append((int(start), int(min(following, gaps[np.searchsorted(gaps, start)]))))
  return [
    Segment(start=begin, stop=min(begin + SEGMENT, stop), first=start)
    for start, stop in shots
    for begin in range(start, stop, SEGMENT)
  ]
