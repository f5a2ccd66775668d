"""The interfaces that a model needs for the synchronisation evaluation and for linear probes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from synclipmae_jax.metrics.sync import PairScores
from synclipmae_jax.types import EvalClip


class SyncModel(Protocol):
  """A model that scores how well the sound at one time matches the picture at another."""

  name: str
  context_frames: int  # video frames that one token sees: the number after the model names in the paper's tables

  @property
  def similarity(self) -> str | PairScores:
    """Comparison of an audio and a video token: "cosine", "l2" (minus the distance, not normalised), or, for a model
    that scores pairs, a function (audio [n, ...], video [n, ...]) -> scores [n], larger for a better match."""
    ...

  def embed(self, clip: EvalClip) -> tuple[Any, Any]:
    """(audio [T, ...], video [T, ...]), one token per frame of the clip, each on its own timeline.

    Tokens are vectors [T, D]. For a model that scores pairs they are the inputs of its function. A token that sees
    several frames belongs to their centre, for audio and video. Beyond the clip, its first or last frame is repeated.
    """
    ...


class FeatureEncoder(Protocol):
  """A frozen encoder behind a linear probe (`configs/probe.py`); `run.feature_encoders` has the table of them.

  A row of its features is a frame, or a clip of `row_frames` > 1 frames for an encoder of video. The first clip starts
  with the first frame; in what step the others follow, and what becomes of frames that fill no clip, is its own choice.
  There is at least one row, however few the frames: they are then repeated.
  """

  name: str  # in tables
  checkpoint: str  # where its parameters come from, in messages
  sha256: str  # of its parameters: the key of cached features
  image_size: int
  row_frames: int
  names: tuple[str, ...]  # of its features
  tokens: tuple[str, ...]  # of these, the features whose mean is probed unless told otherwise

  def features(self, frames: np.ndarray, *, face_box: np.ndarray, mouth_box: np.ndarray) -> Mapping[str, np.ndarray]:
    """`names` -> float [rows, D], all of one D, of a clip uint8 [T, S, S, 3] with boxes [T, 4] as in `EvalClip`."""
    ...
