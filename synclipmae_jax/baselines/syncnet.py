"""SyncNet v2 (Chung and Zisserman 2016; joonson/syncnet_python, `S(1024)`): distance of five frames and 0.2 s of sound.

The inputs are those of the script: 25 fps, 224 x 224, BGR in 0..255 without normalisation, and MFCC of int16 sound (see
`mfcc`). Window t has frames t..t+4 and MFCC columns 4t..4t+19. T frames give T - 5 windows, because the last whole
picture window lacks one column.

The face crop is that of the record, resized. Its side is that of the script, 1.4 times the longer side of the face box.
The crop of the script is a fifth of the box lower and shows more chin and neck, and its box is that of S3FD, which has
more forehead than a box from brow to chin. Scores on a record therefore differ from those of the script on the original
video.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from synclipmae_jax.baselines.batch_norm import BatchNorm
from synclipmae_jax.baselines.mfcc import COEFFICIENTS, int16_scale, mfcc
from synclipmae_jax.models import flops
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.layers import Linear
from synclipmae_jax.types import SAMPLES_PER_FRAME, EvalClip, InputError, Params

CONTEXT = 5  # frames per window
COLUMNS = 20  # MFCC columns per window
COLUMNS_PER_FRAME = 4
IMAGE_SIZE, WIDTH = 224, 1024  # of the released model
CHUNK = 25  # windows at once: 0.3 GB at the size of the released model

# (channels, kernel, stride, padding) of the convolutions. Max pooling (window, stride, padding) follows some of them.
LIPS = ((96, 7, 2, 0), (256, 5, 2, 1), (256, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
LIPS_POOLS = {0: ((3, 3), (2, 2), 0), 1: ((3, 3), (2, 2), 1), 4: ((3, 3), (2, 2), 0)}
AUDIO = ((64, 3, 1, 1), (192, 3, 1, 1), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
AUDIO_POOLS = {1: ((3, 3), (1, 2), 0), 4: ((3, 3), (2, 2), 0)}
FEATURES = 512  # of the last convolution, whose kernel is as large as its input


class Tower(nnx.Module):
  """Convolutions to a single vector, each with batch norm and ReLU, then two dense layers."""

  def __init__(self, channels: int, layers, pools, *, rows: int, columns: int, scale: float, width: int, rngs):
    self.pools, self.depth = pools, len(layers) + 1
    self.flops = 0
    for i, (features, kernel, stride, padding) in enumerate(layers):
      features = round(scale * features)
      conv = nnx.Conv(channels, features, (kernel, kernel), stride, padding=padding, rngs=rngs)
      rows, columns = ((n + 2 * padding - kernel) // stride + 1 for n in (rows, columns))
      self.flops += flops.dense(rows * columns, kernel * kernel * channels, features)
      channels = features
      setattr(self, f"conv_{i}", conv)
      setattr(self, f"norm_{i}", BatchNorm(features, rngs=rngs))
      if i in pools:
        window, strides, pad = pools[i]
        rows, columns = ((n + 2 * pad - k) // s + 1 for n, k, s in zip((rows, columns), window, strides, strict=True))
      if rows < 1 or columns < 1:
        raise InputError("the pictures are too small for SyncNet: at least 51 pixels per side are required")
    features = round(scale * FEATURES)
    conv = nnx.Conv(channels, features, (rows, columns), padding="VALID", rngs=rngs)
    setattr(self, f"conv_{len(layers)}", conv)
    setattr(self, f"norm_{len(layers)}", BatchNorm(features, rngs=rngs))
    self.hidden = Linear(features, features, compute_dtype=jnp.float32, rngs=rngs)
    self.norm_hidden = BatchNorm(features, rngs=rngs)
    self.out = Linear(features, width, compute_dtype=jnp.float32, rngs=rngs)
    self.flops += flops.dense(rows * columns, channels, features)
    self.flops += flops.dense(1, features, features) + flops.dense(1, features, width)

  def __call__(self, x: Float[Array, "b h w c"], *, training: bool) -> Float[Array, "b d"]:
    for i in range(self.depth):
      x = jax.nn.relu(getattr(self, f"norm_{i}")(getattr(self, f"conv_{i}")(x), training=training))
      if i in self.pools:
        window, strides, pad = self.pools[i]
        x = nnx.max_pool(x, window, strides, ((pad, pad), (pad, pad)))
    x = self.hidden(x[:, 0, 0])
    return self.out(jax.nn.relu(self.norm_hidden(x, training=training)))


class SyncNet(nnx.Module):
  """Two towers into one space. The defaults are the released model (13.6 M parameters).

  `image_size` is the side of the pictures in pixels; the last kernel of the picture tower depends on it. `scale`
  multiplies the channels of every layer. `width` is the width of the tokens, which are not normalised to unit length.
  Raises InputError for pictures of fewer than 51 pixels per side.
  """

  def __init__(self, *, rngs: nnx.Rngs, image_size: int = IMAGE_SIZE, scale: float = 1.0, width: int = WIDTH):
    self.image_size, self.width = image_size, width
    sizes = {"scale": scale, "width": width, "rngs": rngs}
    self.lips = Tower(CONTEXT * 3, LIPS, LIPS_POOLS, rows=image_size, columns=image_size, **sizes)
    self.audio = Tower(1, AUDIO, AUDIO_POOLS, rows=COEFFICIENTS, columns=COLUMNS, **sizes)

  def embed_lips(self, frames: Float[Array, "b t s s 3"], *, training: bool = False) -> Float[Array, "b w d"]:
    """Tokens of all W = T - 4 windows of T frames, RGB in 0..255 of any size.

    The 3-D convolution of the first layer spans all five frames of a window. It is computed as a 2-D convolution over
    the channels of the five frames, because the gradient of the 3-D form takes XLA a hundred times as long on a CPU.
    """
    batch, count, *_ = frames.shape
    shape = (batch, count, self.image_size, self.image_size, 3)
    bgr = jax.image.resize(frames[..., ::-1], shape, "linear", antialias=False)  # as cv2.resize
    windows = count - CONTEXT + 1
    seen = jnp.concatenate([bgr[:, i : i + windows] for i in range(CONTEXT)], axis=-1)
    tokens = self.lips(rearrange(seen, "b w h s c -> (b w) h s c"), training=training)
    return tokens.reshape(batch, windows, self.width)

  def embed_audio(self, columns: Float[Array, "b m 13"], *, training: bool = False) -> Float[Array, "b w d"]:
    """Tokens of all W = (M - 20) // 4 + 1 windows of M columns of MFCC."""
    batch, count, _ = columns.shape
    windows = (count - COLUMNS) // COLUMNS_PER_FRAME + 1
    index = COLUMNS_PER_FRAME * np.arange(windows)[:, None] + np.arange(COLUMNS)
    heard = rearrange(columns[:, index], "b w m k -> (b w) k m 1")
    return self.audio(heard, training=training).reshape(batch, windows, self.width)

  def flops(self) -> int:
    """Forward FLOPs of one pair of tokens."""
    return self.lips.flops + self.audio.flops


