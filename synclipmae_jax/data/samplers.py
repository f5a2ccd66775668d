"""Which stretches of a record a training batch takes. They are handed to `pipeline.train_batches`.

A sampler sorts records by length into buckets, one static shape of a batch each, and places the stretches of one.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Protocol

import numpy as np

from synclipmae_jax.types import InputError


class Sampler(Protocol):
  @property
  def windows(self) -> int: ...  # stretches that a record gives; they are neighbours in the batch
  @property
  def lengths(self) -> tuple[int, ...]: ...  # frames of a stretch, one bucket each
  @property
  def padded(self) -> bool: ...  # a stretch may be longer than its record: batches carry `length`
  @property
  def across(self) -> float: ...  # share of records whose last stretch is of another record of the subject, if any
  @property
  def needs(self) -> str: ...  # of a record, in words: "no clip has ..."

  def bucket(self, n_frames: np.ndarray) -> np.ndarray:
    """int [records] -> int [records]: the bucket of each record; -1 where it is left out."""
    ...

  def starts(self, n_frames: int, rng: np.random.Generator) -> list[int]:
    """The first frames of the stretches of a record, ascending."""
    ...


@dataclasses.dataclass(frozen=True)
class WindowPair:
  """Two windows of one subject in different motion (pretraining).

  They are disjoint windows of one record or, with probability `across`, windows of two records of the subject where it
  has several: other scenes, clothes and light, so that all they share is the person.
  """

  frames: int
  across: float = 0.0
  windows: ClassVar[int] = 2
  padded: ClassVar[bool] = False

  @property
  def lengths(self) -> tuple[int, ...]:
    return (self.frames,)

  @property
  def needs(self) -> str:
    return f"{2 * self.frames} frames (two windows)"

  def bucket(self, n_frames: np.ndarray) -> np.ndarray:
    return np.where(n_frames >= 2 * self.frames, 0, -1)

  def starts(self, n_frames: int, rng: np.random.Generator) -> list[int]:
    # Two distinct numbers of slack + 2 are all placements of two disjoint windows, each as likely.
    slack = n_frames - 2 * self.frames
    low, high = sorted(rng.choice(slack + 2, 2, replace=False).tolist())
    return [low, high - 1 + self.frames]


@dataclasses.dataclass(frozen=True)
class SingleWindow:
  """One window of a record, anywhere in it."""

  frames: int
  across: ClassVar[float] = 0.0
  windows: ClassVar[int] = 1
  padded: ClassVar[bool] = False

  @property
  def lengths(self) -> tuple[int, ...]:
    return (self.frames,)

  @property
  def needs(self) -> str:
    return f"{self.frames} frames"

  def bucket(self, n_frames: np.ndarray) -> np.ndarray:
    return np.where(n_frames >= self.frames, 0, -1)

  def starts(self, n_frames: int, rng: np.random.Generator) -> list[int]:
    return [int(rng.integers(n_frames - self.frames + 1))]


@dataclasses.dataclass(frozen=True)
class WholeClip:
  """The whole record, padded to the shortest of `lengths` that holds it; longer records are left out.

  A batch has records of one bucket. Buckets come as often as their records.
  """

  lengths: tuple[int, ...]  # frames, ascending
  across: ClassVar[float] = 0.0
  windows: ClassVar[int] = 1
  padded: ClassVar[bool] = True

  def __post_init__(self):
    if not self.lengths or list(self.lengths) != sorted({*self.lengths}) or self.lengths[0] < 1:
      raise InputError(f"the lengths of whole clips must be frames in ascending order, not {self.lengths}")

  @property
  def needs(self) -> str:
    return f"at most {self.lengths[-1]} frames"

  def bucket(self, n_frames: np.ndarray) -> np.ndarray:
    found = np.searchsorted(self.lengths, n_frames)
    return np.where(found < len(self.lengths), found, -1)

  def starts(self, n_frames: int, rng: np.random.Generator) -> list[int]:
    return [0]
