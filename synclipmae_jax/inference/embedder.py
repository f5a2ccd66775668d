"""Computes tokens from arrays of face crops and sound, in blocks of one shape."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from synclipmae_jax.inference.blocks import FRAMES, LIPS, MIRROR, SOUND, ZOOM, BlockEncoder, BlockShape, Embedding
from synclipmae_jax.models import augment, synclipmae
from synclipmae_jax.types import FPS, SAMPLES_PER_FRAME, InputError, Params, Tokens

BLOCK_FRAMES = 128  # minimum number of frames in a block
_STEP = 32  # frames: `encode_lips` pads to a multiple of it, so that few lengths are compiled


class Embedder(BlockEncoder):
  """A model and its parameters, compiled for blocks of frames."""

  def __init__(self, model: synclipmae.SyncLipMAEModel, params: Params):
    self.model, self.params = model, params
    # Detectors differ in the extent of a face. If training jittered the crop, vocal tokens are also computed from wider
    # and closer crops and from their mirror images: the evidence for the lag grows (z of a photograph 2.9 -> 3.5, of
    # talks 2.3 -> 2.5); on footage like the training data it stays.
    jitter = model.crop_jitter
    factors = tuple(jitter["zoom"] ** power for power in (0.0, -0.5, 0.5, 1.0)) if jitter else (1.0,)
    sides = (False, True) if jitter and jitter.get("mirror") else (False,)
    lead = (model.audio_frames - model.clip_frames) // 2
    # A multiple of the clip length keeps the windows of a block equal to those of the file; `+ 1` covers the margin.
    shape = BlockShape(
      image_size=model.image_size,
      block_frames=-(-BLOCK_FRAMES // model.clip_frames) * model.clip_frames,
      audio_context=-(-(lead + 1) // model.clip_frames) * model.clip_frames,
      looks=tuple(itertools.product(factors, sides)),
    )
    super().__init__(shape)
    seen = functools.partial(_embed_frames, model)
    programs: dict[str, Callable[..., Any]] = {
      FRAMES: seen,
      LIPS: lambda params, *pictures: seen(params, *pictures)[1],
      ZOOM: lambda _, *pictures_and_factor: _zoom(*pictures_and_factor),
      MIRROR: lambda _, *pictures: _mirror(*pictures),
      SOUND: lambda params, waveform: model.embed_audio(params, params, waveform),
    }
    self.programs = {name: jax.jit(program) for name, program in programs.items()}  # of parameters and arguments

  def run(self, program: str, *arguments):
    return self.programs[program](self.params, *arguments)

  def embed(
    self,
    frames: np.ndarray,
    waveform: np.ndarray | None,
    *,
    face_box: np.ndarray | None = None,
    mouth_box: np.ndarray | None = None,
  ) -> Embedding:
    """Tokens of face crops and their sound.

    `frames`: uint8 [T, S, S, 3] RGB at 25 frames/s; `waveform`: float32 [640 * T] in [-1, 1] at 16 kHz; boxes: [T, 4]
    as fractions of the crop, if known. Raises InputError for other shapes or dtypes.
    """
    if frames.ndim != 4 or frames.shape[1:] != (self.image_size, self.image_size, 3) or frames.dtype != np.uint8:
      raise InputError(
        f"frames must be uint8 [T, {self.image_size}, {self.image_size}, 3], not {frames.dtype} {list(frames.shape)}"
      )
    if not len(frames):
      raise InputError("no frames to embed")
    if waveform is None or np.shape(waveform) != (SAMPLES_PER_FRAME * len(frames),):
      raise InputError(f"{len(frames)} frames need a waveform of {SAMPLES_PER_FRAME * len(frames)} samples")
    if not np.issubdtype(waveform.dtype, np.floating):
      raise InputError(f"the waveform must be floating, in [-1, 1], not {waveform.dtype}")
    boxes = _boxes(len(frames), face_box, mouth_box)
    identity, vocal, ambient = self._in_blocks(functools.partial(self.run, FRAMES), frames, *boxes)
    whole = np.tile(np.array([0, 0, 1, 1], np.float32), (len(frames), 1))
    box = whole if face_box is None else np.asarray(face_box, np.float32)
    return Embedding(
      identity=identity,
      vocal=vocal,
      ambient=ambient,
      audio=self.embed_sound(waveform),
      times=np.arange(len(frames)) / FPS,
      face_box=box,
    )

  def encode_frames(self, frames: np.ndarray, *, face_box=None, mouth_box=None) -> tuple[Tokens, np.ndarray]:
    """See `BlockEncoder`. Without boxes the face is where it usually is in a crop."""
    face_box, mouth_box = _boxes(len(frames), face_box, mouth_box)
    return super().encode_frames(frames, face_box=face_box, mouth_box=mouth_box)

  def encode_lips(self, frames: np.ndarray, *, face_box: np.ndarray, mouth_box: np.ndarray) -> np.ndarray:
    """Only the vocal tokens [n, D] of `encode_frames`, for a fraction of its cost: of one look."""
    pieces = [np.zeros((0, self.model.width), np.float32)]
    for start in range(0, len(frames), self.block_frames):
      block = [np.asarray(x)[start : start + self.block_frames] for x in (frames, face_box, mouth_box)]
      count = len(block[0])
      padding = min(-count % _STEP, self.block_frames - count)
      block = [np.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1), "edge") for x in block]
      pieces.append(np.asarray(self.run(LIPS, *block))[:count])
    return np.concatenate(pieces)


def _boxes(count: int, face_box, mouth_box) -> tuple[np.ndarray, np.ndarray]:
  prior = np.array(synclipmae.masking.FACE_PRIOR, np.float32)
  return (
    np.tile(prior, (count, 1)) if face_box is None else face_box,
    np.full((count, 4), -1, np.float32) if mouth_box is None else mouth_box,
  )


def _embed_frames(model: synclipmae.SyncLipMAEModel, params: Params, frames, face_box, mouth_box) -> tuple:
  tokens = model.embed_visual(params, frames[None], face_box=face_box[None], mouth_box=mouth_box[None])
  return tokens.identity[0], tokens.vocal[0], tokens.ambient[0]


def _zoom(frames, face_box, mouth_box, factor) -> tuple:
  frames, boxes = augment.zoomed(frames, jnp.stack([face_box, mouth_box]), factor=factor)
  return frames, *boxes


def _mirror(frames, face_box, mouth_box) -> tuple:
  frames, boxes = augment.mirrored(frames, jnp.stack([face_box, mouth_box]))
  return frames, *boxes
