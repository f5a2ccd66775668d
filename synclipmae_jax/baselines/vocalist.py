"""VocaLiST (Kadandale et al. 2022; `models/model.py` of vskadandale/vocalist): scores of pairs of sound and pictures.

Five pictures of the lower half of a face and the 16 mel columns of the same 0.2 s pass through convolutions, then
through three transformers that see both. The output is one score per pair; there is no embedding. For a clip the
convolutions run once per window and the transformers run 31 times per frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from synclipmae_jax.baselines.mel import log_mel
from synclipmae_jax.baselines.windows import face_pictures, in_chunks, mel_windows, picture_rows
from synclipmae_jax.metrics.sync import pair_lag_scores
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.layers import LayerNorm, Linear, stack_blocks
from synclipmae_jax.types import EvalClip, Params

FRAMES = 5
COLUMNS = 16
SIZE = 96
HEADS = 8
WIDTHS = (32, 64, 128, 256, 512)
ABOVE, BELOW = 0.25, 0.05  # margins of the box of S3FD around a box from brow to chin, in heights of the latter

# Convolutions: index of the width, kernel, stride, padding, residual. The axes of a video are rows, columns, time.
_KEEP = (3, 1, 1, True)
VIDEO_PRENET = (
  (0, 7, 1, 3, False),
  (1, 5, (1, 2, 1), (1, 1, 2), False), *[(1, *_KEEP)] * 2,
  (2, 3, (2, 2, 1), 1, False), *[(2, *_KEEP)] * 3,
  (3, 3, (2, 2, 1), 1, False), *[(3, *_KEEP)] * 2,
  (4, 3, (2, 2, 1), 1, False), *[(4, *_KEEP)] * 2,
  (4, 3, (2, 2, 1), 1, False), (4, 3, 1, (0, 0, 1), False), (4, 1, 1, 0, False),
)  # fmt: skip
AUDIO_PRENET = (
  (0, 3, 1, 1, False), *[(0, *_KEEP)] * 2,
  (1, 3, (3, 1), 1, False), *[(1, *_KEEP)] * 2,
  (2, 3, (3, 1), 1, False), *[(2, *_KEEP)] * 2,
  (3, 3, (3, 1), 1, False), *[(3, *_KEEP)] * 2,
  (4, 3, 1, (0, 1), False), (4, 1, 1, 0, False),
)  # fmt: skip


class BatchNorm(nnx.Module):
  """Batch norm with fixed running statistics, which are stored as parameters; epsilon 1e-5."""

  def __init__(self, width: int):
    self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))
    self.mean, self.var = nnx.Param(jnp.zeros(width)), nnx.Param(jnp.ones(width))

  def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    return (x - self.mean) * (self.scale * jax.lax.rsqrt(self.var + 1e-5)) + self.bias


class ConvBlock(nnx.Module):
  """relu(norm(conv(x)) [+ x])."""

  def __init__(self, width_in: int, width: int, *, axes: int, kernel, stride, padding, residual, rngs: nnx.Rngs):
    spread = lambda value: (value,) * axes if isinstance(value, int) else value
    self.conv = nnx.Conv(
      width_in, width, spread(kernel), spread(stride), padding=[(p, p) for p in spread(padding)], rngs=rngs
    )
    self.norm = BatchNorm(width)
    self.residual = residual

  def __call__(self, x: Array) -> Array:
    y = self.norm(self.conv(x))
    return jax.nn.relu(y + x if self.residual else y)


class Prenet(nnx.Module):
  """The convolutions of one modality."""

  def __init__(self, channels: int, widths: Sequence[int], layers: Sequence[tuple], *, axes: int, rngs: nnx.Rngs):
    self.depth = len(layers)
    width_in = channels
    for i, (width, kernel, stride, padding, residual) in enumerate(layers):
      options = {"kernel": kernel, "stride": stride, "padding": padding, "residual": residual}
      setattr(self, f"block_{i}", ConvBlock(width_in, widths[width], axes=axes, rngs=rngs, **options))
      width_in = widths[width]

  def __call__(self, x: Array) -> Array:
    for i in range(self.depth):
      x = getattr(self, f"block_{i}")(x)
    return x


class Attention(nnx.Module):
  """Attention from one sequence to another, with one fused kernel of queries, keys and values, as in the checkpoint."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    self.qkv = Linear(width, 3 * width, compute_dtype=jnp.float32, rngs=rngs)
    self.out = Linear(width, width, compute_dtype=jnp.float32, rngs=rngs)

  def __call__(self, x: Float[Array, "b n d"], context: Float[Array, "b m d"], mask) -> Float[Array, "b n d"]:
    width = x.shape[-1]
    kernel, bias = self.qkv.kernel, self.qkv.bias
    queries = x @ kernel[:, :width] + bias[:width]
    keys, values = jnp.split(context @ kernel[:, width:] + bias[width:], 2, axis=-1)
    split = lambda y: rearrange(y, "b n (h d) -> b n h d", h=HEADS)
    heard = jax.nn.dot_product_attention(split(queries), split(keys), split(values), mask=mask)
    return self.out(rearrange(heard, "b n h d -> b n (h d)"))


