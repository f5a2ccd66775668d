"""wav2vec 2.0 base (Baevski et al. 2020): hidden states of every layer, one token per video frame.

Arithmetic of transformers `Wav2Vec2Model` in eval mode with feat_extract_norm="group" and post-LN blocks: no layerdrop,
no dropout, no SpecAugment, no attention mask. The weight norm of the positional convolution is folded into one kernel.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from flax import nnx
from jaxtyping import Array, Float

from synclipmae_jax.models import flops
from synclipmae_jax.models.layers import LayerNorm, Linear, Mlp, SelfAttention, gelu, stack_blocks
from synclipmae_jax.models.speech_encoder import frames_of, normalise
from synclipmae_jax.sharding import constrain
from synclipmae_jax.types import AUDIO_MARGIN, InputError

Alignment = Literal["waveform", "feature", "feature_align_corners", "pool2"]
ALIGNMENTS = ("waveform", "feature", "feature_align_corners", "pool2")
KERNELS = (10, 3, 3, 3, 3, 2, 2)
STRIDES = (5, 2, 2, 2, 2, 2, 2)  # 320 samples per token, receptive field 400: N samples -> (N - 400) // 320 + 1 tokens
EPSILON = 1e-5


class FeatureExtractor(nnx.Module):
  """Seven strided convolutions without bias, exact GELU; the first has GroupNorm over time, one channel per group."""

  def __init__(self, width: int, *, compute_dtype, rngs: nnx.Rngs):
    for i, (kernel, stride) in enumerate(zip(KERNELS, STRIDES, strict=True)):
      conv = nnx.Conv(
        width if i else 1, width, kernel, stride, padding="VALID", use_bias=False, dtype=compute_dtype, rngs=rngs
      )
      setattr(self, f"conv_{i}", conv)
    self.norm = nnx.GroupNorm(
      width, num_groups=width, epsilon=EPSILON, dtype=compute_dtype, use_fast_variance=False, rngs=rngs
    )

  @jax.named_scope("convolutions")
  def __call__(self, waveform: Float[Array, "n samples"]) -> Float[Array, "n tokens c"]:
    x = self.norm(self.conv_0(waveform[..., None]))
    for i in range(1, len(KERNELS)):
      x = getattr(self, f"conv_{i}")(gelu(x))
    return gelu(x)


class PostNormBlock(nnx.Module):
  """Post-LN transformer block."""

  def __init__(self, width: int, heads: int, mlp_width: int, *, compute_dtype, rngs: nnx.Rngs):
    norm = functools.partial(LayerNorm, width, epsilon=EPSILON, compute_dtype=compute_dtype, rngs=rngs)
    self.attention = SelfAttention(width, heads, compute_dtype=compute_dtype, rngs=rngs)
    self.norm_attention = norm()
    self.mlp = Mlp(width, mlp_width, compute_dtype=compute_dtype, rngs=rngs)
    self.norm_mlp = norm()

  def __call__(self, x: Float[Array, "n t c"]) -> Float[Array, "n t c"]:
    x = self.norm_attention(x + self.attention(x))
    return self.norm_mlp(x + self.mlp(x))


class Wav2Vec2(nnx.Module):
  """wav2vec 2.0 with one token per frame from every layer. The defaults are the base model (94.4 M parameters).

  `alignment` selects how 50 tokens per second become 25 (paper section 3.1, "resample the input waveform"):
    waveform               The paper. The sound is resampled to 8 kHz: 320 samples per frame and 40 more at each end.
                           Every layer then emits one token per frame, centred on the frame. The frozen model receives
                           the sound one octave higher and twice as fast, without content above 4 kHz.
    feature                16 kHz, 640 samples per frame and 40 more at each end; mean of conv features 2t and 2t + 1.
    feature_align_corners  The same features, interpolated with align_corners=True as in Omni-Avatar/OmniAvatar
                           (OmniAvatar/models/wav2vec.py). The first token is a quarter of a frame early, the last a
                           quarter of a frame late.
    pool2                  The same sound, the whole model at its native rate; mean of hidden states 2t and 2t + 1.

  `include_embedding_output` adds a 13th state, the input of the first block, before the others.
  Parameters are float32, hidden states `compute_dtype`. Raises InputError for an unknown alignment.
  """

  def __init__(
    self,
    *,
    rngs: nnx.Rngs,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    mlp_width: int = 3072,
    conv_width: int = 512,
    pos_kernel: int = 128,
    pos_groups: int = 16,
    alignment: Alignment = "waveform",
    include_embedding_output: bool = False,
    compute_dtype=jnp.float32,
    unroll: int | bool = 1,
  ):
    if alignment not in ALIGNMENTS:
      raise InputError(f"unknown alignment {alignment!r} of the speech encoder: one of {', '.join(ALIGNMENTS)}")
    self.alignment, self.include_embedding_output, self.unroll = alignment, include_embedding_output, unroll
    self.num_layers = depth + include_embedding_output
    self.width, self.depth, self.mlp_width, self.conv_width = width, depth, mlp_width, conv_width
    self.pos_kernel, self.pos_groups = pos_kernel, pos_groups
    self.features = self.num_layers * width

    self.feature_extractor = FeatureExtractor(conv_width, compute_dtype=compute_dtype, rngs=rngs)
    self.norm_features = LayerNorm(conv_width, epsilon=EPSILON, compute_dtype=compute_dtype, rngs=rngs)
    self.projection = Linear(conv_width, width, compute_dtype=compute_dtype, rngs=rngs)
    self.positional_conv = nnx.Conv(
      width,
      width,
      pos_kernel,
      padding=[(pos_kernel // 2, (pos_kernel - 1) // 2)],
      feature_group_count=pos_groups,
      dtype=compute_dtype,
      rngs=rngs,
    )
    self.norm = LayerNorm(width, epsilon=EPSILON, compute_dtype=compute_dtype, rngs=rngs)
    self.blocks = stack_blocks(
      lambda rngs: PostNormBlock(width, heads, mlp_width, compute_dtype=compute_dtype, rngs=rngs), depth, rngs
    )

  @jax.named_scope("speech_encoder")
  def __call__(self, waveform: Float[Array, "n samples"]) -> Float[Array, "n ta l c"]:
    """Hidden states of N windows of 640 * Ta + 160 samples. Raises InputError for any other length."""
    x = self.projection(self.norm_features(self.conv_features(waveform)))
    embedding = self.norm(x + gelu(self.positional_conv(x)))
    graph, leaves = nnx.split(self.blocks)

    def block(x, leaves):
      x = constrain(nnx.merge(graph, leaves)(x))
      return x, x

    _, states = jax.lax.scan(block, constrain(embedding), leaves, unroll=self.unroll)
    if self.include_embedding_output:
      states = jnp.concatenate([embedding[None], states])
    if self.alignment == "pool2":
      return reduce(states, "l n (t two) c -> n t l c", "mean", two=2)
    return rearrange(states, "l n t c -> n t l c")

  def conv_features(self, waveform: Float[Array, "n samples"]) -> Float[Array, "n tokens c"]:
    """Conv features before their projection: Ta tokens (`pool2`: 2 * Ta) from 640 * Ta + 160 samples."""
    frames = frames_of(waveform)
    waveform = normalise(waveform)
    if self.alignment == "waveform":
      heard = halve_rate(waveform)
    else:
      heard = waveform[:, AUDIO_MARGIN // 2 : -AUDIO_MARGIN // 2]
    x = self.feature_extractor(heard)
    match self.alignment:
      case "feature":
        return reduce(x, "n (t two) c -> n t c", "mean", two=2)
      case "feature_align_corners":
        # Token t is at t * (2 * Ta - 1) / (Ta - 1) = 2 * t + t / (Ta - 1) on the axis of the 2 * Ta features.
        later = jnp.linspace(0, 1, frames, dtype=x.dtype)[:, None]
        return x[:, ::2] * (1 - later) + x[:, 1::2] * later
    return x

  def flops(self, frames: int) -> int:
    """Forward FLOPs of one window of `frames` frames, without the resampling filter."""
    length = frames if self.alignment == "waveform" else 2 * frames
    tokens = 2 * frames if self.alignment == "pool2" else frames
    convolutions = 0
    for i in reversed(range(len(KERNELS))):  # from the last convolution back to the waveform
      convolutions += flops.dense(length, KERNELS[i] * (self.conv_width if i else 1), self.conv_width)
      length = (length - 1) * STRIDES[i] + KERNELS[i]
    projection = flops.dense(tokens, self.conv_width, self.width)
    positional = flops.dense(tokens, self.pos_kernel * self.width // self.pos_groups, self.width)
    return (
      convolutions + projection + positional + self.depth * flops.transformer_block(tokens, self.width, self.mlp_width)
    )


def halve_rate(waveform: Float[Array, "n samples"]) -> Float[Array, "n half"]:
  """16 kHz -> 8 kHz: low-pass filter, then every second sample. The number of samples is even.

  The filter has an even number of taps, so output k is midway between inputs 2k and 2k + 1, at the centre of the
  interval that it represents, without a half-sample offset. Missing samples beyond the ends affect the margin only.
  """
  taps = _low_pass()
  reach = len(taps) // 2 - 1
  # Highest precision, because an accelerator would round the samples to bfloat16.
  return jax.lax.conv_general_dilated(
    waveform[:, None], jnp.asarray(taps[None, None], waveform.dtype), window_strides=(2,), padding=[(reach, reach)],
    precision=jax.lax.Precision.HIGHEST,
  )[:, 0]  # fmt: skip


@functools.cache
def _low_pass() -> np.ndarray:
  """Kaiser-windowed sinc: flat (2e-4) up to 3.3 kHz, -80 dB from 4 kHz (the new Nyquist frequency) on; DC gain 1."""
  offset = np.arange(128) - 63.5
  taps = np.sinc(3_650 / 8_000 * offset) * np.kaiser(128, 8.0)
  return taps / taps.sum()
