"""The interface that a model needs for the synchronisation evaluation."""

from __future__ import annotations

from typing import Any, Protocol

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
