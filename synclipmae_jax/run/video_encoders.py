"""Video encoders for the probe: VideoMAE and MARLIN, converted from the released weights or trained here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from synclipmae_jax import checkpoints
from synclipmae_jax.baselines.videomae import TUBELET, VideoFeatures
from synclipmae_jax.convert import donor as donors
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.tasks.videomae import from_config
from synclipmae_jax.types import InputError

ITEM = "video_encoder"
NAMES = {"videomae": "VideoMAE", "marlin": "MARLIN"}
# Of the released models: every how many frames one is seen, and whether of the face alone.
_AS_RELEASED: Mapping[str, dict[str, Any]] = {
  "videomae": dict(stride=4, face=False),
  "marlin": dict(stride=2, face=True),
}


class TubeFeatures:
  """VideoMAE or MARLIN behind a linear probe (`FeatureEncoder`): one row of every pair of frames that is seen.

  Windows follow one another as in `VideoFeatures`; the frames that the last two share have two rows.
  """

  names: tuple[str, ...] = ("tubes",)
  tokens = names

  def __init__(self, kind: str, directory: str | None):
    if not directory:
      raise InputError(
        f"no {NAMES[kind]} comes with the package: give --config.encoder.checkpoint, a run of configs/videomae.py or a"
        " converted donor"
      )
    if (found := kind_of(directory)) != kind:
      raise InputError(f"{directory} is of {NAMES[found]}: give --config.encoder.kind={found}")
    self._model = load_video_encoder(directory, pool="pair")
    self.name, self.checkpoint, self.image_size = NAMES[kind], directory, self._model.image_size
    self.sha256, self.row_frames = checkpoints.tree_hash(self._model.params), TUBELET * self._model.stride

  def features(self, frames: np.ndarray, *, face_box: np.ndarray, mouth_box: np.ndarray) -> Mapping[str, np.ndarray]:
    return {"tubes": self._model.embed(frames, face_box)}


def kind_of(directory: str | Path) -> str:
  """Which of `NAMES` a video encoder is. Raises InputError for another checkpoint."""
  return _described(checkpoints.load_meta(directory), directory)[0]


def load_video_encoder(directory: str | Path, *, pool: str = "clip") -> VideoFeatures:
  """The encoder of a converted donor, or of a run of configs/videomae.py (a workdir or a step).

  A run's encoder sees whole record frames at the stride of its training. Raises InputError for another checkpoint.
  """
  saved = checkpoints.find_item(directory, ITEM)
  _, module, options = _described(checkpoints.load_meta(directory), directory)
  saved.refuse_difference(saved.leaves, module.abstract)
  return VideoFeatures(module, checkpoints.load_item(directory, ITEM), pool=pool, **options)


def _described(meta: Mapping[str, Any], directory: str | Path) -> tuple[str, Functional, dict[str, Any]]:
  """(kind, module, how it sees a video)."""
  try:
    if "conversion" in meta:
      said = meta["conversion"]
      kind = said["donor"]
      return kind, donors.load(kind).modules(**said["sizes"])[ITEM], dict(_AS_RELEASED[kind])
    task = from_config(meta["config"])
    return "marlin" if task.mask == "fasking" else "videomae", task.encoder, dict(stride=task.stride)
  except (KeyError, TypeError, ValueError) as error:
    raise InputError(f"{directory} does not describe a video encoder of this version: {error}") from error
