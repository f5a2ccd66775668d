"""3-D convolution and ResNet-18 on grey crops of the mouth: the visual front end of Auto-AVSR and of AV-HuBERT."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from synclipmae_jax.models.conformer import RunningNorm

WIDTHS = (64, 128, 256, 512)
SIZE = 88  # pixels of a side, cut from the middle of crops of 96
MEAN, DEVIATION = 0.421, 0.165  # of grey values in [0, 1]
BLOCKS = 2  # of each width
ACTIVATIONS = ("silu", "prelu")  # of Auto-AVSR, of AV-HuBERT


class Activation(nnx.Module):
  """SiLU, or ReLU with a learned slope below zero for each channel."""

  def __init__(self, width: int, kind: str):
    if kind not in ACTIVATIONS:
      raise ValueError(f"unknown activation {kind!r}: {' or '.join(ACTIVATIONS)}")
    self.slope = nnx.Param(jnp.full(width, 0.25)) if kind == "prelu" else None

  def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    return jax.nn.silu(x) if self.slope is None else jnp.where(x < 0, self.slope[...] * x, x)


class ResidualBlock(nnx.Module):
  """Two 3 x 3 convolutions beside the input, which a 1 x 1 convolution brings to the same shape where it differs."""

  def __init__(self, width_in: int, width: int, *, stride: int, activation: str = "silu", rngs: nnx.Rngs):
    conv = lambda size, *widths, stride=1: nnx.Conv(
      *widths, (size, size), (stride, stride), padding=[(size // 2, size // 2)] * 2, use_bias=False, rngs=rngs
    )
    self.conv_1, self.norm_1 = conv(3, width_in, width, stride=stride), RunningNorm(width)
    self.conv_2, self.norm_2 = conv(3, width, width), RunningNorm(width)
    self.activation_1, self.activation_2 = (Activation(width, activation) for _ in range(2))
    self.shortcut = conv(1, width_in, width, stride=stride) if stride != 1 or width_in != width else None
    self.norm_shortcut = RunningNorm(width) if self.shortcut is not None else None

  def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n i j d"]:
    y = self.norm_2(self.conv_2(self.activation_1(self.norm_1(self.conv_1(x)))))
    return self.activation_2(y + (x if self.shortcut is None else self.norm_shortcut(self.shortcut(x))))


class LipResNet(nnx.Module):
  """Normalised grey crops [B, T, 88, 88] -> features [B, T, 512]. The norms have fixed statistics."""

  def __init__(self, widths: Sequence[int] = WIDTHS, *, activation: str = "silu", rngs: nnx.Rngs):
    self.depth = BLOCKS * len(widths)
    self.stem = nnx.Conv(
      1, widths[0], (5, 7, 7), (1, 2, 2), padding=[(2, 2), (3, 3), (3, 3)], use_bias=False, rngs=rngs
    )
    self.norm_stem, self.activation = RunningNorm(widths[0]), Activation(widths[0], activation)
    width_in = widths[0]
    for i in range(self.depth):
      width = widths[i // BLOCKS]
      stride = 2 if i and i % BLOCKS == 0 else 1
      setattr(self, f"block_{i}", ResidualBlock(width_in, width, stride=stride, activation=activation, rngs=rngs))
      width_in = width

  def __call__(self, crops: Float[Array, "b t h w"]) -> Float[Array, "b t d"]:
    x = self.activation(self.norm_stem(self.stem(crops[..., None])))
    x = nnx.max_pool(x, (1, 3, 3), strides=(1, 2, 2), padding=((0, 0), (1, 1), (1, 1)))
    x = rearrange(x, "b t h w c -> (b t) h w c")
    for i in range(self.depth):
      x = getattr(self, f"block_{i}")(x)
    return rearrange(x.mean(axis=(1, 2)), "(b t) d -> b t d", b=len(crops))
