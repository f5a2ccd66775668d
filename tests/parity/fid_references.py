"""InceptionV3 of FID and I3D in torch, from their published architectures, with the names of the released files."""

import torch
from torch import nn
from torch.nn import functional as F


class ConvNorm(nn.Module):
  def __init__(self, width_in, width, kernel, stride=1, padding=0):
    super().__init__()
    self.conv = nn.Conv2d(width_in, width, kernel, stride, padding, bias=False)
    self.bn = nn.BatchNorm2d(width, eps=0.001)

  def forward(self, x):
    return F.relu(self.bn(self.conv(x)))


class Block(nn.Module):
  """`convs`: name -> (width in, width, kernel, stride, padding); `run(block, x)`: the outputs, side by side."""

  def __init__(self, run, **convs):
    super().__init__()
    self.run = run
    for name, sizes in convs.items():
      setattr(self, name, ConvNorm(*sizes))

  def forward(self, x):
    return torch.cat(self.run(self, x), 1)

  def chain(self, x, *names):
    for name in names:
      x = getattr(self, name)(x)
    return x


def mean(x):
  return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def block_a(n, pooled, w):
  return Block(
    lambda b, x: [
      b.branch1x1(x), b.chain(x, "branch5x5_1", "branch5x5_2"),
      b.chain(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"), b.branch_pool(mean(x)),
    ],
    branch1x1=(n, w(64), 1),
    branch5x5_1=(n, w(48), 1), branch5x5_2=(w(48), w(64), 5, 1, 2),
    branch3x3dbl_1=(n, w(64), 1), branch3x3dbl_2=(w(64), w(96), 3, 1, 1), branch3x3dbl_3=(w(96), w(96), 3, 1, 1),
    branch_pool=(n, w(pooled), 1),
  )  # fmt: skip


def block_b(n, w):
  return Block(
    lambda b, x: [
      b.branch3x3(x), b.chain(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"), F.max_pool2d(x, 3, 2),
    ],
    branch3x3=(n, w(384), 3, 2),
    branch3x3dbl_1=(n, w(64), 1), branch3x3dbl_2=(w(64), w(96), 3, 1, 1), branch3x3dbl_3=(w(96), w(96), 3, 2),
  )  # fmt: skip


def block_c(n, c, w):
  row, column = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
  return Block(
    lambda b, x: [
      b.branch1x1(x), b.chain(x, "branch7x7_1", "branch7x7_2", "branch7x7_3"),
      b.chain(x, *(f"branch7x7dbl_{i}" for i in range(1, 6))), b.branch_pool(mean(x)),
    ],
    branch1x1=(n, w(192), 1),
    branch7x7_1=(n, w(c), 1), branch7x7_2=(w(c), w(c), *row), branch7x7_3=(w(c), w(192), *column),
    branch7x7dbl_1=(n, w(c), 1), branch7x7dbl_2=(w(c), w(c), *column), branch7x7dbl_3=(w(c), w(c), *row),
    branch7x7dbl_4=(w(c), w(c), *column), branch7x7dbl_5=(w(c), w(192), *row),
    branch_pool=(n, w(192), 1),
  )  # fmt: skip


def block_d(n, w):
  return Block(
    lambda b, x: [
      b.chain(x, "branch3x3_1", "branch3x3_2"), b.chain(x, *(f"branch7x7x3_{i}" for i in range(1, 5))),
      F.max_pool2d(x, 3, 2),
    ],
    branch3x3_1=(n, w(192), 1), branch3x3_2=(w(192), w(320), 3, 2),
    branch7x7x3_1=(n, w(192), 1), branch7x7x3_2=(w(192), w(192), (1, 7), 1, (0, 3)),
    branch7x7x3_3=(w(192), w(192), (7, 1), 1, (3, 0)), branch7x7x3_4=(w(192), w(192), 3, 2),
  )  # fmt: skip


def block_e(n, pool, w):
  def run(b, x):
    y, z = b.branch3x3_1(x), b.chain(x, "branch3x3dbl_1", "branch3x3dbl_2")
    sides = [b.branch3x3_2a(y), b.branch3x3_2b(y), b.branch3x3dbl_3a(z), b.branch3x3dbl_3b(z)]
    return [b.branch1x1(x), *sides, b.branch_pool(pool(x))]

  row, column = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
  return Block(
    run,
    branch1x1=(n, w(320), 1),
    branch3x3_1=(n, w(384), 1), branch3x3_2a=(w(384), w(384), *row), branch3x3_2b=(w(384), w(384), *column),
    branch3x3dbl_1=(n, w(448), 1), branch3x3dbl_2=(w(448), w(384), 3, 1, 1),
    branch3x3dbl_3a=(w(384), w(384), *row), branch3x3dbl_3b=(w(384), w(384), *column),
    branch_pool=(n, w(192), 1),
  )  # fmt: skip


class InceptionV3(nn.Module):
  def __init__(self, scale=1.0):
    super().__init__()
    w = lambda width: round(scale * width)
    self.Conv2d_1a_3x3 = ConvNorm(3, w(32), 3, 2)
    self.Conv2d_2a_3x3 = ConvNorm(w(32), w(32), 3)
    self.Conv2d_2b_3x3 = ConvNorm(w(32), w(64), 3, 1, 1)
    self.Conv2d_3b_1x1 = ConvNorm(w(64), w(80), 1)
    self.Conv2d_4a_3x3 = ConvNorm(w(80), w(192), 3)
    self.Mixed_5b, self.Mixed_5c = block_a(w(192), 32, w), block_a(w(256), 64, w)
    self.Mixed_5d, self.Mixed_6a = block_a(w(288), 64, w), block_b(w(288), w)
    for letter, width in zip("bcde", (128, 160, 160, 192), strict=True):
      setattr(self, f"Mixed_6{letter}", block_c(w(768), width, w))
    self.Mixed_7a = block_d(w(768), w)
    self.Mixed_7b = block_e(w(1280), mean, w)
    self.Mixed_7c = block_e(w(2048), lambda x: F.max_pool2d(x, 3, 1, 1), w)
    self.fc = nn.Linear(w(2048), 1008)

  def forward(self, pictures):
    """Features of pictures [N, 3, H, W] in 0..1."""
    x = 2 * F.interpolate(pictures, (299, 299), mode="bilinear", align_corners=False) - 1
    x = F.max_pool2d(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))), 3, 2)
    x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
    for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
      x = getattr(self, f"Mixed_{name}")(x)
    return x.mean((2, 3))