class Block(nnx.Module):
  """Pre-LN block of cross-attention. All blocks have the same context; each normalises it with its own first norm."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    linear = lambda *widths: Linear(*widths, compute_dtype=jnp.float32, rngs=rngs)
    self.norm_attention = LayerNorm(width, epsilon=1e-5, rngs=rngs)
    self.attention = Attention(width, rngs=rngs)
    self.norm_mlp = LayerNorm(width, epsilon=1e-5, rngs=rngs)
    self.up, self.down = linear(width, 4 * width), linear(4 * width, width)

  def __call__(self, x: Float[Array, "b n d"], context: Float[Array, "b m d"], mask) -> Float[Array, "b n d"]:
    x = x + self.attention(self.norm_attention(x), self.norm_attention(context), mask)
    return x + self.down(jax.nn.relu(self.up(self.norm_mlp(x))))


class Transformer(nnx.Module):
  """Blocks of cross-attention and a final norm (`models/transformer_encoder.py`).

  Query i sees keys up to i + |m - n|, with the causal mask that the model was trained with.
  """

  def __init__(self, width: int, depth: int, *, rngs: nnx.Rngs):
    self.blocks = stack_blocks(lambda rngs: Block(width, rngs=rngs), depth, rngs)
    self.norm = LayerNorm(width, epsilon=1e-5, rngs=rngs)

  def __call__(self, x: Float[Array, "b n d"], context: Float[Array, "b m d"]) -> Float[Array, "b n d"]:
    n, m = x.shape[1], context.shape[1]
    mask = np.tri(n, m, abs(m - n), dtype=bool)[None, None]
    context = _placed(context)
    graph, leaves = nnx.split(self.blocks)
    body = lambda x, leaves: (nnx.merge(graph, leaves)(x, context, mask), None)
    return self.norm(jax.lax.scan(body, _placed(x), leaves)[0])


def _placed(x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
  """Input times sqrt(d) plus the sinusoids of positions 1, 2, … (sines first, then cosines).

  A position whose first channel is exactly 0 gets no sinusoid, as in the reference, which treats the first channel as
  token numbers with 0 for padding. This is frequent after a ReLU.
  """
  length, width = x.shape[1:]
  frequency = np.exp(-np.arange(width // 2) * (math.log(10_000) / (width // 2 - 1)))
  angle = np.arange(1, length + 1)[:, None] * frequency
  table = np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)
  return math.sqrt(width) * x + jnp.where(x[..., :1] == 0, 0.0, table)


class Vocalist(nnx.Module):
  """VocaLiST. The defaults are the released model. Methods work on batches; `pair` is cheap compared to the others."""

  def __init__(self, *, widths: Sequence[int] = WIDTHS, depth: int = 4, rngs: nnx.Rngs):
    width = widths[-1]
    self.video_prenet = Prenet(3, widths, VIDEO_PRENET, axes=3, rngs=rngs)
    self.audio_prenet = Prenet(1, widths, AUDIO_PRENET, axes=2, rngs=rngs)
    self.audio_to_video = Transformer(width, depth, rngs=rngs)
    self.video_to_audio = Transformer(width, depth, rngs=rngs)
    self.memory = Transformer(width, depth, rngs=rngs)
    self.fc = Linear(width, width, compute_dtype=jnp.float32, rngs=rngs)
    self.classifier = Linear(width, 1, compute_dtype=jnp.float32, rngs=rngs)

  def audio(self, mel: Float[Array, "n 80 16"]) -> Float[Array, "n 16 d"]:
    return self.audio_prenet(mel[..., None])[:, 0]

  def video(self, pictures: Float[Array, "n 5 48 96 3"]) -> Float[Array, "n 5 d"]:
    """Features of windows of lower halves of faces, BGR in [0, 1]."""
    return self.video_prenet(rearrange(pictures, "n f h w c -> n h w f c"))[:, 0, 0]

  def pair(self, audio: Float[Array, "n 16 d"], video: Float[Array, "n 5 d"]) -> Float[Array, " n"]:
    """Logit that audio and video are in sync."""
    heard = self.audio_to_video(audio, video)
    seen = self.video_to_audio(video, audio)
    pooled = self.memory(heard, seen).max(axis=1)
    return self.classifier(jnp.tanh(self.fc(pooled)))[:, 0]


class VocalistJudge:
  """VocaLiST as a model of the synchronisation evaluation (`baselines.protocol.SyncModel`).

  `embed` runs the convolutions once per window. `similarity` runs the transformers once per pair. Scores are logits,
  larger for a better match. The window of frame t is t - 2 .. t + 2. `chunk` is the number of windows that are computed
  at once; of pairs, which are smaller, 8 * `chunk` are computed at once.
  """

  name = "VocaLiST"
  context_frames = FRAMES

  def __init__(self, model: Functional, params: Params, *, chunk: int = 32):
    self._params, self._chunk = params, chunk
    self._audio = jax.jit(lambda params, mel: model.bind(params).audio(mel))
    self._video = jax.jit(lambda params, pictures: model.bind(params).video(pictures))
    self._pair = jax.jit(lambda params, audio, video: model.bind(params).pair(audio, video))

  def embed(self, clip: EvalClip) -> tuple[np.ndarray, np.ndarray]:
    """(audio [T, 16, d], video [T, 5, d]), float32: 43 kB per frame at full size."""
    everything = np.arange(len(clip.frames))
    return self._heard(clip, everything), self._seen(clip, everything)

  def similarity(self, audio: np.ndarray, video: np.ndarray) -> np.ndarray:
    """float32 [n]: scores of pairs of features [n, 16, d] and [n, 5, d] from `embed`."""
    run = lambda audio, video: self._pair(self._params, audio, video)
    return in_chunks(run, audio, video, chunk=8 * self._chunk)

  def scores(self, audio_windows: np.ndarray, video_windows: np.ndarray) -> np.ndarray:
    """float32 [n]: scores of pairs of windows, log-mel [n, 80, 16] and pictures [n, 5, 48, 96, 3], BGR in [0, 1]."""
    return self.similarity(self._audio_features(audio_windows), self._video_features(video_windows))

  def lag_scores(self, clip: EvalClip) -> np.ndarray:
    """Scores of lag l at audio frame t, [T - 30, 31]: row i is frame i + 15, column j is lag j - 15.

    A positive lag means that the video lags the audio, as in `metrics.sync.lag_scores`. Raises ValueError for fewer
    than 31 frames.
    """
    return pair_lag_scores(*self.embed(clip), self.similarity)

  def pair_scores(self, clip_a: EvalClip, frames_a: np.ndarray, clip_v: EvalClip, frames_v: np.ndarray) -> np.ndarray:
    """float32 [n]: scores of pairs of the sound of `clip_a` at `frames_a` and pictures of `clip_v` at `frames_v`."""
    needed_a, heard = np.unique(frames_a, return_inverse=True)
    needed_v, seen = np.unique(frames_v, return_inverse=True)
    return self.similarity(self._heard(clip_a, needed_a)[heard], self._seen(clip_v, needed_v)[seen])

  def _heard(self, clip: EvalClip, frames: np.ndarray) -> np.ndarray:
    return self._audio_features(audio_windows(clip)[frames])

  def _seen(self, clip: EvalClip, frames: np.ndarray) -> np.ndarray:
    pictures, rows = lower_faces(clip), picture_rows(len(clip.frames), FRAMES)[frames]
    return in_chunks(lambda rows: self._video(self._params, pictures[rows]), rows, chunk=self._chunk)

  def _audio_features(self, mel: np.ndarray) -> np.ndarray:
    return in_chunks(lambda mel: self._audio(self._params, mel), mel, chunk=self._chunk)

  def _video_features(self, pictures: np.ndarray) -> np.ndarray:
    return in_chunks(lambda pictures: self._video(self._params, pictures), pictures, chunk=self._chunk)


def audio_windows(clip: EvalClip) -> np.ndarray:
  """Log-mel windows, float32 [T, 80, 16]."""
  mel = log_mel(clip.waveform, preemphasis=0.0, pad_mode="reflect")
  return mel_windows(mel, len(clip.frames), length=FRAMES, columns=COLUMNS)


def lower_faces(clip: EvalClip) -> np.ndarray:
  """Lower halves of the faces, float32 [T, 48, 96, 3], BGR in [0, 1]."""
  faces = face_pictures(clip, size=SIZE, above=ABOVE, below=BELOW, method="linear", antialias=False)
  return faces[:, SIZE // 2 :, :, ::-1] / np.float32(255)
