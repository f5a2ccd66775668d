"""The recogniser of lip reading: Conformer, a linear layer for CTC and a Transformer decoder, as three items."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from synclipmae_jax.models import conformer, flops, text_decoder
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.layers import Linear
from synclipmae_jax.models.sequence import NO_DROPOUT, Dropout, valid_frames
from synclipmae_jax.types import InputError, Params

SECOND = 25  # frames: one time mask for each, as in Auto-AVSR


class CtcHead(nnx.Module):
  """States -> float32 log-probabilities of the labels, blank first."""

  def __init__(self, width: int, vocabulary: int, *, rngs: nnx.Rngs):
    self.output = Linear(width, vocabulary, compute_dtype=jnp.float32, rngs=rngs)

  def __call__(self, states: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
    return jax.nn.log_softmax(self.output(states.astype(jnp.float32)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recogniser:
  """Tokens of frames -> states -> text. Parameters are a dict of the items ITEMS.

  `normalise` brings every token to zero mean and unit variance over its dimensions first; `centre` takes the mean over
  the clip off every dimension before that: what stays the same throughout a clip, like the face, is not read.
  """

  encoder: Functional
  ctc: Functional
  decoder: Functional
  in_features: int
  vocabulary: int
  normalise: bool = True
  centre: bool = False

  ITEMS = ("conformer", "ctc_head", "text_decoder")

  @property
  def end(self) -> int:
    """The token that starts and ends a sentence."""
    return self.vocabulary - 1

  def init(self, key: Key[Array, ""]) -> Params:
    keys = jax.random.split(key, 3)
    parts = (self.encoder, self.ctc, self.decoder)
    return {name: part.init(k) for name, part, k in zip(self.ITEMS, parts, keys, strict=True)}

  def states(
    self, params: Params, tokens: Float[Array, "b t c"], lengths: Int[Array, " b"], dropout: Dropout = NO_DROPOUT
  ) -> Float[Array, "b t d"]:
    return self.encoder.bind(params["conformer"])(tokens, lengths, dropout)

  def prepare(self, tokens: Float[Array, "b t c"], lengths: Int[Array, " b"]) -> Float[Array, "b t c"]:
    """float32 tokens, centred and normalised as asked for; zero beyond the lengths."""
    tokens, valid = tokens.astype(jnp.float32), valid_frames(lengths, tokens.shape[1])[..., None]
    if self.centre:
      count = jnp.maximum(lengths, 1)[:, None, None]
      tokens = tokens - jnp.where(valid, tokens, 0).sum(axis=1, keepdims=True) / count
    if self.normalise:
      tokens = tokens - tokens.mean(axis=-1, keepdims=True)
      tokens = tokens * jax.lax.rsqrt(jnp.square(tokens).mean(axis=-1, keepdims=True) + 1e-6)
    return jnp.where(valid, tokens, 0)

  def ctc_log_probs(self, params: Params, states: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
    return self.ctc.bind(params["ctc_head"])(states)

  def decoder_logits(
    self,
    params: Params,
    previous: Int[Array, "b n"],
    states: Float[Array, "b t d"],
    lengths: Int[Array, " b"],
    dropout: Dropout = NO_DROPOUT,
  ) -> Float[Array, "b n v"]:
    return self.decoder.bind(params["text_decoder"])(previous, states, lengths, dropout)

  def flops(self, frames: int, tokens: int) -> int:
    """Forward FLOPs of one example."""
    encoder, decoder = (part.bind(part.abstract) for part in (self.encoder, self.decoder))
    head = flops.dense(frames, encoder.width, self.vocabulary)
    return encoder.flops(frames) + head + decoder.flops(tokens + 1, frames)


def build_recogniser(
  model: Mapping[str, Any], *, in_features: int, vocabulary: int, compute_dtype=None, unroll=None, remat=None
) -> Recogniser:
  """The recogniser of `config.model` (configs/vsr.py), as nested dicts. Raises InputError for a size without name."""
  encoder, decoder = dict(model["conformer"]), dict(model["text_decoder"])
  if encoder["width"] != decoder["width"]:
    raise InputError(f"Conformer and decoder have one width, not {encoder['width']} and {decoder['width']}")
  if vocabulary < 3:
    raise InputError(f"a vocabulary has a blank, an end and at least one symbol, not {vocabulary} in all")
  common: dict[str, Any] = {
    "compute_dtype": jnp.dtype(model["compute_dtype"] if compute_dtype is None else compute_dtype),
    "unroll": model["unroll"] if unroll is None else unroll,
    "remat": model["remat"] if remat is None else remat,
  }
  return Recogniser(
    encoder=Functional(lambda rngs: conformer.Conformer(in_features, **encoder, **common, rngs=rngs)),
    ctc=Functional(lambda rngs: CtcHead(encoder["width"], vocabulary, rngs=rngs)),
    decoder=Functional(lambda rngs: text_decoder.TextDecoder(vocabulary, **decoder, **common, rngs=rngs)),
    in_features=in_features,
    vocabulary=vocabulary,
    normalise=model["normalise"],
    centre=model["centre"],
  )


def mask_time(
  tokens: Float[Array, "b t c"], lengths: Int[Array, " b"], keys: Key[Array, " b"], *, longest: int
) -> Float[Array, "b t c"]:
  """Time masks of Auto-AVSR: for every second begun, fewer than `longest` frames somewhere in the clip become zero."""
  frames = tokens.shape[1]
  masks = -(-frames // SECOND)

  def masked(key, length) -> Bool[Array, " t"]:
    size_key, start_key = jax.random.split(key)
    size = jax.random.randint(size_key, (masks,), 0, longest)
    start = jnp.floor(jax.random.uniform(start_key, (masks,)) * jnp.maximum(length - size, 1)).astype(int)
    used = jnp.arange(masks) * SECOND < length
    time = jnp.arange(frames)[:, None]
    return ((time >= start) & (time < start + size) & used).any(axis=1)

  return jnp.where(jax.vmap(masked)(keys, lengths)[..., None], 0, tokens)
