"""Video encoders for the probe: VideoMAE and MARLIN, converted from the released weights or trained here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synclipmae_jax import checkpoints
from synclipmae_jax.baselines.videomae import VideoFeatures
from synclipmae_jax.convert import donor as donors
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.tasks.videomae import from_config
from synclipmae_jax.types import InputError

ITEM = "video_encoder"
# Of the released models: every how many frames one is seen, and whether of the face alone.
_AS_RELEASED: Mapping[str, dict[str, Any]] = {
  "videomae": dict(stride=4, face=False),
  "marlin": dict(stride=2, face=True),
}


def load_video_encoder(directory: str | Path, *, pool: str = "clip") -> VideoFeatures:
  """The encoder of a converted donor, or of a run of configs/videomae.py (a workdir or a step).

  A run's encoder sees whole record frames at the stride of its training. Raises InputError for another checkpoint.
  """
  saved = checkpoints.find_item(directory, ITEM)
  module, options = _described(checkpoints.load_meta(directory), directory)
  saved.refuse_difference(saved.leaves, module.abstract)
  return VideoFeatures(module, checkpoints.load_item(directory, ITEM), pool=pool, **options)


def _described(meta: Mapping[str, Any], directory: str | Path) -> tuple[Functional, dict[str, Any]]:
  try:
    if "conversion" in meta:
      said = meta["conversion"]
      return donors.load(said["donor"]).modules(**said["sizes"])[ITEM], dict(_AS_RELEASED[said["donor"]])
    task = from_config(meta["config"])
    return task.encoder, dict(stride=task.stride)
  except (KeyError, TypeError, ValueError) as error:
    raise InputError(f"{directory} does not describe a video encoder of this version: {error}") from error
