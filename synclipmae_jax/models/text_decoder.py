"""Transformer decoder of text: previous tokens and the states of the encoder -> the next token.

The decoder of Auto-AVSR: embedding times sqrt(d) plus sinusoids, pre-LN blocks of self-attention, attention to the
encoder's states and feed-forward, LayerNorm, an output layer that is not tied to the embedding. The flavour `fairseq`
is the decoder of AV-HuBERT: an embedding that is not scaled and is the output layer too, and fairseq's sinusoids.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from synclipmae_jax.models import flops
from synclipmae_jax.models.layers import LayerNorm, Linear, rematerialise, stack_blocks
from synclipmae_jax.models.sequence import NO_DROPOUT, Dropout, FeedForward, masked_attention, sinusoids, valid_frames
from synclipmae_jax.sharding import constrain

# `auto_avsr` is the decoder of mpc001/auto_avsr (64 M parameters with its 5,049 tokens). The others are ours.
SIZES = {
  "auto_avsr": dict(width=768, depth=6, heads=12, mlp_width=3072),
  "base": dict(width=256, depth=6, heads=4, mlp_width=2048),
  "small": dict(width=144, depth=2, heads=4, mlp_width=576),
  "tiny": dict(width=16, depth=2, heads=2, mlp_width=32),  # tests
}

FLAVOURS = ("espnet", "fairseq")
Flavour = Literal["espnet", "fairseq"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderState:
  """What decoding step by step keeps: keys and values of the hypotheses' tokens and of the encoder's states.

  L layers, B examples, K hypotheses of each, S steps, H heads of width d. `valid` marks the encoder's frames.
  """

  keys: Any  # float [L, B, K, S, H, d]; likewise the values
  values: Any
  memory_keys: Any  # float [L, B, T, H, d]; likewise the values
  memory_values: Any
  valid: Any  # bool [B, T]

  def choose(self, hypotheses: Int[Array, "b k"]) -> DecoderState:
    """The state of these hypotheses, in this order."""
    index = hypotheses[None, :, :, None, None, None]
    take = lambda cache: jnp.take_along_axis(cache, index, axis=2)
    return dataclasses.replace(self, keys=take(self.keys), values=take(self.values))


jax.tree_util.register_dataclass(DecoderState)


class Attention(nnx.Module):
  """Multi-head attention. One kernel makes the queries, one fused kernel keys and values."""

  def __init__(self, width: int, heads: int, *, compute_dtype, rngs: nnx.Rngs):
    if width % heads:
      raise ValueError(f"width {width} is not divisible by {heads} heads")
    self.heads = heads
    self.query = Linear(width, width, compute_dtype=compute_dtype, rngs=rngs)
    self.key_value = Linear(width, 2 * width, compute_dtype=compute_dtype, rngs=rngs)
    self.out = Linear(width, width, compute_dtype=compute_dtype, rngs=rngs)

  def keys_and_values(self, x: Float[Array, "*b m d"]) -> tuple[Float[Array, "*b m h e"], Float[Array, "*b m h e"]]:
    k, v = (rearrange(y, "... m (h d) -> ... m h d", h=self.heads) for y in jnp.split(self.key_value(x), 2, axis=-1))
    return k, v

  def __call__(
    self, x: Float[Array, "b n d"], keys: Float[Array, "b m h e"], values: Float[Array, "b m h e"],
    mask: Bool[Array, "b q m"],
  ) -> Float[Array, "b n d"]:  # fmt: skip
    q = rearrange(self.query(x), "b n (h d) -> b n h d", h=self.heads)
    return self.out(masked_attention(q, keys, values, mask=mask))


class DecoderBlock(nnx.Module):
  """Pre-LN block: self-attention, attention to the encoder's states, feed-forward."""

  def __init__(self, width: int, heads: int, mlp_width: int, *, epsilon: float, compute_dtype, rngs: nnx.Rngs):
    new_norm = lambda: LayerNorm(width, epsilon=epsilon, compute_dtype=compute_dtype, rngs=rngs)
    self.norm_attention = new_norm()
    self.attention = Attention(width, heads, compute_dtype=compute_dtype, rngs=rngs)
    self.norm_cross = new_norm()
    self.cross = Attention(width, heads, compute_dtype=compute_dtype, rngs=rngs)
    self.norm_mlp = new_norm()
    self.mlp = FeedForward(width, mlp_width, compute_dtype=compute_dtype, rngs=rngs)

  def __call__(
    self, x: Float[Array, "b n d"], memory: Float[Array, "b t d"], valid: Bool[Array, "b t"], dropout: Dropout
  ) -> Float[Array, "b n d"]:
    """A whole sequence at once; token i sees tokens up to i."""
    x = constrain(x)
    causal = jnp.broadcast_to(np.tri(x.shape[1], dtype=bool), (len(x), x.shape[1], x.shape[1]))
    y = self.norm_attention(x)
    x = x + dropout.at(0)(self.attention(y, *self.attention.keys_and_values(y), causal))
    heard = self.cross(self.norm_cross(x), *self.cross.keys_and_values(memory), valid[:, None])
    x = x + dropout.at(1)(heard)
    return x + dropout.at(2)(self.mlp(self.norm_mlp(x), dropout.at(3)))

  def step(self, x: Float[Array, "b k d"], state: DecoderState, place: Int[Array, ""]):
    """One token of every hypothesis. `state` is that of this layer; returns x and the new keys and values."""
    beam = x.shape[1]
    y = self.norm_attention(x)
    keys, values = (
      jax.lax.dynamic_update_index_in_dim(cache, new, place, axis=2)
      for cache, new in zip((state.keys, state.values), self.attention.keys_and_values(y), strict=True)
    )
    flat = lambda z: rearrange(z, "b k ... -> (b k) ...")
    past = jnp.broadcast_to(jnp.arange(keys.shape[2]) <= place, (y.shape[0] * beam, 1, keys.shape[2]))
    attended = self.attention(flat(y)[:, None], flat(keys), flat(values), past)
    x = x + rearrange(attended, "(b k) 1 d -> b k d", k=beam)
    # The hypotheses of an example are queries beside each other: they share its memory.
    x = x + self.cross(self.norm_cross(x), state.memory_keys, state.memory_values, state.valid[:, None])
    return x + self.mlp(self.norm_mlp(x), NO_DROPOUT), keys, values


