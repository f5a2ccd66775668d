"""Auto-AVSR in torch, at any size, with the names of its released files. Written from the arithmetic of
mpc001/auto_avsr; sizes as `convert.auto_avsr` describes them."""

import math

import torch
from torch import nn


class LayerNorm(nn.LayerNorm):
  def __init__(self, width):
    super().__init__(width, eps=1e-12)


class FeedForward(nn.Module):
  def __init__(self, width, hidden):
    super().__init__()
    self.w_1, self.w_2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

  def forward(self, x):
    return self.w_2(self.w_1(x).relu())


class Attention(nn.Module):
  def __init__(self, width, heads, *, relative):
    super().__init__()
    self.heads = heads
    for name in ("q", "k", "v", "out"):
      setattr(self, f"linear_{name}", nn.Linear(width, width))
    if relative:
      self.linear_pos = nn.Linear(width, width, bias=False)
      self.pos_bias_u, self.pos_bias_v = (nn.Parameter(torch.zeros(heads, width // heads)) for _ in range(2))

  def forward(self, x, context, *, mask=None, positions=None):
    split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(-2, -3)
    q, k, v = split(self.linear_q(x)), split(self.linear_k(context)), split(self.linear_v(context))
    if positions is None:
      scores = q @ k.mT
    else:
      # positions [n, n, d]: the sinusoid of the distance i - j of query i and key j
      r = self.linear_pos(positions).unflatten(-1, (self.heads, -1))
      far = torch.einsum("bhid,ijhd->bhij", q + self.pos_bias_v[:, None], r)
      scores = (q + self.pos_bias_u[:, None]) @ k.mT + far
    scores = scores / math.sqrt(q.shape[-1])
    if mask is not None:
      scores = scores.masked_fill(~mask, -math.inf)
    return self.linear_out((scores.softmax(-1) @ v).transpose(-2, -3).flatten(-2))


def sinusoid(position, width):
  angle = position[..., None] * torch.exp(torch.arange(0, width, 2) * -(math.log(10000.0) / width))
  return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)


class ConvModule(nn.Module):
  def __init__(self, width, kernel):
    super().__init__()
    self.pointwise_cov1 = nn.Conv1d(width, 2 * width, 1)
    self.depthwise_conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
    self.norm = nn.BatchNorm1d(width)
    self.pointwise_cov2 = nn.Conv1d(width, width, 1)

  def forward(self, x):
    x = nn.functional.glu(self.pointwise_cov1(x.mT), dim=1)
    return self.pointwise_cov2(nn.functional.silu(self.norm(self.depthwise_conv(x)))).mT


class EncoderLayer(nn.Module):
  def __init__(self, width, heads, mlp_width, kernel):
    super().__init__()
    self.self_attn = Attention(width, heads, relative=True)
    self.feed_forward, self.feed_forward_macaron = FeedForward(width, mlp_width), FeedForward(width, mlp_width)
    self.conv_module = ConvModule(width, kernel)
    for name in ("ff", "mha", "ff_macaron", "conv", "final"):
      setattr(self, f"norm_{name}", LayerNorm(width))

  def forward(self, x, positions):
    x = x + 0.5 * self.feed_forward_macaron(self.norm_ff_macaron(x))
    y = self.norm_mha(x)
    x = x + self.self_attn(y, y, positions=positions)
    x = x + self.conv_module(self.norm_conv(x))
    return self.norm_final(x + 0.5 * self.feed_forward(self.norm_ff(x)))


class Encoder(nn.Module):
  def __init__(self, width, depth, heads, mlp_width, kernel):
    super().__init__()
    self.encoders = nn.ModuleList(EncoderLayer(width, heads, mlp_width, kernel) for _ in range(depth))
    self.after_norm = LayerNorm(width)

  def forward(self, x):
    time = torch.arange(x.shape[1])
    positions = sinusoid((time[:, None] - time).float(), x.shape[-1])
    x = x * math.sqrt(x.shape[-1])
    for layer in self.encoders:
      x = layer(x, positions)
    return self.after_norm(x)


class DecoderLayer(nn.Module):
  def __init__(self, width, heads, mlp_width):
    super().__init__()
    self.self_attn, self.src_attn = (Attention(width, heads, relative=False) for _ in range(2))
    self.feed_forward = FeedForward(width, mlp_width)
    self.norm1, self.norm2, self.norm3 = (LayerNorm(width) for _ in range(3))

  def forward(self, x, memory):
    y = self.norm1(x)
    x = x + self.self_attn(y, y, mask=torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril())
    x = x + self.src_attn(self.norm2(x), memory)
    return x + self.feed_forward(self.norm3(x))


class Decoder(nn.Module):
  def __init__(self, vocabulary, width, depth, heads, mlp_width):
    super().__init__()
    self.embed = nn.Sequential(nn.Embedding(vocabulary, width))
    self.decoders = nn.ModuleList(DecoderLayer(width, heads, mlp_width) for _ in range(depth))
    self.after_norm, self.output_layer = LayerNorm(width), nn.Linear(width, vocabulary)

  def forward(self, tokens, memory):
    x = self.embed(tokens)
    x = x * math.sqrt(x.shape[-1]) + sinusoid(torch.arange(x.shape[1]).float(), x.shape[-1])
    for layer in self.decoders:
      x = layer(x, memory)
    return self.output_layer(self.after_norm(x))


class BasicBlock(nn.Module):
  def __init__(self, width_in, width, stride, activation):
    super().__init__()
    self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
    self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
    self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
    self.relu1, self.relu2 = activation(width), activation(width)
    if stride != 1 or width_in != width:
      self.downsample = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

  def forward(self, x):
    y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
    return self.relu2(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class Frontend(nn.Module):
  """`activation`: of the number of channels; AV-HuBERT, which has the same front end, has PReLU."""

  def __init__(self, widths, activation=lambda width: nn.SiLU()):
    super().__init__()
    self.frontend3D = nn.Sequential(
      nn.Conv3d(1, widths[0], (5, 7, 7), (1, 2, 2), (2, 3, 3), bias=False), nn.BatchNorm3d(widths[0]),
      activation(widths[0]), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
    )  # fmt: skip
    self.trunk, before = nn.Module(), widths[0]
    for number, width in enumerate(widths, start=1):
      stride = 1 if number == 1 else 2
      blocks = nn.Sequential(BasicBlock(before, width, stride, activation), BasicBlock(width, width, 1, activation))
      setattr(self.trunk, f"layer{number}", blocks)
      before = width

  def forward(self, crops):  # [B, T, H, W]
    x = self.frontend3D(crops[:, None]).transpose(1, 2)
    batch = len(x)
    x = x.flatten(0, 1)
    for number in range(1, 5):
      x = getattr(self.trunk, f"layer{number}")(x)
    return x.mean((2, 3)).unflatten(0, (batch, -1))


class AutoAvsr(nn.Module):
  def __init__(self, *, widths, vocabulary, conformer, text_decoder):
    super().__init__()
    conformer = dict(conformer)
    self.frontend = Frontend(widths)
    self.proj_encoder = nn.Linear(conformer.pop("in_features"), conformer["width"])
    self.encoder = Encoder(**conformer)
    self.decoder = Decoder(vocabulary, **text_decoder)
    self.ctc = nn.Module()
    self.ctc.ctc_lo = nn.Linear(conformer["width"], vocabulary)
