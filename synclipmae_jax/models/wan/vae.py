"""The video autoencoder of Wan2.1: 17 frames of pixels <-> 5 frames of latents with an eighth of the height and width.

Arithmetic of `WanVAE_` (Wan-Video/Wan2.1, wan/modules/vae.py; in diffusers `AutoencoderKLWan`). The reference processes
a video in groups of four frames and caches features between groups. This module processes the whole sequence at once
with the same result: causal convolutions pad time with zeros, and the first frame bypasses the two resamplings of time.
It has no caches, static shapes and one `jit`. Channels are last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Float

from synclipmae_jax.models.layers import Linear, attend
from synclipmae_jax.sharding import constrain
from synclipmae_jax.types import InputError

# Statistics of the released model's 16 channels (wan/modules/vae.py, `WanVAE`): latents = (mu - mean) / std.
LATENT_MEAN = (
  *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
  *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
LATENT_STD = (
  *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
  *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


class RMSNorm(nnx.Module):
  """Scales the channels to the length sqrt(C), then by a learnt factor. There is no mean and no bias.

  Statistics are float32. The sum of squares is at least 1e-24 (the reference bounds the length at 1e-12).
  """

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    self.scale = nnx.Param(jnp.ones(width))

  def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.maximum(jnp.sum(y * y, axis=-1, keepdims=True), 1e-24))
    return (y * (math.sqrt(x.shape[-1]) * self.scale)).astype(x.dtype)


class CausalConv(nnx.Conv):
  """3-D convolution of `size` x `size` pixels and three frames: output t depends on inputs t-2..t, zero before 0."""

  def __init__(self, width_in: int, width_out: int, *, size: int = 3, compute_dtype, rngs: nnx.Rngs):
    space = (size // 2, size // 2)
    super().__init__(
      width_in, width_out, (3, size, size), padding=((2, 0), space, space), dtype=compute_dtype, rngs=rngs
    )


class ResidualBlock(nnx.Module):
  """x + conv(silu(norm(conv(silu(norm(x)))))), with a linear shortcut if the width changes."""

  def __init__(self, width_in: int, width_out: int, *, compute_dtype, rngs: nnx.Rngs):
    options = {"compute_dtype": compute_dtype, "rngs": rngs}
    self.norm_0 = RMSNorm(width_in, rngs=rngs)
    self.conv_0 = CausalConv(width_in, width_out, **options)
    self.norm_1 = RMSNorm(width_out, rngs=rngs)
    self.conv_1 = CausalConv(width_out, width_out, **options)
    self.shortcut = None if width_in == width_out else Linear(width_in, width_out, **options)

  def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w d"]:
    x = constrain(x)
    y = self.conv_0(jax.nn.silu(self.norm_0(x)))
    y = self.conv_1(jax.nn.silu(self.norm_1(y)))
    return y + (self.shortcut(x) if self.shortcut else x)


class FrameAttention(nnx.Module):
  """x + single-head self-attention among the positions of each frame."""

  def __init__(self, width: int, *, compute_dtype, rngs: nnx.Rngs):
    self.norm = RMSNorm(width, rngs=rngs)
    self.qkv = Linear(width, 3 * width, compute_dtype=compute_dtype, rngs=rngs)
    self.out = Linear(width, width, compute_dtype=compute_dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
    tokens = rearrange(self.qkv(self.norm(x)), "b t h w c -> (b t) (h w) c")
    return x + self.out(attend(*jnp.split(tokens, 3, axis=-1), heads=1)).reshape(x.shape)


class Middle(nnx.Module):
  """Residual block, attention, residual block, at the lowest resolution."""

  def __init__(self, width: int, *, compute_dtype, rngs: nnx.Rngs):
    options = {"compute_dtype": compute_dtype, "rngs": rngs}
    self.block_0 = ResidualBlock(width, width, **options)
    self.attention = FrameAttention(width, **options)
    self.block_1 = ResidualBlock(width, width, **options)

  def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
    return self.block_1(self.attention(self.block_0(x)))


class Downsample(nnx.Module):
  """Halves height and width. With `temporal`, 1 + 2n frames become 1 + n.

  The first frame bypasses the convolution in time, but is part of its input.
  """

  def __init__(self, width: int, *, temporal: bool, compute_dtype, rngs: nnx.Rngs):
    options = {"padding": "VALID", "dtype": compute_dtype, "rngs": rngs}
    self.conv = nnx.Conv(width, width, (3, 3), 2, **options | {"padding": ((0, 1), (0, 1))})
    self.time_conv = nnx.Conv(width, width, (3, 1, 1), (2, 1, 1), **options) if temporal else None

  def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b s h2 w2 c"]:
    x = self.conv(x)
    if self.time_conv is None or x.shape[1] == 1:
      return x
    return jnp.concatenate([x[:, :1], self.time_conv(x)], axis=1)


class Upsample(nnx.Module):
  """Doubles height and width and halves the channels. With `temporal`, 1 + n frames become 1 + 2n.

  The first frame bypasses the convolution in time and is not part of its input: zeros precede the second frame.
  """

  def __init__(self, width: int, *, temporal: bool, compute_dtype, rngs: nnx.Rngs):
    self.time_conv = CausalConv(width, 2 * width, size=1, compute_dtype=compute_dtype, rngs=rngs) if temporal else None
    self.conv = nnx.Conv(width, width // 2, (3, 3), padding=1, dtype=compute_dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b s h2 w2 c2"]:
    if self.time_conv is not None and x.shape[1] > 1:
      pairs = rearrange(self.time_conv(x[:, 1:]), "b t h w (pair c) -> b (t pair) h w c", pair=2)
      x = jnp.concatenate([x[:, :1], pairs], axis=1)
    return self.conv(repeat(x, "b t h w c -> b t (h p) (w q) c", p=2, q=2))


class Stage(nnx.Module):
  """The residual blocks of one resolution, then the resampling to the next."""

  def __init__(self, width_in: int, width: int, *, blocks: int, resample, compute_dtype, rngs: nnx.Rngs):
    self.blocks = blocks
    for i in range(blocks):
      block = ResidualBlock(width if i else width_in, width, compute_dtype=compute_dtype, rngs=rngs)
      setattr(self, f"block_{i}", block)
    self.resample = resample

  def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b s h2 w2 d"]:
    for i in range(self.blocks):
      x = getattr(self, f"block_{i}")(x)
    return self.resample(x) if self.resample else x


class Encoder(nnx.Module):
  """Maps pixels to `features` channels. `widths` go from the highest resolution to the lowest."""

  def __init__(self, features: int, *, widths: Sequence[int], temporal_down, blocks: int, **options):
    self.stages = len(widths)
    self.conv_in = CausalConv(3, widths[0], **options)
    for i, width in enumerate(widths):
      down = Downsample(width, temporal=temporal_down[i], **options) if i < self.stages - 1 else None
      setattr(self, f"stage_{i}", Stage(widths[max(i - 1, 0)], width, blocks=blocks, resample=down, **options))
    self.middle = Middle(widths[-1], **options)
    self.norm_out = RMSNorm(widths[-1], rngs=options["rngs"])
    self.conv_out = CausalConv(widths[-1], features, **options)

  def __call__(self, x: Float[Array, "b t h w 3"]) -> Float[Array, "b s h2 w2 c"]:
    x = self.conv_in(x)
    for i in range(self.stages):
      x = getattr(self, f"stage_{i}")(x)
    return self.conv_out(jax.nn.silu(self.norm_out(self.middle(x))))


class Decoder(nnx.Module):
  """Maps features to pixels. `widths` go from the lowest resolution to the highest; a stage has `blocks` + 1 blocks."""

  def __init__(self, features: int, *, widths: Sequence[int], temporal_up, blocks: int, **options):
    self.stages = len(widths)
    self.conv_in = CausalConv(features, widths[0], **options)
    self.middle = Middle(widths[0], **options)
    for i, width in enumerate(widths):
      up = Upsample(width, temporal=temporal_up[i], **options) if i < self.stages - 1 else None
      width_in = widths[i - 1] // 2 if i else widths[0]
      setattr(self, f"stage_{i}", Stage(width_in, width, blocks=blocks + 1, resample=up, **options))
    self.norm_out = RMSNorm(widths[-1], rngs=options["rngs"])
    self.conv_out = CausalConv(widths[-1], 3, **options)

  def __call__(self, x: Float[Array, "b s h2 w2 c"]) -> Float[Array, "b t h w 3"]:
    x = self.middle(self.conv_in(x))
    for i in range(self.stages):
      x = getattr(self, f"stage_{i}")(x)
    return self.conv_out(jax.nn.silu(self.norm_out(x)))


class Vae(nnx.Module):
  """The autoencoder. The defaults are the released Wan2.1 VAE (126.9 M parameters).

  Stage i has `base` * `multipliers[i]` channels and, in the encoder, `blocks` residual blocks. Height and width are
  halved between two stages, and time too if `temporal_down[i]`. `latent_mean` and `latent_std` are constants, not
  parameters, with one entry for each of the `latent` channels.
  Parameters are float32, features are `compute_dtype`. The authors of the model run it in float32.
  Raises InputError if the statistics do not have `latent` entries.
  """

  def __init__(
    self,
    *,
    rngs: nnx.Rngs,
    base: int = 96,
    latent: int = 16,
    multipliers: Sequence[int] = (1, 2, 4, 4),
    temporal_down: Sequence[bool] = (False, True, True),
    blocks: int = 2,
    latent_mean: Sequence[float] = LATENT_MEAN,
    latent_std: Sequence[float] = LATENT_STD,
    compute_dtype=jnp.float32,
  ):
    if not len(latent_mean) == len(latent_std) == latent:
      raise InputError(f"latent_mean and latent_std need {latent} entries each, one per latent channel")
    self.latent, self.latent_mean, self.latent_std = latent, tuple(latent_mean), tuple(latent_std)
    self.space_stride, self.time_stride = 2 ** (len(multipliers) - 1), 2 ** sum(temporal_down)
    options = {"blocks": blocks, "compute_dtype": compute_dtype, "rngs": rngs}
    widths = [base * multiplier for multiplier in multipliers]
    self.encoder = Encoder(2 * latent, widths=widths, temporal_down=temporal_down, **options)
    self.quant_conv = Linear(2 * latent, 2 * latent, compute_dtype=compute_dtype, rngs=rngs)
    self.post_quant_conv = Linear(latent, latent, compute_dtype=compute_dtype, rngs=rngs)
    self.decoder = Decoder(latent, widths=widths[::-1], temporal_up=temporal_down[::-1], **options)

  def moments(self, video: Float[Array, "b t h w c"]) -> Float[Array, "b s h2 w2 z2"]:
    """Mean, then log-variance, of the Gaussian of the latents, neither normalised nor clipped.

    Shapes and errors are those of `encode`.
    """
    _, frames, height, width, channels = video.shape
    if channels != 3 or frames < 1 or height % self.space_stride or width % self.space_stride:
      raise InputError(
        f"the VAE takes [B, T >= 1, H, W, 3] with H and W multiples of {self.space_stride}, not {list(video.shape)}"
      )
    whole = 1 + (frames - 1) // self.time_stride * self.time_stride
    return self.quant_conv(self.encoder(video[:, :whole]))

  def encode(self, video: Float[Array, "b t h w c"]) -> Float[Array, "b s h2 w2 z"]:
    """Normalised latents (the mode, no sampling) of RGB in [-1, 1]: S = (T - 1) // 4 + 1 frames of H/8 x W/8.

    Frames after the last whole group of four are ignored, as in the reference: 18 or 20 frames give the same latents as
    17. Raises InputError if H or W is not a multiple of 8.
    """
    mean = self.moments(video)[..., : self.latent]
    return (mean - jnp.asarray(self.latent_mean, mean.dtype)) / jnp.asarray(self.latent_std, mean.dtype)

  def decode(self, latents: Float[Array, "b s h2 w2 z"]) -> Float[Array, "b t h w 3"]:
    """RGB, clipped to [-1, 1], of normalised latents: 4 (S - 1) + 1 frames.

    Raises InputError for another number of latent channels.
    """
    if latents.shape[-1] != self.latent:
      raise InputError(f"the VAE decodes {self.latent} latent channels, not {latents.shape[-1]}")
    mean, std = (jnp.asarray(x, latents.dtype) for x in (self.latent_mean, self.latent_std))
    return jnp.clip(self.decoder(self.post_quant_conv(latents * std + mean)), -1, 1)