@functools.cache
def _compiled(**sizes):
  """(params, RGB) -> lips and (params, MFCC) -> audio, compiled once per size for all parameters."""
  model = Functional(lambda rngs: SyncNet(rngs=rngs, **sizes))
  run = lambda method: jax.jit(lambda params, x: getattr(model.bind(params), method)(x.astype(jnp.float32)))
  return run("embed_lips"), run("embed_audio")


class SyncNetTokens:
  """SyncNet with its parameters as a model of the synchronisation evaluation (`baselines.protocol.SyncModel`).

  `params` are those of the checkpoint item `syncnet`; `sizes` are the keyword arguments of SyncNet. `similarity` is
  "l2" for the released model, which was trained on distances, and "cosine" for a model trained on cosines.
  """

  name = "SyncNet"
  context_frames = CONTEXT

  def __init__(self, params: Params, *, similarity: str = "l2", **sizes):
    self.similarity = similarity
    params = jax.tree.map(jnp.asarray, params)
    self._lips, self._audio = (functools.partial(run, params) for run in _compiled(**sizes))

  def windows(self, clip: EvalClip) -> tuple[np.ndarray, np.ndarray]:
    """(audio [T - 5, D], lips [T - 5, D]) of all whole windows, as in the script, for LSE-C and LSE-D.

    At most `CHUNK` windows are computed at once. Raises InputError for a clip of fewer than 6 frames.
    """
    count = len(clip.frames) - CONTEXT
    if count < 1:
      raise InputError(f"{clip.key}: {len(clip.frames)} frames are too few for SyncNet, which requires at least 6")
    columns = mfcc(int16_scale(clip.waveform[: SAMPLES_PER_FRAME * len(clip.frames)])).astype(np.float32)
    audio, lips, size = [], [], min(CHUNK, count)
    for start in range(0, count, size):
      last = start + size - 1  # the last chunk may lack frames and columns
      lips.append(self._lips(_piece(clip.frames, start, last + CONTEXT)))
      audio.append(self._audio(_piece(columns, COLUMNS_PER_FRAME * start, COLUMNS_PER_FRAME * last + COLUMNS)))
    joined = lambda parts: np.concatenate([np.asarray(part)[0] for part in parts])[:count]
    return joined(audio), joined(lips)

  def embed(self, clip: EvalClip) -> tuple[np.ndarray, np.ndarray]:
    """(audio [T, D], lips [T, D]): token t is computed from the window of frames t-2..t+2, centred on frame t.

    The first two and the last three frames get the token of the nearest whole window.
    Raises InputError for a clip of fewer than 6 frames.
    """
    audio, lips = self.windows(clip)
    nearest = np.clip(np.arange(len(clip.frames)) - CONTEXT // 2, 0, len(audio) - 1)
    return audio[nearest], lips[nearest]


def _piece(x: np.ndarray, start: int, stop: int) -> np.ndarray:
  """x[start:stop] as [1, stop - start, ...]. The last entry is repeated beyond the end: all pieces have one shape."""
  return x[None, np.minimum(np.arange(start, stop), len(x) - 1)]