class TextDecoder(nnx.Module):
  """Logits of the next token; `vocabulary` counts all tokens, the end of the sentence included.

  Only converted checkpoints have the flavour `fairseq`. Raises ValueError for another one.
  """

  def __init__(
    self,
    vocabulary: int,
    *,
    width: int,
    depth: int,
    heads: int,
    mlp_width: int,
    epsilon: float = 1e-6,
    flavour: Flavour = "espnet",
    compute_dtype=jnp.float32,
    unroll: int | bool = 1,
    remat: str = "none",
    rngs: nnx.Rngs,
  ):
    if flavour not in FLAVOURS:
      raise ValueError(f"unknown flavour {flavour!r} of a text decoder: {' or '.join(FLAVOURS)}")
    self.flavour = flavour
    self.vocabulary, self.width, self.depth, self.heads, self.mlp_width = vocabulary, width, depth, heads, mlp_width
    self.compute_dtype, self.unroll, self.remat = compute_dtype, unroll, remat
    # Times sqrt(width) the embedding is of unit variance, like the sinusoids.
    self.embedding = nnx.Param(jax.random.normal(rngs.params(), (vocabulary, width)) * width**-0.5)
    self.blocks = stack_blocks(
      lambda rngs: DecoderBlock(width, heads, mlp_width, epsilon=epsilon, compute_dtype=compute_dtype, rngs=rngs),
      depth,
      rngs,
    )
    self.norm = LayerNorm(width, epsilon=epsilon, compute_dtype=compute_dtype, rngs=rngs)
    tied = flavour == "fairseq"
    self.output = None if tied else Linear(width, vocabulary, compute_dtype=compute_dtype, rngs=rngs)

  def __call__(
    self,
    previous: Int[Array, "b n"],
    memory: Float[Array, "b t d"],
    lengths: Int[Array, " b"],
    dropout: Dropout = NO_DROPOUT,
  ) -> Float[Array, "b n v"]:
    """float32 logits of token i after `previous` tokens 0..i (the first is the start of the sentence)."""
    valid = valid_frames(lengths, memory.shape[1])
    graph, leaves = nnx.split(self.blocks)

    def block(x, inputs):
      leaves, number = inputs
      return nnx.merge(graph, leaves)(x, memory, valid, dropout.at(number)), None

    x = self._embed(previous) + self._places(previous.shape[1])
    x = dropout.at(self.depth)(x).astype(self.compute_dtype)
    x, _ = jax.lax.scan(rematerialise(block, self.remat), x, (leaves, jnp.arange(self.depth)), unroll=self.unroll)
    return self._logits(x)

  def start(self, memory: Float[Array, "b t d"], lengths: Int[Array, " b"], *, beam: int, steps: int) -> DecoderState:
    """The state before the first of at most `steps` tokens of `beam` hypotheses for every example."""
    graph, leaves = nnx.split(self.blocks)
    _, (k, v) = jax.lax.scan(
      lambda _, leaves: (None, nnx.merge(graph, leaves).cross.keys_and_values(memory)), None, leaves
    )
    empty = jnp.zeros((self.depth, len(memory), beam, steps, self.heads, self.width // self.heads), k.dtype)
    valid = valid_frames(lengths, memory.shape[1])
    return DecoderState(keys=empty, values=empty, memory_keys=k, memory_values=v, valid=valid)

  def step(
    self, state: DecoderState, tokens: Int[Array, "b k"], place: Int[Array, ""]
  ) -> tuple[Float[Array, "b k v"], DecoderState]:
    """Log-probabilities of the tokens after `tokens`, which are number `place` of their hypotheses (0: the start)."""
    graph, leaves = nnx.split(self.blocks)
    places = jnp.asarray(self._places(state.keys.shape[3]))

    def block(x, inputs):
      leaves, *caches = inputs
      layer = dataclasses.replace(
        state, **dict(zip(("keys", "values", "memory_keys", "memory_values"), caches, strict=True))
      )
      x, keys, values = nnx.merge(graph, leaves).step(x, layer, place)
      return x, (keys, values)

    x = (self._embed(tokens) + places[place]).astype(self.compute_dtype)
    caches = (state.keys, state.values, state.memory_keys, state.memory_values)
    x, (keys, values) = jax.lax.scan(block, x, (leaves, *caches))
    return jax.nn.log_softmax(self._logits(x)), dataclasses.replace(state, keys=keys, values=values)

  def _embed(self, tokens: Int[Array, "*b"]) -> Float[Array, "*b d"]:
    embedded = jnp.asarray(self.embedding[...])[tokens]
    return embedded if self.flavour == "fairseq" else embedded * math.sqrt(self.width)

  def _places(self, count: int) -> Float[np.ndarray, "n d"]:
    """What is added to the first `count` tokens."""
    if self.flavour == "espnet":
      return sinusoids(np.arange(count), self.width)
    # fairseq: the sines, then the cosines, of angles down to 1/10000; the first token has place 2.
    half = self.width // 2
    angles = np.arange(2, count + 2)[:, None] * np.exp(-np.log(10_000.0) / (half - 1) * np.arange(half))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)

  def _logits(self, x: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
    x = self.norm(x)
    if self.output is None:
      return jnp.matmul(x, self.embedding[...].T.astype(x.dtype)).astype(jnp.float32)
    return self.output(x).astype(jnp.float32)

  def flops(self, tokens: int, frames: int) -> int:
    """Forward FLOPs of one example of `tokens` tokens on `frames` states."""
    d = self.width
    cross = flops.dense(tokens + frames, d, 2 * d) + flops.attention(tokens, frames, d)
    block = flops.transformer_block(tokens, d, self.mlp_width) + cross
    return self.depth * block + flops.dense(tokens, d, self.vocabulary)