# I3D


def same(x, kernel, stride):
  """Zeros as TensorFlow's SAME pads; no value of a map is negative where a maximum follows."""
  pads = []
  for size, k, s in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
    total = max(k - s if size % s == 0 else k - size % s, 0)
    pads += [total // 2, total - total // 2]
  return F.pad(x, pads)


class Unit3D(nn.Module):
  def __init__(self, width_in, width, size, stride=1):
    super().__init__()
    self.kernel, self.stride = (size,) * 3, (stride,) * 3
    self.conv3d = nn.Conv3d(width_in, width, size, stride, bias=False)
    self.bn = nn.BatchNorm3d(width, eps=0.001, momentum=0.01)

  def forward(self, x):
    return F.relu(self.bn(self.conv3d(same(x, self.kernel, self.stride))))


class InceptionModule(nn.Module):
  def __init__(self, n, widths):
    super().__init__()
    self.b0 = Unit3D(n, widths[0], 1)
    self.b1a, self.b1b = Unit3D(n, widths[1], 1), Unit3D(widths[1], widths[2], 3)
    self.b2a, self.b2b = Unit3D(n, widths[3], 1), Unit3D(widths[3], widths[4], 3)
    self.b3b = Unit3D(n, widths[5], 1)

  def forward(self, x):
    pooled = F.max_pool3d(same(x, (3, 3, 3), (1, 1, 1)), 3, 1)
    return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], 1)


class I3D(nn.Module):
  WIDTHS = {
    "3b": (64, 96, 128, 16, 32, 32), "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64), "4c": (160, 112, 224, 24, 64, 64), "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64), "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128), "5c": (384, 192, 384, 48, 128, 128),
  }  # fmt: skip

  def __init__(self, classes=400, scale=1.0):
    super().__init__()
    w = lambda width: round(scale * width)
    self.Conv3d_1a_7x7 = Unit3D(3, w(64), 7, 2)
    self.Conv3d_2b_1x1, self.Conv3d_2c_3x3 = Unit3D(w(64), w(64), 1), Unit3D(w(64), w(192), 3)
    before = w(192)
    for name, widths in self.WIDTHS.items():
      widths = [w(width) for width in widths]
      setattr(self, f"Mixed_{name}", InceptionModule(before, widths))
      before = widths[0] + widths[2] + widths[4] + widths[5]
    self.logits = nn.Module()
    self.logits.conv3d = nn.Conv3d(before, classes, 1)

  def forward(self, x):
    """Outputs by time of clips [N, 3, T, 224, 224] in -1..1."""

    def largest(x, kernel, stride):
      return F.max_pool3d(same(x, kernel, stride), kernel, stride)

    x = self.Conv3d_2b_1x1(largest(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2)))
    x = self.Mixed_3c(self.Mixed_3b(largest(self.Conv3d_2c_3x3(x), (1, 3, 3), (1, 2, 2))))
    x = largest(x, (3, 3, 3), (2, 2, 2))
    for letter in "bcdef":
      x = getattr(self, f"Mixed_4{letter}")(x)
    x = self.Mixed_5c(self.Mixed_5b(largest(x, (2, 2, 2), (2, 2, 2))))
    x = F.avg_pool3d(x, (2, 7, 7), 1)
    return self.logits.conv3d(x).squeeze(3).squeeze(3)
