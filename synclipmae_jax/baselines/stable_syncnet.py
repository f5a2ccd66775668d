"""StableSyncNet, the synchronisation model of LatentSync (Li et al. 2024; `latentsync/models/stable_syncnet.py`).

Two convolutional encoders map 16 pictures of the lower half of a face and the 52 mel columns of the same 0.64 s to unit
vectors. The vectors have no negative entries, so their cosine is in [0, 1]. The authors classify a pair above 0.5 as in
sync and report 94 % accuracy on data that their own pipeline aligned by three landmarks. Records here have a face box
only, which replaces that alignment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from synclipmae_jax.baselines.mel import log_mel
from synclipmae_jax.baselines.windows import face_pictures, in_chunks, mel_windows, picture_rows
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.layers import LayerNorm, Linear, SelfAttention, gelu
from synclipmae_jax.types import EvalClip, Params

FRAMES = 16
COLUMNS = 52  # ceil(16 / 5 * 16)
SIZE = 256
# Margins of the LatentSync crop above the brows and below the chin, in heights of the face box from brow to chin.
ABOVE, BELOW = 0.3, 0.3

# The `model` section of configs/syncnet/syncnet_16_pixel.yaml and syncnet_16_pixel_attn.yaml of LatentSync. A factor is
# one stride, or a pair of strides of rows and columns.
SYNCNET_16_PIXEL: dict[str, dict[str, Any]] = {
  "audio_encoder": {
    "in_channels": 1,
    "block_out_channels": (32, 64, 128, 256, 512, 1024, 2048),
    "downsample_factors": ((2, 1), 2, 2, 1, 2, 2, (2, 3)),
    "attn_blocks": (0, 0, 0, 0, 0, 0, 0),
  },
  "visual_encoder": {
    "in_channels": 3 * FRAMES,
    "block_out_channels": (64, 128, 256, 256, 512, 1024, 2048, 2048),
    "downsample_factors": ((1, 2), 2, 2, 2, 2, 2, 2, 2),
    "attn_blocks": (0, 0, 0, 0, 0, 0, 0, 0),
  },
}
SYNCNET_16_PIXEL_ATTN = {
  "audio_encoder": SYNCNET_16_PIXEL["audio_encoder"] | {"attn_blocks": (0, 0, 0, 1, 1, 0, 0)},
  "visual_encoder": SYNCNET_16_PIXEL["visual_encoder"] | {"attn_blocks": (0, 0, 0, 0, 1, 1, 0, 0)},
}


class GroupNorm(nnx.GroupNorm):
  """GroupNorm of 32 groups with epsilon 1e-6."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    super().__init__(width, num_groups=32, epsilon=1e-6, use_fast_variance=False, rngs=rngs)


class Residual(nnx.Module):
  """x + conv(silu(norm(conv(silu(norm(x)))))), then a strided convolution unless the factor is 1.

  The strided convolution pads one row at the bottom and one column on the right with zeros. An axis of stride 1 (the
  rows of factor (1, n), the columns of (n, 1)) is padded on both sides and keeps its size.
  """

  def __init__(self, width_in: int, width: int, factor: int | Sequence[int], *, rngs: nnx.Rngs):
    self.norm1 = GroupNorm(width_in, rngs=rngs)
    self.conv1 = nnx.Conv(width_in, width, (3, 3), padding=1, rngs=rngs)
    self.norm2 = GroupNorm(width, rngs=rngs)
    self.conv2 = nnx.Conv(width, width, (3, 3), padding=1, rngs=rngs)
    self.shortcut = None if width_in == width else nnx.Conv(width_in, width, (1, 1), rngs=rngs)
    strides = (factor, factor) if isinstance(factor, int) else tuple(factor)
    padding = [(int(stride == 1), 1) for stride in strides]
    downsample = lambda: nnx.Conv(width, width, (3, 3), strides=strides, padding=padding, rngs=rngs)
    self.downsample = None if factor == 1 else downsample()

  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
    y = self.conv1(jax.nn.silu(self.norm1(x)))
    y = self.conv2(jax.nn.silu(self.norm2(y)))
    y = y + (self.shortcut(x) if self.shortcut else x)
    return self.downsample(y) if self.downsample else y


