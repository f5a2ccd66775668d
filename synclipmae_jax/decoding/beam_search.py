"""Joint CTC/attention beam search (Watanabe et al. 2017; ESPnet), batched, on the device, with a beam of static size.

The score of a hypothesis g of n tokens, and that of g as a whole sentence:

    S(g)     = w_ctc log psi(g) + sum_s w_s log p_s(g)     + bonus n     psi: CTC prefix probability
    S(g end) = w_ctc log p_ctc(g) + sum_s w_s log p_s(g end) + bonus n   p_s: decoder, language model

Every step extends all K hypotheses by all tokens and keeps the K best; every kept hypothesis is also tried as a whole
sentence. No probability grows with a longer text, so S plus the bonus still to be had bounds what a hypothesis can
become: the search ends when no bound exceeds the worst of the best sentences found. That is exact, not a heuristic.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from synclipmae_jax.decoding import ctc_prefix
from synclipmae_jax.decoding.ctc_prefix import BLANK


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scorer:
  """A model that gives every token a log-probability after the tokens before it.

  `step(state, tokens [B, K], place)` -> (log-probabilities [B, K, V], state) after `tokens`, number `place` of their
  hypotheses (0: the start of the sentence). The state has `choose(hypotheses [B, K])`, the states of these hypotheses.
  """

  step: Callable[[Any, Any, Any], tuple[Any, Any]]
  state: Any
  weight: float | Array


class Hypotheses(NamedTuple):
  """The best sentences of every example, best first."""

  tokens: Int[Array, "b n l"]  # BLANK after the end
  length: Int[Array, "b n"]
  score: Float[Array, "b n"]  # -inf where there are fewer sentences


class _Beam(NamedTuple):
  place: Any  # int32: tokens of the running hypotheses
  tokens: Any  # int32 [B, K, L]
  last: Any  # int32 [B, K]
  base: Any  # float32 [B, K]: S without its CTC part; -inf: no hypothesis
  score: Any  # float32 [B, K]: S
  prefix: Any  # ctc_prefix.PrefixState or None
  states: Any  # of the scorers
  found: Any  # Hypotheses


def beam_search(
  ctc_log_probs: Float[Array, "b t v"] | None,
  frames: Int[Array, " b"],
  scorers: Sequence[Scorer],
  *,
  end: int,
  beam: int,
  max_tokens: int,
  ctc_weight: float | Array = 0.1,
  bonus: float | Array = 0.0,
  n_best: int = 1,
  candidates: int | None = None,
) -> Hypotheses:
  """The `n_best` sentences of at most min(`max_tokens`, frames) tokens for every example.

  Args:
    ctc_log_probs: of the frames, blank 0; None: without CTC.
    frames: number of frames of each example.
    scorers: decoder and language model; may be empty with CTC.
    end: start and end of a sentence.
    candidates: tokens by which a hypothesis is extended, the best of its scorers (ESPnet's pre-beam), for vocabularies
      of thousands; None: all.

  Raises ValueError for sizes that cannot be.
  """
  if ctc_log_probs is None and not scorers:
    raise ValueError("a beam search needs CTC, a decoder, or both")
  if not 1 <= n_best <= beam or max_tokens < 1:
    raise ValueError(f"need 1 <= n_best <= beam and max_tokens >= 1, not {n_best}, {beam}, {max_tokens}")
  if candidates is not None and not scorers:
    raise ValueError("candidates are chosen by the scorers, of which there is none")
  batch = len(frames)
  if ctc_log_probs is not None:
    ctc_log_probs = ctc_prefix.within(ctc_log_probs, frames)
  limit = jnp.minimum(frames, max_tokens)[:, None]

  def search(carry: _Beam) -> _Beam:
    outputs = [s.step(state, carry.last, carry.place) for s, state in zip(scorers, carry.states, strict=True)]
    # [B, K, V]; without scorers every token is alike
    vocabulary = ctc_log_probs.shape[-1] if ctc_log_probs is not None else outputs[0][0].shape[-1]
    gained = sum((_weighted(s.weight, out) for s, (out, _) in zip(scorers, outputs, strict=True)),
                 jnp.zeros((batch, beam, vocabulary)))  # fmt: skip

    sentence = carry.base + gained[..., end]
    if ctc_log_probs is not None:
      sentence = sentence + _weighted(ctc_weight, ctc_prefix.whole(carry.prefix))
    found = _best_sentences(carry, sentence, n_best)

    # Neither blank nor end extends a hypothesis, and none grows beyond its limit.
    extends = jnp.ones(vocabulary, bool).at[jnp.array([BLANK, end])].set(False)
    gained = jnp.where(extends & (carry.place < limit)[..., None], gained, -jnp.inf)
    chosen = None
    if candidates is not None:
      gained, chosen = jax.lax.top_k(gained, min(candidates, vocabulary))
    base = carry.base[..., None] + gained + bonus
    score = base
    if ctc_log_probs is not None:
      score = score + _weighted(ctc_weight, ctc_prefix.extensions(ctc_log_probs, carry.prefix, chosen))
    score = jnp.where(jnp.isneginf(base), -jnp.inf, score)

    width = score.shape[-1]
    score, index = jax.lax.top_k(score.reshape(batch, -1), beam)
    flat = lambda x: jnp.take_along_axis(x.reshape(batch, -1), index, axis=1)
    parents, last = index // width, index % width if chosen is None else flat(chosen)
    tokens = jnp.take_along_axis(carry.tokens, parents[..., None], axis=1)
    prefix = None
    if ctc_log_probs is not None:
      prefix = ctc_prefix.extend(ctc_log_probs, carry.prefix, parents, last)
    return _Beam(
      place=carry.place + 1,
      tokens=tokens.at[:, :, carry.place].set(last, mode="drop"),
      last=last,
      base=jnp.where(jnp.isneginf(score), -jnp.inf, flat(base)),
      score=score,
      prefix=prefix,
      states=tuple(state.choose(parents) for _, state in outputs),
      found=found,
    )

  def unfinished(carry: _Beam) -> Array:
    bound = carry.score.max(axis=1) + jnp.maximum(bonus, 0.0) * jnp.maximum(limit[:, 0] - carry.place, 0)
    return ((bound > carry.found.score.min(axis=1)) & (carry.place <= limit[:, 0])).any()

  none = jnp.where(jnp.arange(beam) == 0, 0.0, jnp.full((batch, beam), -jnp.inf))
  carry = _Beam(
    place=jnp.int32(0),
    tokens=jnp.full((batch, beam, max_tokens), BLANK, jnp.int32),
    last=jnp.full((batch, beam), end, jnp.int32),
    base=none,
    score=none,
    prefix=None if ctc_log_probs is None else ctc_prefix.start(ctc_log_probs, beam=beam),
    states=tuple(s.state for s in scorers),
    found=Hypotheses(
      tokens=jnp.full((batch, n_best, max_tokens), BLANK, jnp.int32),
      length=jnp.zeros((batch, n_best), jnp.int32),
      score=jnp.full((batch, n_best), -jnp.inf),
    ),
  )
  return jax.lax.while_loop(unfinished, search, carry).found


def _best_sentences(carry: _Beam, score: Float[Array, "b k"], n_best: int) -> Hypotheses:
  """The best of the sentences found before and of the running hypotheses as sentences."""
  both = lambda old, new: jnp.concatenate([old, new], axis=1)
  length = jnp.broadcast_to(carry.place, score.shape)
  score, index = jax.lax.top_k(both(carry.found.score, score), n_best)
  return Hypotheses(
    tokens=jnp.take_along_axis(both(carry.found.tokens, carry.tokens), index[..., None], axis=1),
    length=jnp.take_along_axis(both(carry.found.length, length), index, axis=1),
    score=score,
  )


def _weighted(weight: float | Array, log_p: Array) -> Array:
  """`weight` * `log_p`; 0 for weight 0, also where the probability is 0."""
  return jnp.where(weight == 0, 0.0, weight * log_p)
