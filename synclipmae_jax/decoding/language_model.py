"""Shallow fusion: an n-gram automaton as a scorer of the beam search, on the device."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from synclipmae_jax.decoding.beam_search import Scorer


@dataclasses.dataclass(frozen=True)
class Contexts:
  """The context of every hypothesis."""

  number: Any  # int32 [B, K]

  def choose(self, hypotheses) -> Contexts:
    return Contexts(jnp.take_along_axis(self.number, hypotheses, axis=1))


jax.tree_util.register_dataclass(Contexts)


def ngram_scorer(
  log_probs: np.ndarray, following: np.ndarray, start: int, *, batch: int, beam: int, weight: float
) -> Scorer:
  """The scorer of the tables of `text.ngram.NGram`: [S, V] log-probabilities and the context after each token."""

  def step(state: Contexts, tokens, place):
    # The first token is the start of the sentence: the context is that of an empty text.
    number = jnp.where(place == 0, start, jnp.asarray(following)[state.number, tokens])
    return jnp.asarray(log_probs)[number], Contexts(number)

  return Scorer(step=step, state=Contexts(jnp.zeros((batch, beam), jnp.int32)), weight=weight)
