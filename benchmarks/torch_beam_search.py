"""The joint CTC/attention beam search and its decoder in PyTorch, for `beam_search.py`.

It is the algorithm of `synclipmae_jax.decoding` step by step: batched, prefix scores of all labels in one sum over the
frames, states of the kept hypotheses frame by frame, keys and values of the decoder kept, the same exact end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from synclipmae_jax.models.sequence import sinusoids

INF = math.inf


class Decoder:
  """The decoder of `models.text_decoder`, one token at a time, with the parameters of ours."""

  def __init__(self, params: Mapping[str, Any], heads: int):
    self.p = {key: torch.from_numpy(np.array(value)) for key, value in _flat(params).items()}
    self.heads = heads
    self.depth, self.width = self.p["blocks/attention/out/bias"].shape

  def _dense(self, name: str, x: Tensor, layer: int | None) -> Tensor:
    kernel, bias = self.p[f"{name}/kernel"], self.p[f"{name}/bias"]
    return x @ (kernel if layer is None else kernel[layer]) + (bias if layer is None else bias[layer])

  def _norm(self, name: str, x: Tensor, layer: int | None) -> Tensor:
    scale, bias = self.p[f"{name}/scale"], self.p[f"{name}/bias"]
    return F.layer_norm(x, x.shape[-1:], *((scale, bias) if layer is None else (scale[layer], bias[layer])), 1e-6)

  def start(self, memory: Tensor, lengths: Tensor, *, beam: int, steps: int) -> dict[str, Any]:
    split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
    cross = [
      map(split, self._dense("blocks/cross/key_value", memory, layer).chunk(2, -1)) for layer in range(self.depth)
    ]
    shape = (self.depth, 2, len(memory), beam, self.heads, steps, self.width // self.heads)
    mask = torch.arange(memory.shape[1])[None, None, None] < lengths[:, None, None, None]
    places = torch.from_numpy(sinusoids(np.arange(steps), self.width))
    return {"cross": [tuple(pair) for pair in cross], "past": torch.zeros(shape), "mask": mask, "places": places}

  def step(self, state: dict[str, Any], tokens: Tensor, place: int) -> Tensor:
    batch, beam = tokens.shape
    x = self.p["embedding"][tokens] * math.sqrt(self.width) + state["places"][place]
    for layer in range(self.depth):
      y = self._norm("blocks/norm_attention", x, layer)
      split = lambda z: z.unflatten(-1, (self.heads, -1))
      past = state["past"][layer]
      for number, new in enumerate(self._dense("blocks/attention/key_value", y, layer).chunk(2, -1)):
        past[number][..., place, :] = split(new)
      q = split(self._dense("blocks/attention/query", y, layer)).flatten(0, 1)[:, :, None]
      keys, values = (past[number].flatten(0, 1)[:, :, : place + 1] for number in (0, 1))
      seen = F.scaled_dot_product_attention(q, keys, values).reshape(batch, beam, -1)
      x = x + self._dense("blocks/attention/out", seen, layer)
      q = split(self._dense("blocks/cross/query", self._norm("blocks/norm_cross", x, layer), layer)).transpose(1, 2)
      seen = F.scaled_dot_product_attention(q, *state["cross"][layer], attn_mask=state["mask"])
      x = x + self._dense("blocks/cross/out", seen.transpose(1, 2).flatten(-2), layer)
      y = self._dense("blocks/mlp/up", self._norm("blocks/norm_mlp", x, layer), layer).relu()
      x = x + self._dense("blocks/mlp/down", y, layer)
    return self._dense("output", self._norm("norm", x, None), None).log_softmax(-1)


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
  found = {}
  for key, value in tree.items():
    found |= _flat(value, f"{path}{key}/") if isinstance(value, Mapping) else {f"{path}{key}": value}
  return found


@torch.no_grad()
def search(
  log_probs: Tensor, frames: Tensor, decoder: Decoder, memory: Tensor, *, beam: int, max_tokens: int, ctc_weight: float
) -> list[list[int]]:
  """The best text of every example. `log_probs` [B, T, V], blank 0, the end of a sentence last."""
  batch, total, vocabulary = log_probs.shape
  end = vocabulary - 1
  inside = torch.arange(total)[None, :, None] < frames[:, None, None]
  blank = torch.where(torch.arange(vocabulary) == 0, 0.0, -INF)
  log_probs = torch.where(inside, log_probs, blank)
  rows = torch.arange(batch)[:, None]
  label = torch.full((batch, beam, total + 1), -INF)
  empty = F.pad(log_probs[:, :, 0].cumsum(1), (1, 0))[:, None].repeat(1, beam, 1)
  last_label = torch.full((batch, beam), -1)
  last = torch.full((batch, beam), end)
  base = torch.where(torch.arange(beam) == 0, 0.0, -INF).repeat(batch, 1)
  score, tokens = base.clone(), torch.zeros(batch, beam, max_tokens, dtype=torch.long)
  limit = frames.clamp(max=max_tokens)[:, None]
  best, text, length = torch.full((batch,), -INF), torch.zeros(batch, max_tokens, dtype=torch.long), torch.zeros(batch)
  state = decoder.start(memory, frames, beam=beam, steps=max_tokens + 1)
  forbidden = torch.zeros(vocabulary, dtype=torch.bool)
  forbidden[[0, end]] = True
  for place in range(max_tokens + 1):
    if not ((score.max(1).values > best) & (place <= limit[:, 0])).any():
      break
    gained = (1 - ctc_weight) * decoder.step(state, last, place)
    whole = torch.logaddexp(label[..., -1], empty[..., -1])
    sentence, which = (base + gained[..., end] + ctc_weight * whole).max(1)
    better = sentence > best
    best = torch.where(better, sentence, best)
    text = torch.where(better[:, None], tokens[rows[:, 0], which], text)
    length = torch.where(better, float(place), length)
    gained = gained.masked_fill(forbidden | (place >= limit)[..., None], -INF)
    grown = base[..., None] + gained
    before = torch.logaddexp(label, empty)[..., :-1, None]
    prefix = (before + log_probs[:, None]).logsumexp(2)
    repeated = log_probs.gather(2, last_label.clamp(min=0)[:, None].expand(-1, total, -1)).transpose(1, 2)
    same = (empty[..., :-1] + repeated).logsumexp(2, keepdim=True)
    prefix = torch.where(torch.arange(vocabulary) == last_label[..., None], same, prefix)
    total_score = torch.where(grown == -INF, -INF, grown + ctc_weight * prefix)
    score, index = total_score.flatten(1).topk(beam)
    parents, last = index // vocabulary, index % vocabulary
    base = torch.where(score == -INF, -INF, grown.flatten(1).gather(1, index))
    tokens = tokens[rows, parents]
    if place < max_tokens:
      tokens[..., place] = last
    label, empty = _extend(
      log_probs, label[rows, parents], empty[rows, parents], last == last_label[rows, parents], last
    )
    last_label = last
    state["past"] = state["past"][:, :, rows, parents]
  return [row[: int(count)].tolist() for row, count in zip(text, length, strict=True)]


def _extend(log_probs: Tensor, label: Tensor, empty: Tensor, repeats: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
  before = torch.where(repeats[..., None], empty, torch.logaddexp(label, empty))
  emitted = log_probs.gather(2, last[:, None].expand(-1, log_probs.shape[1], -1))
  labels = torch.full_like(label, -INF)
  blanks = torch.full_like(label, -INF)
  for t in range(log_probs.shape[1]):
    labels[..., t + 1] = torch.logaddexp(labels[..., t], before[..., t]) + emitted[:, t]
    blanks[..., t + 1] = torch.logaddexp(labels[..., t], blanks[..., t]) + log_probs[:, t, :1]
  return labels, blanks
