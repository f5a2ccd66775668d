"""Inputs of the pretrained synchronisation models: face pictures, and windows of pictures and mel columns per frame."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from synclipmae_jax.types import EvalClip


def picture_rows(frames: int, length: int) -> np.ndarray:
  """int [frames, length]: the pictures in the window of every frame t, which starts at t - length // 2.

  Near the ends of the clip the nearest whole window is used.
  """
  return np.minimum(_starts(frames, length) + np.arange(length), frames - 1)  # clips shorter than a window: repeat


def mel_windows(mel: np.ndarray, frames: int, *, length: int, columns: int) -> np.ndarray:
  """[bands, n] -> [frames, bands, columns]: the sound of the windows of `picture_rows`.

  The sound of a window starts at mel column int(80 * start / 25).
  """
  rows = 16 * _starts(frames, length) // 5 + np.arange(columns)
  return mel[:, np.minimum(rows, mel.shape[1] - 1)].swapaxes(0, 1)


def _starts(frames: int, length: int) -> np.ndarray:
  return (np.arange(frames)[:, None] - length // 2).clip(0, max(frames - length, 0))


def face_pictures(
  clip: EvalClip, *, size: int, above: float, below: float, method: str, antialias: bool, chunk: int = 64
) -> np.ndarray:
  """float32 [T, size, size, 3] in 0..255: one region of all frames, resampled to a square.

  The region is the median face box (brow to chin), extended by `above` and `below` times its height and clipped to the
  picture. There is one region per clip, so that all motion in it is motion of the face.
  """
  side = clip.frames.shape[1]
  x0, y0, x1, y1 = np.median(clip.face_box, axis=0).astype(float)
  height = y1 - y0
  low = side * np.clip([y0 - above * height, x0], 0, 1)
  high = side * np.clip([y1 + below * height, x1], 0, 1)
  high = np.minimum(np.maximum(high, low + 1), side)
  low = np.minimum(low, high - 1)
  return _region(clip.frames, low, high, size=size, method=method, antialias=antialias, chunk=chunk)


def square_pictures(
  frames: np.ndarray, face_box: np.ndarray | None, *, size: int, margins: tuple[float, float] | None = None
) -> np.ndarray:
  """uint8 [T, size, size, 3]: the whole pictures or, with `margins`, the square around the face, of all frames alike.

  `margins` extend the median face box above and below by so many of its heights. The square has its centre and the
  longer of its sides, and is black beyond the picture.
  """
  side = frames.shape[1]
  if margins is None and side == size:
    return frames
  low, high = np.zeros(2), np.full(2, float(side))
  if margins is not None and face_box is not None:
    x0, y0, x1, y1 = side * np.median(face_box, axis=0).astype(float)
    y0, y1 = y0 - margins[0] * (y1 - y0), y1 + margins[1] * (y1 - y0)
    centre, half = np.array([y0 + y1, x0 + x1]) / 2, max(y1 - y0, x1 - x0, 2.0) / 2
    low, high = centre - half, centre + half
  found = _region(frames, low, high, size=size, method="linear", antialias=True, chunk=64)
  return found.astype(np.uint8)


def _region(frames: np.ndarray, low: np.ndarray, high: np.ndarray, *, chunk: int, size: int, **how) -> np.ndarray:
  """The region from `low` to `high` (row, column, in pixels) of all frames, resampled to a square."""
  scale = size / (high - low)
  run = functools.partial(_resample, size=size, **how)
  return in_chunks(lambda frames: run(frames, jnp.float32(scale), jnp.float32(-low * scale)), frames, chunk=chunk)


@functools.partial(jax.jit, static_argnames=("size", "method", "antialias"))
def _resample(frames, scale, shift, *, size: int, method: str, antialias: bool):
  shape = (len(frames), size, size, 3)
  pictures = jax.image.scale_and_translate(
    frames.astype(jnp.float32), shape, (1, 2), scale, shift, method=method, antialias=antialias
  )
  return jnp.clip(jnp.round(pictures), 0, 255)  # integer values, as a resize of uint8 pictures gives


def in_chunks(run: Callable[..., jax.Array], *arrays: np.ndarray, chunk: int) -> np.ndarray:
  """`run(*arrays)` on `chunk` rows at a time, which bounds the memory.

  The last row is repeated to fill the last chunk, so that `run` is compiled once.
  """
  count = len(arrays[0])
  results = []
  for start in range(0, count, chunk):
    rows = np.arange(start, start + chunk).clip(max=count - 1)
    results.append(np.asarray(run(*(array[rows] for array in arrays))))
  return np.concatenate(results)[:count]
