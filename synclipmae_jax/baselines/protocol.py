"""What the synchronisation protocol asks of a model: any that has these four things can stand in its tables."""

from __future__ import annotations

from typing import Any, Protocol

from synclipmae_jax.metrics.sync import PairScores
from synclipmae_jax.types import EvalClip


class SyncModel(Protocol):
  """A model that says how well the sound of one moment fits the picture of another."""

  name: str
  context_frames: int  # video frames that one token sees: the digit behind the names in the paper's tables

  @property
  def similarity(self) -> str | PairScores:
    """How an audio and a video token are compared: "cosine", "l2" (minus the distance, un-normalised), or a function
    (audio [n, ...], video [n, ...]) -> scores [n], larger where they fit better, of a model that judges pairs."""
    ...

  def embed(self, clip: EvalClip) -> tuple[Any, Any]:
    """(audio [T, ...], video [T, ...]), one token for every frame of the clip, each on its own timeline.

    Vectors [T, D], but for pair scorers, whose tokens are whatever their function takes. A token that sees several
    frames stands at their middle, in sound and picture alike; where they reach beyond the clip, its ends are repeated.
    """
    ...
