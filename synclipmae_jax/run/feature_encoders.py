"""The frozen encoders that a linear probe can stand on, by name. A new one needs a class and an entry of `ENCODERS`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax
import numpy as np

from synclipmae_jax import checkpoints
from synclipmae_jax.baselines.protocol import FeatureEncoder
from synclipmae_jax.pretrained import SyncLipMAE
from synclipmae_jax.run.video_encoders import NAMES, TubeFeatures
from synclipmae_jax.types import InputError

SYNCLIPMAE = "synclipmae"
BLOCK = 128  # frames that are encoded at once


class TokenFeatures:
  """The visual tokens of SyncLipMAE, one row a frame. The paper's probe reads the mean of vocal and ambient token."""

  name, row_frames = "SyncLipMAE", 1
  names: tuple[str, ...] = ("identity", "vocal", "ambient")
  tokens: tuple[str, ...] = ("vocal", "ambient")

  def __init__(self, model: SyncLipMAE):
    self.checkpoint, self.image_size = model.name, model.image_size
    self.sha256 = visual_hash(model)
    self._params = model.embedder.params
    self._embed = jax.jit(
      lambda params, frames, face_box, mouth_box: model.embedder.model.embed_visual(
        params, frames[None], face_box=face_box[None], mouth_box=mouth_box[None]
      )
    )

  def features(self, frames: np.ndarray, *, face_box: np.ndarray, mouth_box: np.ndarray) -> Mapping[str, np.ndarray]:
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in self.names}
    for start in range(0, len(frames), BLOCK):
      block = [x[start : start + BLOCK] for x in (frames, face_box, mouth_box)]
      count = len(block[0])
      padded = [np.pad(x, [(0, BLOCK - count)] + [(0, 0)] * (x.ndim - 1), "edge") for x in block]
      tokens = self._embed(self._params, *padded)
      for name, parts in pieces.items():
        parts.append(np.asarray(getattr(tokens, name)[0])[:count])
    return {name: np.concatenate(parts) for name, parts in pieces.items()}


class PictureFeatures:
  """The bare picture of 16 x 16 pixels, one row a frame: what a probe reads that nothing was pretrained for."""

  name, checkpoint, row_frames = "bare picture", "no parameters", 1
  names: tuple[str, ...] = ("picture",)
  tokens = names
  image_size = 16  # clips are read at this size
  sha256 = f"picture {image_size} x {image_size}"

  def features(self, frames: np.ndarray, *, face_box: np.ndarray, mouth_box: np.ndarray) -> Mapping[str, np.ndarray]:
    return {"picture": frames.reshape(len(frames), -1) / np.float32(255)}


def visual_hash(model: SyncLipMAE) -> str:
  """The hash of the parameters that make visual tokens."""
  return checkpoints.tree_hash(model.embedder.params["visual_encoder"])


def _picture(directory: str | None) -> FeatureEncoder:
  if directory:
    raise InputError(f"the bare picture has no parameters and takes no checkpoint, got {directory}")
  return PictureFeatures()


ENCODERS: dict[str, Callable[[str | None], FeatureEncoder]] = {
  SYNCLIPMAE: lambda directory: TokenFeatures(SyncLipMAE.load(directory)),
  "picture": _picture,
  **{kind: functools.partial(TubeFeatures, kind) for kind in NAMES},
}


def load_encoder(kind: str, directory: str | None) -> FeatureEncoder:
  """The encoder `kind` of `ENCODERS` from a checkpoint; None: the one of the package. Raises InputError."""
  if kind not in ENCODERS:
    raise InputError(f"unknown encoder.kind {kind!r}: one of {', '.join(ENCODERS)}")
  return ENCODERS[kind](directory)
