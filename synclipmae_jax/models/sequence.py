"""What the sequence models of lip reading share: padding masks, positions, dropout and masked attention.

The arithmetic is that of ESPnet's Conformer and Transformer as released with Auto-AVSR (mpc001/auto_avsr), so that
those weights convert one to one.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from synclipmae_jax.models.layers import XAVIER, Linear


@dataclasses.dataclass(frozen=True)
class Dropout:
  """Dropout whose random numbers belong to examples, so that they depend neither on the batch nor on devices.

  Every place in a network calls `at` with its own number. Without `keys` (evaluation) nothing is dropped.
  """

  rate: float = 0.0
  keys: Any = None  # one key an example, [B]

  def at(self, place: int | Int[Array, ""]) -> Dropout:
    if self.keys is None or not self.rate:
      return self
    return dataclasses.replace(self, keys=jax.vmap(jax.random.fold_in, (0, None))(self.keys, place))

  def __call__(self, x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    if self.keys is None or not self.rate:
      return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[1:]))(self.keys)
    return jnp.where(keep, x / (1 - self.rate), 0)


jax.tree_util.register_dataclass(Dropout, data_fields=["keys"], meta_fields=["rate"])
NO_DROPOUT = Dropout()


def valid_frames(lengths: Int[Array, " b"], size: int) -> Bool[Array, "b t"]:
  """True for the first `lengths` of `size` frames."""
  return jnp.arange(size) < lengths[:, None]


def sinusoids(positions: np.ndarray, width: int) -> Float[np.ndarray, "n d"]:
  """sin in the even and cos in the odd channels of the angles position * 10000^(-i / width), i = 0, 2, ...

  Raises ValueError for an odd width.
  """
  if width % 2:
    raise ValueError(f"sinusoidal positions need an even width, not {width}")
  angles = positions[:, None] * 10000.0 ** -(np.arange(0, width, 2) / width)
  return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(len(positions), width).astype(np.float32)


class FeedForward(nnx.Module):
  """Linear, ReLU, dropout, Linear."""

  def __init__(self, width: int, hidden: int, *, compute_dtype, rngs: nnx.Rngs):
    self.up = Linear(width, hidden, compute_dtype=compute_dtype, rngs=rngs)
    self.down = Linear(hidden, width, compute_dtype=compute_dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "*b d"], dropout: Dropout) -> Float[Array, "*b d"]:
    return self.down(dropout(jax.nn.relu(self.up(x))))


def masked_attention(
  q: Float[Array, "b n h d"],
  k: Float[Array, "b m h d"],
  v: Float[Array, "b m h d"],
  *,
  mask: Bool[Array, "b q m"],
  scores: Float[Array, "b h n m"] | float = 0.0,
) -> Float[Array, "b n e"]:
  """Softmax attention over the keys of `mask` (q = n or 1); `scores` are added to the products before they are scaled.

  Logits and softmax are float32. A query without a key gets zeros.
  """
  logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32) + scores
  logits = jnp.where(mask[:, None], logits / math.sqrt(q.shape[-1]), jnp.finfo(jnp.float32).min)
  weights = jnp.where(mask[:, None], jax.nn.softmax(logits, axis=-1), 0).astype(v.dtype)
  return rearrange(jnp.einsum("bhnm,bmhd->bnhd", weights, v), "b n h d -> b n (h d)")


class RelativeAttention(nnx.Module):
  """Self-attention with the relative positions of Transformer-XL (Dai et al. 2019, section 3.3).

  The score of query i and key j is ((q_i + u) k_j + (q_i + v) W r_(i-j)) / sqrt(d), with the sinusoid r of the
  distance i - j. One fused kernel makes queries, keys and values.
  """

  def __init__(self, width: int, heads: int, *, compute_dtype, rngs: nnx.Rngs):
    if width % heads:
      raise ValueError(f"width {width} is not divisible by {heads} heads")
    self.heads = heads
    self.qkv = Linear(width, 3 * width, compute_dtype=compute_dtype, rngs=rngs)
    self.out = Linear(width, width, compute_dtype=compute_dtype, rngs=rngs)
    self.position = nnx.Linear(width, width, use_bias=False, dtype=compute_dtype, kernel_init=XAVIER, rngs=rngs)
    self.content_bias, self.position_bias = (
      nnx.Param(XAVIER(rngs.params(), (heads, width // heads), jnp.float32)) for _ in range(2)
    )

  def __call__(
    self,
    x: Float[Array, "b n d"],
    positions: Float[Array, "p d"],
    mask: Bool[Array, "b q n"],
  ) -> Float[Array, "b n d"]:
    """`positions` are the sinusoids of the distances N - 1 to 1 - N (`distances`)."""
    split = lambda y: rearrange(y, "... n (h d) -> ... n h d", h=self.heads)
    q, k, v = map(split, jnp.split(self.qkv(x), 3, axis=-1))
    r = split(self.position(positions))
    biased = q + self.position_bias[...].astype(q.dtype)
    far = jnp.einsum("bnhd,phd->bhnp", biased, r, preferred_element_type=jnp.float32)
    q = q + self.content_bias[...].astype(q.dtype)
    return self.out(masked_attention(q, k, v, mask=mask, scores=by_key(far)))


def distances(length: int, width: int) -> Float[np.ndarray, "p d"]:
  """Sinusoids of the distances query - key: `length` - 1, ..., 0, ..., 1 - `length`."""
  return sinusoids(np.arange(length - 1, -length, -1.0), width)


def by_key(x: Float[Array, "b h n p"]) -> Float[Array, "b h n n"]:
  """Scores by distance (columns N - 1 to 1 - N) -> scores by key: out[i, j] = x[i, N - 1 - i + j].

  A zero in front of every row and a reshape move row i by i + 1 places.
  """
  *rest, n, p = x.shape
  x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(1, 0)]).reshape(*rest, p + 1, n)
  return x[..., 1:, :].reshape(*rest, n, p)[..., :n]
