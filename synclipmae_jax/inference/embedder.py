"""Computes tokens from arrays of face crops and sound, in blocks of one shape."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from synclipmae_jax.models import augment, synclipmae
from synclipmae_jax.types import FPS, SAMPLES_PER_FRAME, InputError, Params, Tokens

BLOCK_FRAMES = 128  # minimum number of frames in a block
_STEP = 32  # frames: `encode_lips` pads to a multiple of it, so that few lengths are compiled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedding:
  """Tokens of T frames at 25 frames/s, not normalised. Rows without a face are nan, except in `audio`."""

  identity: np.ndarray  # float32 [T, D]
  vocal: np.ndarray  # float32 [T, D]
  ambient: np.ndarray  # float32 [T, D]
  audio: np.ndarray  # float32 [T, D]
  times: np.ndarray  # float64 [T], seconds from the first picture
  face_box: np.ndarray  # float32 [T, 4] x0, y0, x1, y1 as fractions of the picture
  notes: tuple[str, ...] = ()  # what a reader must know of how the file was read


class Embedder:
  """A model and its parameters, compiled for blocks of frames.

  `image_size` is S; a block has `block_frames` frames and `audio_context` more frames of sound on both sides.
  """

  def __init__(self, model: synclipmae.SyncLipMAEModel, params: Params):
    self.model, self.params = model, params
    # Detectors differ in the extent of a face. If training jittered the crop, vocal tokens are also computed from wider
    # and closer crops and from their mirror images: the evidence for the lag grows (z of a photograph 2.9 -> 3.5, of
    # talks 2.3 -> 2.5); on footage like the training data it stays.
    jitter = model.crop_jitter
    factors = tuple(jitter["zoom"] ** power for power in (0.0, -0.5, 0.5, 1.0)) if jitter else (1.0,)
    sides = (False, True) if jitter and jitter.get("mirror") else (False,)
    self.looks = tuple(itertools.product(factors, sides))  # (factor, mirrored), the first as it is
    self.image_size = model.image_size
    lead = (model.audio_frames - model.clip_frames) // 2
    # A multiple of the clip length keeps the windows of a block equal to those of the file; `+ 1` covers the margin.
    self.audio_context = -(-(lead + 1) // model.clip_frames) * model.clip_frames
    self.block_frames = -(-BLOCK_FRAMES // model.clip_frames) * model.clip_frames
    self._encode_frames = jax.jit(functools.partial(_encode_frames, model, self.looks))
    self._encode_once = jax.jit(functools.partial(_encode_frames, model, self.looks[:1]))
    self._encode_sound = jax.jit(lambda params, waveform: model.embed_audio(params, params, waveform))

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
    tokens, _ = self._encode(self._encode_once, frames, face_box, mouth_box)
    whole = np.tile(np.array([0, 0, 1, 1], np.float32), (len(frames), 1))
    box = whole if face_box is None else np.asarray(face_box, np.float32)
    return Embedding(
      identity=tokens.identity,
      vocal=tokens.vocal,
      ambient=tokens.ambient,
      audio=self.embed_sound(waveform),
      times=np.arange(len(frames)) / FPS,
      face_box=box,
    )

  def encode_frames(self, frames: np.ndarray, *, face_box=None, mouth_box=None) -> tuple[Tokens, np.ndarray]:
    """(visual tokens, lips) of face crops uint8 [n, S, S, 3], independent of each other; tokens are numpy [n, D].

    `lips` are the vocal tokens of all looks, float32 [n, looks * D]; `sync` compares them with `heard`.
    """
    return self._encode(self._encode_frames, frames, face_box, mouth_box)

  def _encode(self, compiled, frames, face_box, mouth_box) -> tuple[Tokens, np.ndarray]:
    prior = np.array(synclipmae.masking.FACE_PRIOR, np.float32)
    face_box = np.tile(prior, (len(frames), 1)) if face_box is None else face_box
    mouth_box = np.full((len(frames), 4), -1, np.float32) if mouth_box is None else mouth_box
    pieces, size = [], self.block_frames
    for start in range(0, len(frames), size):
      block = [np.asarray(x)[start : start + size] for x in (frames, face_box, mouth_box)]
      count = len(block[0])
      block = [np.pad(x, [(0, size - count)] + [(0, 0)] * (x.ndim - 1), "edge") for x in block]
      tokens, lips = compiled(self.params, *block)
      pieces.append([np.asarray(x)[:count] for x in (tokens.identity, tokens.vocal, tokens.ambient, lips)])
    identity, vocal, ambient, lips = (np.concatenate(x) for x in zip(*pieces, strict=True))
    return Tokens(identity=identity, vocal=vocal, ambient=ambient, audio=None), lips

  def encode_lips(self, frames: np.ndarray, *, face_box: np.ndarray, mouth_box: np.ndarray) -> np.ndarray:
    """Only the vocal tokens [n, D] of `encode_frames`, for a fraction of its cost: of one look."""
    pieces = [np.zeros((0, self.model.width), np.float32)]
    for start in range(0, len(frames), self.block_frames):
      block = [np.asarray(x)[start : start + self.block_frames] for x in (frames, face_box, mouth_box)]
      count = len(block[0])
      padding = min(-count % _STEP, self.block_frames - count)
      block = [np.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1), "edge") for x in block]
      pieces.append(np.asarray(self._encode_once(self.params, *block)[1])[:count])
    return np.concatenate(pieces)

  def heard(self, audio: np.ndarray) -> np.ndarray:
    """Audio tokens [n, D] repeated for the comparison with the lips of all looks: [n, looks * D]."""
    return np.tile(audio, len(self.looks))

  def embed_sound(self, waveform: np.ndarray) -> np.ndarray:
    """Audio tokens [T, D] of a whole waveform, float32 [640 * T]."""
    size, context, frames = self.block_frames, self.audio_context, len(waveform) // SAMPLES_PER_FRAME
    padded = np.pad(waveform, (SAMPLES_PER_FRAME * context, SAMPLES_PER_FRAME * (size + context)))
    blocks = [
      self.encode_sound(padded[SAMPLES_PER_FRAME * start :][: SAMPLES_PER_FRAME * (size + 2 * context)])
      for start in range(0, frames, size)
    ]
    return np.concatenate(blocks)[:frames]

  def encode_sound(self, waveform: np.ndarray) -> np.ndarray:
    """Audio tokens [block_frames, D] of one block, from its sound and `audio_context` frames on both sides."""
    tokens = self._encode_sound(self.params, waveform[None])[0]
    return np.asarray(tokens)[self.audio_context :][: self.block_frames]


def _encode_frames(model, looks, params, frames, face_box, mouth_box):
  boxes = jnp.stack([face_box, mouth_box])
  others = [augment.zoomed(frames, boxes, factor=factor, mirrored=mirrored) for factor, mirrored in looks[1:]]
  # One call a look: of all but the first only the vocal tokens are wanted, so that their identity is never computed.
  seen = [
    model.embed_visual(params, pictures[None], face_box=there[None, 0], mouth_box=there[None, 1])
    for pictures, there in ((frames, boxes), *others)
  ]
  own = jax.tree.map(lambda x: x[0], seen[0])
  return own, jnp.concatenate([tokens.vocal[0] for tokens in seen], axis=-1)
