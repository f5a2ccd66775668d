"""The pretrained synchronisation models in torch, from their published architectures.

They have any size, random weights by key, and the tensor names of the released files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from convert.random_weights import random_weights
from torch import nn
from torch.nn import functional as F


def fill(model: nn.Module) -> dict[str, np.ndarray]:
  """Fills the model with random weights by key and positive, distinct running variances, and sets evaluation mode.

  Returns the tensors of floating type, as in a released file.
  """
  state = model.state_dict()
  tensors = random_weights({key: tuple(value.shape) for key, value in state.items() if value.is_floating_point()})
  for key in tensors:
    if key.endswith("running_var"):
      tensors[key] = 0.5 + np.abs(5 * tensors[key])
  rest = {key: value for key, value in state.items() if key not in tensors}
  model.load_state_dict({key: torch.from_numpy(value) for key, value in tensors.items()} | rest, assign=True)
  model.eval().requires_grad_(False)
  return tensors


# StableSyncNet


class Resnet(nn.Module):
  # Left, right, top, bottom.
  PADS = {1: None, 2: (0, 1, 0, 1), (1, 2): (0, 1, 1, 1), (2, 1): (1, 1, 0, 1), (2, 3): (0, 1, 0, 1)}

  def __init__(self, before: int, width: int, factor: Any):
    super().__init__()
    self.norm1 = nn.GroupNorm(32, before, eps=1e-6)
    self.conv1 = nn.Conv2d(before, width, 3, padding="same")
    self.norm2 = nn.GroupNorm(32, width, eps=1e-6)
    self.conv2 = nn.Conv2d(width, width, 3, padding="same")
    if before != width:
      self.conv_shortcut = nn.Conv2d(before, width, 1)
    self.pad = self.PADS[factor]
    if self.pad:
      self.downsample_conv = nn.Conv2d(width, width, 3, stride=factor)

  def forward(self, x):
    y = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
    y = y + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)
    return self.downsample_conv(F.pad(y, self.pad)) if self.pad else y


class Geglu(nn.Module):
  def __init__(self, width: int):
    super().__init__()
    self.proj = nn.Linear(width, 8 * width)

  def forward(self, x):
    values, gates = self.proj(x).chunk(2, dim=-1)
    return values * F.gelu(gates)


class FeedForward(nn.Module):
  def __init__(self, width: int):
    super().__init__()
    self.net = nn.Sequential(Geglu(width), nn.Dropout(0.0), nn.Linear(4 * width, width))

  def forward(self, x):
    return self.net(x)


class SelfAttention(nn.Module):
  def __init__(self, width: int):
    super().__init__()
    self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
    self.to_out = nn.Sequential(nn.Linear(width, width))

  def forward(self, x):
    q, k, v = (to(x).unflatten(-1, (8, -1)).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v))
    weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
    return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class SpatialAttention(nn.Module):
  def __init__(self, width: int):
    super().__init__()
    self.norm1 = nn.GroupNorm(32, width, eps=1e-6)
    self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)
    self.conv_in, self.conv_out = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
    self.attn, self.ff = SelfAttention(width), FeedForward(width)

  def forward(self, x):
    y = self.conv_in(self.norm1(x)).flatten(2).transpose(1, 2)
    y = y + self.attn(self.norm2(y))
    y = y + self.ff(self.norm3(y))
    return x + self.conv_out(y.transpose(1, 2).unflatten(2, x.shape[2:]))


class DownEncoder(nn.Module):
  def __init__(self, config: Mapping[str, Any]):
    super().__init__()
    widths = config["block_out_channels"]
    self.conv_in = nn.Conv2d(config["in_channels"], widths[0], 3, padding=1)
    blocks, before = [], widths[0]
    for width, factor, attends in zip(widths, config["downsample_factors"], config["attn_blocks"], strict=True):
      blocks += [Resnet(before, width, factor)] + ([SpatialAttention(width)] if attends else [])
      before = width
    self.down_blocks = nn.Sequential(*blocks)
    self.norm_out = nn.GroupNorm(32, before, eps=1e-6)

  def forward(self, x):
    return F.normalize(F.relu(self.norm_out(self.down_blocks(self.conv_in(x)))).flatten(1), dim=1)


class StableSyncNet(nn.Module):
  def __init__(self, config: Mapping[str, Mapping[str, Any]]):
    super().__init__()
    self.audio_encoder = DownEncoder(config["audio_encoder"])
    self.visual_encoder = DownEncoder(config["visual_encoder"])


# VocaLiST


class Conv(nn.Module):
  def __init__(self, before: int, width: int, kernel, stride, padding, *, axes: int, residual: bool = False):
    super().__init__()
    conv, norm = {2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}[axes]
    self.conv_block = nn.Sequential(conv(before, width, kernel, stride, padding), norm(width))
    self.residual = residual

  def forward(self, x):
    y = self.conv_block(x)
    return F.relu(y + x if self.residual else y)


def video_prenet(widths: Sequence[int]) -> nn.Sequential:
  a, b, c, d, e = widths
  same = lambda width, count: [Conv(width, width, 3, 1, 1, axes=3, residual=True) for _ in range(count)]
  half = lambda before, width: Conv(before, width, 3, (2, 2, 1), 1, axes=3)
  return nn.Sequential(
    Conv(3, a, 7, 1, 3, axes=3),
    Conv(a, b, 5, (1, 2, 1), (1, 1, 2), axes=3), *same(b, 2),
    half(b, c), *same(c, 3), half(c, d), *same(d, 2), half(d, e), *same(e, 2),
    half(e, e), Conv(e, e, 3, 1, (0, 0, 1), axes=3), Conv(e, e, 1, 1, 0, axes=3),
  )  # fmt: skip


def audio_prenet(widths: Sequence[int]) -> nn.Sequential:
  a, b, c, d, e = widths
  same = lambda width: [Conv(width, width, 3, 1, 1, axes=2, residual=True) for _ in range(2)]
  third = lambda before, width: Conv(before, width, 3, (3, 1), 1, axes=2)
  return nn.Sequential(
    Conv(1, a, 3, 1, 1, axes=2), *same(a), third(a, b), *same(b), third(b, c), *same(c), third(c, d), *same(d),
    Conv(d, e, 3, 1, (0, 1), axes=2), Conv(e, e, 1, 1, 0, axes=2),
  )  # fmt: skip


class Positions(nn.Module):
  """Sinusoids of fairseq for token numbers: number 0 is padding, and its row of the table is zero."""

  def __init__(self):
    super().__init__()
    self.register_buffer("_float_tensor", torch.zeros(1))

  def forward(self, tokens: torch.Tensor, width: int) -> torch.Tensor:
    length = tokens.shape[1]
    frequency = torch.exp(torch.arange(width // 2) * (-math.log(10000) / (width // 2 - 1)))
    angle = torch.arange(length + 1)[:, None] * frequency
    table = torch.cat([angle.sin(), angle.cos()], dim=1)
    table[0] = 0
    numbers = torch.arange(1, length + 1).expand_as(tokens).masked_fill(tokens == 0, 0)
    return table[numbers]


class CrossAttention(nn.Module):
  def __init__(self, width: int):
    super().__init__()
    self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
    self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
    self.out_proj = nn.Linear(width, width)

  def forward(self, x, context, mask):
    q, k, v = (
      F.linear(y, weight, bias).unflatten(-1, (8, -1)).transpose(1, 2)
      for y, weight, bias in zip(
        (x, context, context), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True
      )
    )
    weights = torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2) + mask, dim=-1)
    return self.out_proj((weights @ v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
  def __init__(self, width: int):
    super().__init__()
    self.self_attn = CrossAttention(width)
    self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
    self.layer_norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

  def forward(self, x, context, mask):
    first, second = self.layer_norms
    x = x + self.self_attn(first(x), first(context), mask)
    return x + self.fc2(F.relu(self.fc1(second(x))))


class Transformer(nn.Module):
  def __init__(self, width: int, depth: int):
    super().__init__()
    self.width = width
    self.embed_positions = Positions()
    self.layers = nn.ModuleList([Layer(width) for _ in range(depth)])
    self.layer_norm = nn.LayerNorm(width)
    self.register_buffer("version", torch.tensor([2.0]))

  def placed(self, x):
    return math.sqrt(self.width) * x + self.embed_positions(x[:, :, 0], self.width)

  def forward(self, x, context):
    n, m = x.shape[1], context.shape[1]
    mask = torch.triu(torch.full((n, m), -math.inf), 1 + abs(m - n))
    x, context = self.placed(x), self.placed(context)
    for layer in self.layers:
      x = layer(x, context, mask)
    return self.layer_norm(x)


class Vocalist(nn.Module):
  def __init__(self, *, widths: Sequence[int], depth: int):
    super().__init__()
    width = widths[-1]
    self.vid_prenet, self.aud_prenet = video_prenet(widths), audio_prenet(widths)
    self.av_transformer, self.va_transformer, self.mem_transformer = (Transformer(width, depth) for _ in range(3))
    self.fc, self.classifier = nn.Linear(width, width), nn.Linear(width, 1)

  def features(self, frames, mel):
    """(audio [n, 16, d], video [n, 5, d]) of the stacked frames [n, 15, 48, 96] and mel [n, 1, 80, 16]."""
    pictures = frames.unflatten(1, (-1, 3)).permute(0, 2, 3, 4, 1)  # colours, rows, columns, time
    return self.aud_prenet(mel)[:, :, 0].transpose(1, 2), self.vid_prenet(pictures)[:, :, 0, 0].transpose(1, 2)

  def forward(self, frames, mel):
    audio, video = self.features(frames, mel)
    both = self.mem_transformer(self.av_transformer(audio, video), self.va_transformer(video, audio))
    return self.classifier(torch.tanh(self.fc(both.amax(dim=1))))[:, 0]


# SyncNet v2


def syncnet_conv(dims, width_in, width_out, kernel, **options):
  convolution, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
  return [convolution(width_in, width_out, kernel, **options), norm(width_out), nn.ReLU()]


def syncnet_dense():
  return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))


class SyncNet(nn.Module):
  """SyncNet v2, `S(1024)` of joonson/syncnet_python."""

  def __init__(self):
    super().__init__()
    same = dict(padding=(0, 1, 1))
    self.netcnnlip = nn.Sequential(
      *syncnet_conv(3, 3, 96, (5, 7, 7), stride=(1, 2, 2)), nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
      *syncnet_conv(3, 96, 256, (1, 5, 5), stride=(1, 2, 2), **same),
      nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1)),
      *syncnet_conv(3, 256, 256, (1, 3, 3), **same), *syncnet_conv(3, 256, 256, (1, 3, 3), **same),
      *syncnet_conv(3, 256, 256, (1, 3, 3), **same), nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
      *syncnet_conv(3, 256, 512, (1, 6, 6)),
    )  # fmt: skip
    self.netcnnaud = nn.Sequential(
      *syncnet_conv(2, 1, 64, 3, padding=1), nn.MaxPool2d(1, 1),
      *syncnet_conv(2, 64, 192, 3, padding=1), nn.MaxPool2d(3, (1, 2)),
      *syncnet_conv(2, 192, 384, 3, padding=1), *syncnet_conv(2, 384, 256, 3, padding=1),
      *syncnet_conv(2, 256, 256, 3, padding=1), nn.MaxPool2d(3, 2),
      *syncnet_conv(2, 256, 512, (5, 4)),
    )  # fmt: skip
    self.netfclip, self.netfcaud = syncnet_dense(), syncnet_dense()

  def tokens(self, frames, columns):
    """As in the script: window by window, BGR without normalisation, 20 columns from column 4t on."""
    pictures = torch.from_numpy(frames[..., ::-1].astype(np.float32)).permute(3, 0, 1, 2)[None]
    heard = torch.from_numpy(columns.T.astype(np.float32))[None, None]
    windows = range(len(frames) - 5)
    lips = torch.cat([self.netfclip(self.netcnnlip(pictures[:, :, t : t + 5]).flatten(1)) for t in windows])
    audio = torch.cat([self.netfcaud(self.netcnnaud(heard[..., 4 * t : 4 * t + 20]).flatten(1)) for t in windows])
    return audio.numpy(), lips.numpy()
