"""Tokens of a file, and how they are computed in blocks of one shape, by whatever runs the model. Loads no jax."""

from __future__ import annotations

import abc
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from synclipmae_jax.types import SAMPLES_PER_FRAME, Tokens

DEMO = Path(__file__).parents[1] / "demo_checkpoint"  # the model that comes with the package


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockShape:
  """What of a model says how a file is cut for it."""

  image_size: int  # S
  block_frames: int
  audio_context: int  # frames of sound on both sides of a block
  looks: tuple[tuple[float, bool], ...]  # (zoom, mirrored), the first as it is


# The programs of a `BlockEncoder`, what they take and return. Pictures are uint8 [n, S, S, 3] and two float32 [n, 4],
# the boxes of face and mouth. A look is not made within the program that encodes it: there XLA computes its pixels anew
# wherever they are read, on a CPU seven times as much work.
FRAMES = "frames"  # pictures -> identity, vocal, ambient [n, D]
LIPS = "lips"  # pictures -> vocal [n, D]
ZOOM = "zoom"  # pictures, factor [] -> pictures
MIRROR = "mirror"  # pictures -> pictures
SOUND = "sound"  # float32 [1, 640 * (block and both contexts)] -> audio tokens [1, frames, D]


class BlockEncoder(abc.ABC):
  """A model that runs on blocks; a subclass runs one of them."""

  def __init__(self, shape: BlockShape):
    self.shape = shape
    self.image_size, self.block_frames = shape.image_size, shape.block_frames
    self.audio_context, self.looks = shape.audio_context, shape.looks

  @abc.abstractmethod
  def run(self, program: str, *arguments):
    """Runs one of FRAMES, LIPS, ZOOM, MIRROR and SOUND on one block."""

  def encode_frames(self, frames: np.ndarray, *, face_box, mouth_box) -> tuple[Tokens, np.ndarray]:
    """(visual tokens, lips) of face crops uint8 [n, S, S, 3], independent of each other; tokens are numpy [n, D].

    `lips` are the vocal tokens of all looks, float32 [n, looks * D]; `sync` compares them with `heard`.
    """

    def seen(*block) -> tuple:
      identity, vocal, ambient = self.run(FRAMES, *block)
      lips = [vocal]
      for zoom, looks in itertools.groupby(self.looks, key=lambda look: look[0]):
        zoomed = block if zoom == 1 else self.run(ZOOM, *block, np.float32(zoom))
        for look in looks:
          if look != self.looks[0]:
            lips.append(self.run(LIPS, *(self.run(MIRROR, *zoomed) if look[1] else zoomed)))
      return identity, vocal, ambient, np.concatenate(lips, axis=1)

    identity, vocal, ambient, lips = self._in_blocks(seen, frames, face_box, mouth_box)
    return Tokens(identity=identity, vocal=vocal, ambient=ambient, audio=None), lips

  def _in_blocks(self, run: Callable[..., tuple], frames, face_box, mouth_box) -> tuple[np.ndarray, ...]:
    """What `run` returns for blocks of pictures and boxes, joined; the last block repeats its last picture."""
    pieces, size = [], self.block_frames
    for start in range(0, len(frames), size):
      block = [np.asarray(x)[start : start + size] for x in (frames, face_box, mouth_box)]
      count = len(block[0])
      block = [np.pad(x, [(0, size - count)] + [(0, 0)] * (x.ndim - 1), "edge") for x in block]
      pieces.append([np.asarray(x)[:count] for x in run(*block)])
    return tuple(np.concatenate(x) for x in zip(*pieces, strict=True))

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
    return np.asarray(self.run(SOUND, waveform[None]))[0][self.audio_context :][: self.block_frames]
