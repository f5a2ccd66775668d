"""The models of the synchronisation protocol, by name. The code of a model is imported when it is loaded."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from synclipmae_jax import checkpoints, sharding
from synclipmae_jax.baselines.protocol import SyncModel
from synclipmae_jax.baselines.windows import picture_rows
from synclipmae_jax.evaluation.protocol import LseOf, stable_syncnet_lse, syncnet_lse
from synclipmae_jax.metrics.sync import unit
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.types import EvalClip, InputError, Params

if TYPE_CHECKING:
  from synclipmae_jax.pretrained import SyncLipMAE


class EmbeddedTokens:
  """SyncLipMAE as a `baselines.protocol.SyncModel`. Each visual token depends on one frame.

  With `context_frames` > 1 the tokens of that many neighbouring frames are concatenated, so that two moments are
  compared by their mean similarity. This serves comparisons with models whose tokens depend on several frames.
  """

  name = "SyncLipMAE"
  similarity = "cosine"

  def __init__(self, model: SyncLipMAE, *, context_frames: int = 1):
    self.model, self.image_size, self.context_frames = model, model.image_size, context_frames

  def embed(self, clip: EvalClip) -> tuple[np.ndarray, np.ndarray]:
    """(audio, vocal), each [T, context_frames * D], of a clip of frames of `image_size` pixels."""
    tokens: Any = self.model.embed(clip.frames, clip.waveform, face_box=clip.face_box, mouth_box=clip.mouth_box)
    neighbours = picture_rows(len(clip.frames), self.context_frames)
    side_by_side = lambda x: unit(x, np.float32)[neighbours].reshape(len(x), -1)
    return side_by_side(tokens.audio), side_by_side(tokens.vocal)


def _synclipmae(directory: str | None, *, context_frames: int = 1) -> SyncModel:
  from synclipmae_jax.pretrained import SyncLipMAE

  return EmbeddedTokens(SyncLipMAE.load(directory), context_frames=context_frames)


def _syncnet(directory: str) -> SyncModel:
  """From converted weights (compared by L2 distance) or from the workdir of a run of configs/syncnet.py."""
  from synclipmae_jax.baselines.syncnet import SyncNetTokens

  if (Path(directory) / "calibrated").is_dir():
    step = checkpoints.resolve_step(Path(directory) / "calibrated")
    meta = checkpoints.load_meta(step)
    return SyncNetTokens(checkpoints.load_item(step, "syncnet"), similarity=meta["similarity"], **meta["sizes"])
  _, sizes, params = load_baseline("syncnet", directory)
  return SyncNetTokens(params, **sizes)


def _stable_syncnet(directory: str) -> SyncModel:
  from synclipmae_jax.baselines.stable_syncnet import StableSyncNetJudge

  module, _, params = load_baseline("stable_syncnet", directory)
  return StableSyncNetJudge(module, params)


def _vocalist(directory: str) -> SyncModel:
  from synclipmae_jax.baselines.vocalist import VocalistJudge

  module, _, params = load_baseline("vocalist", directory)
  return VocalistJudge(module, params)


def load_baseline(kind: str, directory: str) -> tuple[Functional, dict[str, Any], Params]:
  """(module, its sizes, parameters) of a converted baseline. Raises InputError."""
  from synclipmae_jax.convert import donor as donors

  donor, saved = donors.load(kind), checkpoints.find_item(directory, kind)
  shapes = {path: leaf.shape for path, leaf in sharding.tree_paths({kind: saved.leaves})}
  try:
    sizes = donor.sizes(shapes)
    module = donor.modules(**sizes)[kind]
  except (ValueError, TypeError, LookupError, ArithmeticError) as error:
    raise InputError(f"the item {kind!r} of {directory} is not {donor.title} ({error})") from error
  saved.refuse_difference(saved.leaves, module.abstract)
  return module, sizes, jax.device_put(checkpoints.load_item(directory, kind))


OURS = ("synclipmae", "synclipmae-5")  # no directory needed: a checkpoint comes with the package
MODELS: dict[str, Callable[[str | None], SyncModel]] = {
  "synclipmae": _synclipmae,
  "synclipmae-5": functools.partial(_synclipmae, context_frames=5),
  "syncnet": _syncnet,
  "stable_syncnet": _stable_syncnet,
  "vocalist": _vocalist,
}
# LSE is defined for the released models. A SyncNet trained with this package compares by cosine.
_LSE = {("syncnet", "l2"): syncnet_lse, ("stable_syncnet", "cosine"): stable_syncnet_lse}


def load_model(kind: str, directory: str | None) -> SyncModel:
  """The model `kind` of `MODELS` from a checkpoint. Raises InputError if the checkpoint does not hold that model."""
  return MODELS[kind](directory)


def lse_of(kind: str, model: SyncModel) -> LseOf | None:
  """The function from tokens to LSE-C and LSE-D for a model; None if they are not defined for it."""
  return _LSE.get((kind, model.similarity)) if isinstance(model.similarity, str) else None
