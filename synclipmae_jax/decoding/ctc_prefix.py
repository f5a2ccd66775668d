"""Probabilities of prefixes under CTC (Watanabe et al. 2017, section III-B; Graves 2008), batched on the device.

With n_t(g) and b_t(g) the probabilities that the first t frames read as g and that frame t is the last label of g or a
blank, and phi_t(g, c) = b_t(g) + [c is not the last label of g] n_t(g):

    prefix of g c:   psi(g c) = sum_t phi_{t-1}(g, c) x_t(c)            every text that begins with g c
    whole g:         n_T(g) + b_T(g)
    states of g c:   n_t(g c) = (n_{t-1}(g c) + phi_{t-1}(g, c)) x_t(c)
                     b_t(g c) = (n_{t-1}(g c) + b_{t-1}(g c)) x_t(blank)

psi needs no recursion: it is one sum over the frames for all hypotheses and labels at once. Only the states of the
hypotheses that a search keeps are computed frame by frame. Everything is in logarithms, float32.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BLANK = 0
NO_TOKEN = -1  # the last token of the empty hypothesis


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixState:
  """States of K hypotheses of every example after 0..T frames."""

  label: Any  # float32 [B, K, T + 1], log n
  blank: Any  # float32 [B, K, T + 1], log b
  last: Any  # int32 [B, K], the last token, NO_TOKEN for the empty hypothesis


jax.tree_util.register_dataclass(PrefixState)


def within(log_probs: Float[Array, "b t v"], frames: Int[Array, " b"]) -> Float[Array, "b t v"]:
  """`log_probs` with certain blanks after the first `frames`, which change no probability."""
  inside = jnp.arange(log_probs.shape[1])[:, None] < frames[:, None, None]
  blank = jnp.where(jnp.arange(log_probs.shape[2]) == BLANK, 0.0, -jnp.inf)
  return jnp.where(inside, log_probs.astype(jnp.float32), blank)


def start(log_probs: Float[Array, "b t v"], *, beam: int) -> PrefixState:
  """K empty hypotheses."""
  batch, frames, _ = log_probs.shape
  blank = jnp.pad(jnp.cumsum(log_probs[:, :, BLANK], axis=1), ((0, 0), (1, 0)))
  return PrefixState(
    label=jnp.full((batch, beam, frames + 1), -jnp.inf),
    blank=jnp.broadcast_to(blank[:, None], (batch, beam, frames + 1)),
    last=jnp.full((batch, beam), NO_TOKEN),
  )


def whole(state: PrefixState) -> Float[Array, "b k"]:
  """log p(g): the text is g and ends."""
  return jnp.logaddexp(state.label[..., -1], state.blank[..., -1])


def extensions(
  log_probs: Float[Array, "b t v"], state: PrefixState, tokens: Int[Array, "b k c"] | None = None
) -> Float[Array, "b k c"]:
  """log psi(g c) of every hypothesis g and the labels c of `tokens` (default: all, in order)."""
  emitted = log_probs[:, None] if tokens is None else jax.vmap(lambda x, c: x.T[c].swapaxes(-1, -2))(log_probs, tokens)
  before = jnp.logaddexp(state.label, state.blank)[..., :-1, None]
  other = jax.nn.logsumexp(before + emitted, axis=2)
  # The label that repeats the last one needs a blank between.
  repeated = jnp.take_along_axis(log_probs, jnp.maximum(state.last, 0)[:, None], axis=2).swapaxes(1, 2)
  same = jax.nn.logsumexp(state.blank[..., :-1] + repeated, axis=2, keepdims=True)
  labels = jnp.arange(log_probs.shape[2]) if tokens is None else tokens
  return jnp.where(labels == state.last[..., None], same, other)


def extend(
  log_probs: Float[Array, "b t v"], state: PrefixState, parents: Int[Array, "b k"], tokens: Int[Array, "b k"]
) -> PrefixState:
  """The states of the hypotheses `parents`, each with one more of `tokens`."""
  take = lambda x: jnp.take_along_axis(x, parents[..., None], axis=1)
  label, blank = take(state.label), take(state.blank)
  repeats = tokens == jnp.take_along_axis(state.last, parents, axis=1)
  before = jnp.where(repeats[..., None], blank, jnp.logaddexp(label, blank))
  emitted = jnp.take_along_axis(log_probs, tokens[:, None], axis=2)  # [B, T, K]

  def frame(carry, inputs):
    label, blank = carry
    before, label_prob, blank_prob = inputs
    carry = jnp.logaddexp(label, before) + label_prob, jnp.logaddexp(label, blank) + blank_prob[:, None]
    return carry, carry

  nothing = jnp.full(tokens.shape, -jnp.inf)
  frames = (jnp.moveaxis(before[..., :-1], -1, 0), jnp.moveaxis(emitted, 1, 0), log_probs[:, :, BLANK].T)
  _, (label, blank) = jax.lax.scan(frame, (nothing, nothing), frames)
  first = lambda x: jnp.pad(jnp.moveaxis(x, 0, -1), ((0, 0), (0, 0), (1, 0)), constant_values=-jnp.inf)
  return PrefixState(label=first(label), blank=first(blank), last=tokens)


def greedy(
  log_probs: Float[Array, "b t v"], frames: Int[Array, " b"]
) -> tuple[Int[Array, "b t"], Int[Array, " b"], Float[Array, " b"]]:
  """The best path read as a text: (tokens, padded with BLANK; their number; the log-probability of the path)."""
  log_probs = within(log_probs, frames)
  best = log_probs.argmax(-1)
  before = jnp.pad(best[:, :-1], ((0, 0), (1, 0)), constant_values=BLANK)
  kept = (best != BLANK) & (best != before)
  place = jnp.where(kept, jnp.cumsum(kept, axis=1) - 1, best.shape[1])  # what is dropped falls off the end
  tokens = jax.vmap(lambda place, row: jnp.zeros_like(row).at[place].set(row, mode="drop"))(place, best)
  return tokens, kept.sum(axis=1), log_probs.max(-1).sum(axis=1)