class Attention(nnx.Module):
  """x + a pre-LN transformer block (8 heads, GEGLU) on the positions of the map, between two linear maps."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    linear = lambda *widths: Linear(*widths, compute_dtype=jnp.float32, rngs=rngs)
    self.norm1 = GroupNorm(width, rngs=rngs)
    self.conv_in = linear(width, width)
    self.norm2 = LayerNorm(width, epsilon=1e-5, rngs=rngs)
    self.attention = SelfAttention(width, 8, compute_dtype=jnp.float32, rngs=rngs)
    self.norm3 = LayerNorm(width, epsilon=1e-5, rngs=rngs)
    self.up = linear(width, 8 * width)  # values, then gates
    self.down = linear(4 * width, width)
    self.conv_out = linear(width, width)

  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    y = rearrange(self.conv_in(self.norm1(x)), "b h w c -> b (h w) c")
    y = y + self.attention(self.norm2(y))
    values, gates = jnp.split(self.up(self.norm3(y)), 2, axis=-1)
    y = y + self.down(values * gelu(gates))
    return x + self.conv_out(y).reshape(x.shape)


class Encoder(nnx.Module):
  """Encodes maps to unit vectors. The keyword arguments are those of the yaml files."""

  def __init__(
    self,
    *,
    in_channels: int,
    block_out_channels: Sequence[int],
    downsample_factors: Sequence[int | Sequence[int]],
    attn_blocks: Sequence[int],
    rngs: nnx.Rngs,
  ):
    self.attn_blocks = tuple(attn_blocks)
    self.conv_in = nnx.Conv(in_channels, block_out_channels[0], (3, 3), padding=1, rngs=rngs)
    widths = (block_out_channels[0], *block_out_channels)
    for i, factor in enumerate(downsample_factors):
      setattr(self, f"residual_{i}", Residual(widths[i], widths[i + 1], factor, rngs=rngs))
      if attn_blocks[i]:
        setattr(self, f"attention_{i}", Attention(widths[i + 1], rngs=rngs))
    self.norm_out = GroupNorm(widths[-1], rngs=rngs)

  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
    x = self.conv_in(x)
    for i, attends in enumerate(self.attn_blocks):
      x = getattr(self, f"residual_{i}")(x)
      if attends:
        x = getattr(self, f"attention_{i}")(x)
    x = rearrange(jax.nn.relu(self.norm_out(x)), "b h w c -> b (c h w)")
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class StableSyncNet(nnx.Module):
  """Both encoders. `StableSyncNet(**SYNCNET_16_PIXEL_ATTN, rngs=rngs)` is the released model."""

  def __init__(self, *, audio_encoder: Mapping[str, Any], visual_encoder: Mapping[str, Any], rngs: nnx.Rngs):
    self.audio_encoder = Encoder(**audio_encoder, rngs=rngs)
    self.visual_encoder = Encoder(**visual_encoder, rngs=rngs)

  def audio(self, mel: Float[Array, "n 80 52"]) -> Float[Array, "n d"]:
    """Unit vectors of windows of `log_mel`."""
    return self.audio_encoder(mel[..., None])

  def visual(self, pictures: Float[Array, "n 16 128 256 3"]) -> Float[Array, "n d"]:
    """Unit vectors of windows of lower halves of faces, RGB in [-1, 1]."""
    return self.visual_encoder(rearrange(pictures, "n f h w c -> n h w (f c)"))


class StableSyncNetJudge:
  """StableSyncNet as a model of the synchronisation evaluation (`baselines.protocol.SyncModel`).

  The token of frame t is computed from pictures t - 8 .. t + 7 and their sound. `chunk` is the number of windows that
  are computed at once. A window takes 6 MiB plus its activations.
  """

  name = "StableSyncNet"
  context_frames = FRAMES
  similarity = "cosine"

  def __init__(self, model: Functional, params: Params, *, chunk: int = 16):
    self._params, self._chunk = params, chunk
    self._audio = jax.jit(lambda params, mel: model.bind(params).audio(mel))
    self._visual = jax.jit(lambda params, pictures: model.bind(params).visual(pictures))

  def embed(self, clip: EvalClip) -> tuple[np.ndarray, np.ndarray]:
    """(audio [T, D], video [T, D]), float32, each on its own timeline."""
    pictures = lower_faces(clip)
    audio = in_chunks(lambda mel: self._audio(self._params, mel), audio_windows(clip), chunk=self._chunk)
    rows = picture_rows(len(pictures), FRAMES)
    visual = in_chunks(lambda rows: self._visual(self._params, pictures[rows]), rows, chunk=self._chunk)
    return audio, visual


def audio_windows(clip: EvalClip) -> np.ndarray:
  """Log-mel windows, float32 [T, 80, 52]."""
  mel = log_mel(clip.waveform, preemphasis=0.97, pad_mode="constant")
  return mel_windows(mel, len(clip.frames), length=FRAMES, columns=COLUMNS)


def lower_faces(clip: EvalClip) -> np.ndarray:
  """Lower halves of the faces, float32 [T, 128, 256, 3], RGB in [-1, 1]."""
  faces = face_pictures(clip, size=SIZE, above=ABOVE, below=BELOW, method="cubic", antialias=True)
  return faces[:, SIZE // 2 :] / np.float32(127.5) - 1
