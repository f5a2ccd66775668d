"""InceptionV3 as FID and KID use it (Szegedy et al. 2015; the variant of mseitzer/pytorch-fid).

The public weights come from TensorFlow's model of 2015-12-05. Against torchvision's InceptionV3 the means of the
pooling branches leave padding out of their count, the last block takes the maximum where the others take the mean, and
the classifier, which has 1,008 outputs, is not used. Written from the published code; there was no file of the weights
to compare with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from synclipmae_jax.models.conformer import RunningNorm

SIZE = 299  # pixels
EPSILON = 1e-3  # of all batch norms, of I3D's too
Conv = tuple[str, int, int | tuple[int, int]]  # name, width, rows and columns of the kernel


@dataclasses.dataclass(frozen=True)
class Branch:
  """Convolutions one after another; those of `ends` stand side by side behind them.

  `pool` comes first: mean, or max. `stride`: of the last step.
  """

  convs: tuple[Conv, ...] = ()
  ends: tuple[Conv, ...] = ()
  pool: str = ""
  stride: int = 1


def _block_a(pooled: int) -> tuple[Branch, ...]:
  return (
    Branch((("branch1x1", 64, 1),)),
    Branch((("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5))),
    Branch((("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3))),
    Branch((("branch_pool", pooled, 1),), pool="mean"),
  )


_BLOCK_B = (
  Branch((("branch3x3", 384, 3),), stride=2),
  Branch((("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)), stride=2),
  Branch(pool="max", stride=2),
)


def _block_c(width: int) -> tuple[Branch, ...]:
  row, column = (1, 7), (7, 1)
  double = [(width, column), (width, row), (width, column), (192, row)]
  return (
    Branch((("branch1x1", 192, 1),)),
    Branch((("branch7x7_1", width, 1), ("branch7x7_2", width, row), ("branch7x7_3", 192, column))),
    Branch((("branch7x7dbl_1", width, 1), *((f"branch7x7dbl_{i}", *conv) for i, conv in enumerate(double, start=2)))),
    Branch((("branch_pool", 192, 1),), pool="mean"),
  )


_BLOCK_D = (
  Branch((("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)), stride=2),
  Branch(
    (
      ("branch7x7x3_1", 192, 1),
      ("branch7x7x3_2", 192, (1, 7)),
      ("branch7x7x3_3", 192, (7, 1)),
      ("branch7x7x3_4", 192, 3),
    ),
    stride=2,
  ),
  Branch(pool="max", stride=2),
)


def _block_e(pool: str) -> tuple[Branch, ...]:
  ends = lambda name: ((f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1)))
  return (
    Branch((("branch1x1", 320, 1),)),
    Branch((("branch3x3_1", 384, 1),), ends("branch3x3_2")),
    Branch((("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3)), ends("branch3x3dbl_3")),
    Branch((("branch_pool", 192, 1),), pool=pool),
  )


# Name -> width, kernel, stride, padding.
STEM = {
  "Conv2d_1a_3x3": (32, 3, 2, 0),
  "Conv2d_2a_3x3": (32, 3, 1, 0),
  "Conv2d_2b_3x3": (64, 3, 1, 1),
  "Conv2d_3b_1x1": (80, 1, 1, 0),
  "Conv2d_4a_3x3": (192, 3, 1, 0),
}
_POOLED_AFTER = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")
BLOCKS: dict[str, tuple[Branch, ...]] = {
  "Mixed_5b": _block_a(32),
  "Mixed_5c": _block_a(64),
  "Mixed_5d": _block_a(64),
  "Mixed_6a": _BLOCK_B,
  "Mixed_6b": _block_c(128),
  "Mixed_6c": _block_c(160),
  "Mixed_6d": _block_c(160),
  "Mixed_6e": _block_c(192),
  "Mixed_7a": _BLOCK_D,
  "Mixed_7b": _block_e("mean"),
  "Mixed_7c": _block_e("max"),
}


class ConvNorm(nnx.Module):
  """Convolution without bias over all axes but the first and last, batch norm with fixed statistics, ReLU."""

  def __init__(self, width_in: int, width: int, kernel: Sequence[int], stride: int, padding, *, rngs: nnx.Rngs):
    strides = (stride,) * len(kernel)
    self.conv = nnx.Conv(width_in, width, kernel, strides, padding=padding, use_bias=False, rngs=rngs)
    self.norm = RunningNorm(width, epsilon=EPSILON)

  def __call__(self, x: Float[Array, "n *s c"]) -> Float[Array, "n *t d"]:
    return jax.nn.relu(self.norm(self.conv(x)))


class Mixed(nnx.Module):
  """Branches on one input, their outputs side by side. `width`: of the output."""

  def __init__(self, width_in: int, branches: Sequence[Branch], widen: Callable[[int], int], *, rngs: nnx.Rngs):
    self.branches, self.width = tuple(branches), 0
    for branch in branches:
      width = width_in
      for conv in branch.convs:
        width = self._add(conv, width, branch.stride if conv is branch.convs[-1] else 1, widen, rngs)
      self.width += sum(self._add(conv, width, 1, widen, rngs) for conv in branch.ends) if branch.ends else width

  def _add(self, conv: Conv, width_in: int, stride: int, widen: Callable[[int], int], rngs: nnx.Rngs) -> int:
    name, width, kernel = conv
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = [(side // 2, side // 2) if stride == 1 else (0, 0) for side in size]
    setattr(self, name, ConvNorm(width_in, widen(width), size, stride, padding, rngs=rngs))
    return widen(width)

  def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n i j d"]:
    return jnp.concatenate([part for branch in self.branches for part in self._run(branch, x)], axis=-1)

  def _run(self, branch: Branch, x: Float[Array, "n h w c"]) -> Iterator[Float[Array, "n i j d"]]:
    if branch.pool == "mean":
      x = nnx.avg_pool(x, (3, 3), strides=(1, 1), padding="SAME", count_include_pad=False)
    elif branch.pool == "max":
      padding = "SAME" if branch.stride == 1 else "VALID"
      x = nnx.max_pool(x, (3, 3), strides=(branch.stride,) * 2, padding=padding)
    for name, *_ in branch.convs:
      x = getattr(self, name)(x)
    yield from (getattr(self, name)(x) for name, *_ in branch.ends) if branch.ends else (x,)


class InceptionV3(nnx.Module):
  """Pictures -> the mean of the last map. `scale` multiplies all widths; that of the released model is 1."""

  def __init__(self, *, scale: float = 1.0, rngs: nnx.Rngs):
    widen = lambda width: round(scale * width)
    before = 3
    for name, (width, kernel, stride, padding) in STEM.items():
      place = [(padding, padding)] * 2
      setattr(self, name, ConvNorm(before, widen(width), (kernel, kernel), stride, place, rngs=rngs))
      before = widen(width)
    for name, branches in BLOCKS.items():
      block = Mixed(before, branches, widen, rngs=rngs)
      setattr(self, name, block)
      before = block.width

  def __call__(self, pictures: Float[Array, "n h w 3"]) -> Float[Array, "n d"]:
    """Features, 2,048 in the released model, of RGB pictures of any size in 0..255.

    They are resized to 299 x 299 without antialiasing, as by `F.interpolate(..., align_corners=False)`.
    """
    shape = (len(pictures), SIZE, SIZE, 3)
    x = jax.image.resize(pictures, shape, method="bilinear", antialias=False) / 127.5 - 1
    for name in STEM:
      x = getattr(self, name)(x)
      if name in _POOLED_AFTER:
        x = nnx.max_pool(x, (3, 3), strides=(2, 2))
    for name in BLOCKS:
      x = getattr(self, name)(x)
    return x.mean(axis=(1, 2))
