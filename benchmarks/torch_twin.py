"""The pretraining step in PyTorch, the reference for `train_step.py`.

It has the same model, losses and optimiser (fused AdamW), built from the same configuration with `torch_modules.py`.
The frozen speech encoder runs under `no_grad`. Random choices are drawn for the whole batch at once, as is usual in
torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from torch_modules import Decoder, LogMel, VisualEncoder, Wav2Vec2, take

from synclipmae_jax.models import masking
from synclipmae_jax.models.augment import LUMA, RGB_TO_YIQ, YIQ_TO_RGB
from synclipmae_jax.models.visual_encoder import PIXEL_MEAN, PIXEL_STD


class Twin(nn.Module):
  """The trained model; `forward` is the loss of a batch of `types.Batch`, without its `index`."""

  def __init__(self, config: ConfigDict, *, lean: bool):
    super().__init__()
    model, data = config.model, config.data
    self.config, self.patch = config, model.visual_encoder.patch
    self.grid = data.image_size // self.patch
    self.visible = round(self.grid**2 * (1 - model.mask_ratio))
    kind = model.speech_encoder.kind
    speech = {"log_mel": LogMel, "wav2vec2": Wav2Vec2}[kind](**model.speech_encoder[kind]).requires_grad_(False)
    self.speech_encoder = speech
    features, width = speech.layers * speech.width, model.visual_encoder.width
    self.visual_encoder = VisualEncoder(grid=self.grid, **model.visual_encoder)
    self.audio_adapter = nn.Sequential(
      nn.LayerNorm(features, eps=1e-6), nn.Linear(features, width), nn.GELU(), nn.Linear(width, width)
    )
    decoder = {name: size for name, size in model.decoder.items() if name != "conditioning"}
    self.decoder = Decoder(grid=self.grid, patch=self.patch, token_width=width, lean=lean, **decoder)
    self.log_temperature = nn.Parameter(torch.tensor(math.log(config.loss.temperature_init)))
    for part in (self.visual_encoder, self.audio_adapter, self.decoder):
      for linear in (module for module in part.modules() if isinstance(module, nn.Linear)):
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
    constants = {"mean": PIXEL_MEAN, "std": PIXEL_STD, "luma": LUMA, "yiq": RGB_TO_YIQ, "rgb": YIQ_TO_RGB}
    for name, value in constants.items():
      self.register_buffer(name, torch.from_numpy(np.array(value)))
    self.register_buffer("prior", torch.tensor(masking.MOUTH_PRIOR))

  def forward(self, frames: Tensor, waveform: Tensor, face_box: Tensor, mouth_box: Tensor) -> Tensor:
    config, clips, total = self.config.model, *frames.shape[:2]
    chosen, count = config.decode_frames, self.grid**2
    unit = rearrange(frames, "b t (h p) (w q) c -> b t (h w) (p q) c", p=self.patch, q=self.patch)
    decoded = torch.rand(clips, total, device=frames.device).argsort(1)[:, :chosen].sort(1).values
    motion_index = self.sample(torch.log(self.keep_weights(face_box, mouth_box)))
    context_index = self.sample(torch.zeros(clips, chosen, count, device=frames.device))
    target = take(unit, decoded, 1)
    pixels = lambda x: self.normalise(x.float() / 255)
    motion = self.normalise(self.jitter(take(unit, motion_index, 2).float() / 255, frames))
    context = pixels(take(target, context_index, 2))
    tokens = self.visual_encoder(torch.cat([context, motion], 1), torch.cat([context_index, motion_index], 1))
    visible = tokens.shape[2] - self.visible
    identity, patches = tokens[:, :chosen, 0], tokens[:, :chosen, visible:]
    vocal, ambient = tokens[:, chosen:, 1], tokens[:, chosen:, 2]
    with torch.no_grad():
      heard = waveform - waveform.mean(1, keepdim=True)
      hidden = self.speech_encoder(heard / torch.sqrt(heard.square().mean(1, keepdim=True) + 1e-7))
    lead = (hidden.shape[1] - total) // 2
    audio = self.audio_adapter(hidden[:, lead : lead + total].flatten(2))

    shown, moved = (take(x, decoded, 1) for x in (vocal, ambient))
    shared = torch.stack([self.shuffle(identity), moved], 2)
    prompts = torch.stack([torch.cat([shared, x[:, :, None]], 2) for x in (shown, take(audio, decoded, 1))], 2)
    masked = torch.ones(clips, chosen, count, device=frames.device).scatter(2, context_index, 0.0)
    only_masked = self.config.loss.reconstruct_patches == "masked"
    scored = masked.argsort(2, descending=True)[:, :, : count - self.visible] if only_masked else None
    predicted = self.decoder(patches, context_index, prompts, scored)
    target = pixels(target)
    if scored is not None and self.decoder.lean:
      target, masked = take(target, scored, 2), torch.ones_like(scored, dtype=torch.float32)
    error = (predicted - target[:, :, None]).square().mean(-1)
    weight = masked[:, :, None].expand_as(error) if only_masked else torch.ones_like(error)
    reconstruction = 2 * (error * weight).sum() / weight.sum()
    covariance = (
      _cross_covariance(identity, shown) + _cross_covariance(identity, moved) + _cross_covariance(vocal, ambient)
    )
    weights = self.config.loss.weights
    return (
      weights.reconstruction * reconstruction
      + weights.contrast * self.contrast(audio, vocal)
      + weights.covariance * covariance
    )

  def normalise(self, x: Tensor) -> Tensor:
    return ((x - self.mean) / self.std).flatten(-2)

  def sample(self, log_weights: Tensor) -> Tensor:
    gumbel = -torch.log(torch.empty_like(log_weights).exponential_())
    return (log_weights + gumbel).topk(self.visible, dim=-1).indices

  def keep_weights(self, face: Tensor, mouth: Tensor) -> Tensor:
    corner, size = face[..., :2], face[..., 2:] - face[..., :2]
    prior = torch.cat([corner + size * self.prior[:2], corner + size * self.prior[2:]], -1)
    mouth = torch.where(mouth[..., 2:3] > mouth[..., :1], mouth, prior)
    edges = torch.arange(self.grid + 1, device=face.device) / self.grid

    def coverage(box: Tensor) -> Tensor:
      inside = lambda low, high: (
        (torch.minimum(high[..., None], edges[1:]) - torch.maximum(low[..., None], edges[:-1])).clamp(0) * self.grid
      )
      columns, rows = inside(box[..., 0], box[..., 2]), inside(box[..., 1], box[..., 3])
      return (rows[..., :, None] * columns[..., None, :]).flatten(-2)

    model = self.config.model
    return torch.maximum(1 + (model.face_weight - 1) * coverage(face), 1 + (model.mouth_weight - 1) * coverage(mouth))

  def jitter(self, x: Tensor, frames: Tensor) -> Tensor:
    """One draw of brightness, contrast, saturation and hue per clip, on [B, T, K, pixels, 3] in [0, 1]."""
    strength, clips, one = self.config.model.jitter, len(x), torch.eye(3, device=x.device)
    amounts = torch.tensor([strength[k] for k in ("brightness", "contrast", "saturation", "hue")], device=x.device)
    draw = (2 * torch.rand(clips, 4, device=x.device) - 1) * amounts
    draw = draw * (torch.rand(clips, 1, device=x.device) < strength.probability)
    bright, contrasted, saturated = (1 + draw[:, i, None, None] for i in range(3))
    cos, sin = torch.cos(2 * math.pi * draw[:, 3]), torch.sin(2 * math.pi * draw[:, 3])
    turn = one.repeat(clips, 1, 1)
    turn[:, 1, 1], turn[:, 1, 2], turn[:, 2, 1], turn[:, 2, 2] = cos, -sin, sin, cos
    colour = (saturated * one + (1 - saturated) * self.luma[:, None]) @ (self.rgb @ turn @ self.yiq).mT
    grey = frames.mean((1, 2, 3), dtype=torch.float32) @ self.luma / 255
    offset = (1 - contrasted) * bright * grey[:, None, None]
    mapped = x.flatten(1, 3) @ (bright * contrasted * colour) + offset
    return mapped.clamp(0, 1).view_as(x)

  def shuffle(self, identity: Tensor) -> Tensor:
    pairs = rearrange(identity, "(r w) f d -> r (w f) d", w=2)
    order = torch.rand(pairs.shape[:2], device=pairs.device).argsort(1)
    moved = torch.rand(len(pairs), 1, device=pairs.device) < self.config.model.shuffle_probability
    order = torch.where(moved, order, torch.arange(pairs.shape[1], device=pairs.device))
    return take(pairs, order, 1).view_as(identity)

  def contrast(self, audio: Tensor, vocal: Tensor) -> Tensor:
    group = self.config.loss.negatives_clips
    audio, vocal = (
      rearrange(F.normalize(x.float(), dim=-1), "(g c) t d -> g (c t) d", c=group) for x in (audio, vocal)
    )
    logits = audio @ vocal.mT / self.log_temperature.exp()
    same = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    return 0.5 * (F.cross_entropy(logits, same) + F.cross_entropy(logits.mT, same))


def _cross_covariance(x: Tensor, y: Tensor) -> Tensor:
  x, y = (z.float().flatten(0, 1) for z in (x, y))
  x, y = x - x.mean(0), y - y.mean(0)
  count, width = x.shape
  squared = (x @ x.T * (y @ y.T)).sum() if count < width else (x.T @ y).square().sum()
  return squared / ((count - 1) ** 2 * width)


class Trainer:
  """The step: loss, backward, clipping by the global norm, AdamW (weight decay on matrices only)."""

  def __init__(self, config: ConfigDict, *, lean: bool):
    self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    self.model = Twin(config, lean=lean).to(self.device)
    self.dtype = getattr(torch, config.model.compute_dtype)
    self.trained = [p for p in self.model.parameters() if p.requires_grad]
    kernel = lambda name, p: p.ndim > 1 and name.endswith("weight")
    named = [(kernel(name, p), p) for name, p in self.model.named_parameters() if p.requires_grad]
    matrices, rest = ([p for decays, p in named if decays == wanted] for wanted in (True, False))
    o = config.optimizer
    self.clip_norm = o.clip_norm
    self.optimizer = torch.optim.AdamW(
      [{"params": matrices, "weight_decay": o.weight_decay}, {"params": rest, "weight_decay": 0.0}],
      lr=o.peak_lr, betas=(o.b1, o.b2), fused=True,
    )  # fmt: skip

  def compile(self) -> None:
    """Compiles the model."""
    self.model.compile()

  def step(self, batch: dict[str, Tensor]) -> Tensor:
    self.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
      loss = self.model(**batch)
    loss.backward()
    nn.utils.clip_grad_norm_(self.trained, self.clip_norm)
    self.optimizer.step()
    low, high = map(math.log, self.model.config.loss.temperature_range)
    self.model.log_temperature.data.clamp_(low, high)
    return loss.detach()


def count_flops(run: Callable[[], Any]) -> tuple[Any, int]:
  """(result of `run`, FLOPs of its matrix products and convolutions), counted like the FLOPs of the JAX step.

  torch's counter has no formula for attention on a CPU and would not count it. Backward counts twice forward: torch's
  formulas for a GPU also include the scores that the kernel recomputes.
  """
  aten = torch.ops.aten
  forward = lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)
  backward = lambda _, query, key, value, *__, **___: 2 * sdpa_flop_count(query, key, value)
  formulas = {
    aten._scaled_dot_product_flash_attention_for_cpu: forward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    aten._scaled_dot_product_flash_attention_backward: backward,
    aten._scaled_dot_product_efficient_attention_backward: backward,
    aten._scaled_dot_product_cudnn_attention_backward: backward,
  }
  with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
    result = run()
  return result, counter.get_total_flops()
