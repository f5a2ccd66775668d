"""AV-HuBERT in torch, at any size, with the names of its released files. Written from the arithmetic of
facebookresearch/av_hubert and fairseq; sizes as `convert.av_hubert` describes them."""

import math

import torch
from parity.auto_avsr_reference import Frontend
from torch import nn
from torch.nn.utils import weight_norm


class Attention(nn.Module):
  def __init__(self, width, heads):
    super().__init__()
    self.heads = heads
    for name in ("q", "k", "v", "out"):
      setattr(self, f"{name}_proj", nn.Linear(width, width))

  def forward(self, x, context, *, mask=None):
    split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
    q, k, v = split(self.q_proj(x)), split(self.k_proj(context)), split(self.v_proj(context))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
      scores = scores.masked_fill(~mask, -math.inf)
    return self.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2))


class Layer(nn.Module):
  """Pre-LN. With `causal` it is one of the decoder: ReLU, and attention to a memory."""

  def __init__(self, width, heads, mlp_width, *, causal):
    super().__init__()
    self.causal = causal
    self.self_attn, self.self_attn_layer_norm = Attention(width, heads), nn.LayerNorm(width)
    if causal:
      self.encoder_attn, self.encoder_attn_layer_norm = Attention(width, heads), nn.LayerNorm(width)
    self.fc1, self.fc2 = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)
    self.final_layer_norm = nn.LayerNorm(width)

  def forward(self, x, memory=None):
    y = self.self_attn_layer_norm(x)
    mask = torch.ones(x.shape[1], x.shape[1]).tril().bool() if self.causal else None
    x = x + self.self_attn(y, y, mask=mask)
    if self.causal:
      x = x + self.encoder_attn(self.encoder_attn_layer_norm(x), memory)
    y = self.fc1(self.final_layer_norm(x))
    return x + self.fc2(y.relu() if self.causal else nn.functional.gelu(y))


class Encoder(nn.Module):
  def __init__(self, width, depth, heads, mlp_width, pos_kernel, pos_groups):
    super().__init__()
    conv = nn.Conv1d(width, width, pos_kernel, padding=pos_kernel // 2, groups=pos_groups)
    self.pos_conv = nn.Sequential(weight_norm(conv, name="weight", dim=2))
    self.layers = nn.ModuleList(Layer(width, heads, mlp_width, causal=False) for _ in range(depth))
    self.layer_norm = nn.LayerNorm(width)

  def forward(self, x):
    placed = self.pos_conv(x.mT)[..., : x.shape[1]]  # an even kernel gives one too many
    x = x + nn.functional.gelu(placed).mT
    for layer in self.layers:
      x = layer(x)
    return self.layer_norm(x)


class AvHubert(nn.Module):
  """`features` of lips and of sound -> states. In the file of pretraining there is more, which reading does not use."""

  def __init__(self, widths, encoder):
    super().__init__()
    encoder = dict(encoder)
    lips, sound, width = encoder.pop("in_features"), encoder.pop("sound"), encoder["width"]
    self.feature_extractor_video, self.feature_extractor_audio = nn.Module(), nn.Module()
    self.feature_extractor_video.resnet = Frontend(widths, nn.PReLU)
    self.feature_extractor_video.proj = nn.Linear(lips, width)
    self.feature_extractor_audio.proj = nn.Linear(sound, width)
    self.layer_norm, self.post_extract_proj = nn.LayerNorm(2 * width), nn.Linear(2 * width, width)
    self.mask_emb = nn.Parameter(torch.zeros(sound))
    self.final_proj = nn.Linear(width, 8)
    self.encoder = Encoder(**encoder)

  def forward(self, lips, sound=None):
    seen = self.feature_extractor_video.proj(lips)
    heard = torch.zeros_like(seen) if sound is None else self.feature_extractor_audio.proj(sound)
    return self.encoder(self.post_extract_proj(self.layer_norm(torch.cat([heard, seen], dim=-1))))


class Decoder(nn.Module):
  """fairseq's decoder with shared embeddings, which are not scaled; padding has id 1."""

  def __init__(self, vocabulary, width, depth, heads, mlp_width):
    super().__init__()
    self.embed_tokens = nn.Embedding(vocabulary, width, padding_idx=1)
    self.layers = nn.ModuleList(Layer(width, heads, mlp_width, causal=True) for _ in range(depth))
    self.layer_norm = nn.LayerNorm(width)

  def forward(self, tokens, memory):
    width = self.embed_tokens.embedding_dim
    rate = torch.exp(torch.arange(width // 2) * -(math.log(10000) / (width // 2 - 1)))
    angle = torch.arange(2, 2 + tokens.shape[1])[:, None] * rate
    x = self.embed_tokens(tokens) + torch.cat([angle.sin(), angle.cos()], dim=1)
    for layer in self.layers:
      x = layer(x, memory)
    return self.layer_norm(x) @ self.embed_tokens.weight.T


class SequenceToSequence(nn.Module):
  """av_hubert_seq2seq."""

  def __init__(self, *, widths, encoder, decoder):
    super().__init__()
    self.encoder = nn.Module()
    self.encoder.w2v_model = AvHubert(widths, encoder)
    self.decoder = Decoder(**decoder)


class Ctc(nn.Module):
  """av_hubert_ctc."""

  def __init__(self, *, widths, encoder, ctc):
    super().__init__()
    self.w2v_encoder = nn.Module()
    self.w2v_encoder.w2v_model = AvHubert(widths, encoder)
    self.w2v_encoder.proj = nn.Linear(encoder["width"], ctc)
