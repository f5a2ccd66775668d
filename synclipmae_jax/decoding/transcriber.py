"""Clips of tokens -> token ids of their texts, in batches of few shapes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from synclipmae_jax.decoding import ctc_prefix
from synclipmae_jax.decoding.beam_search import Hypotheses, Scorer, beam_search
from synclipmae_jax.models.recogniser import Recogniser
from synclipmae_jax.types import InputError, Params

MODES = ("joint", "ctc", "attention", "greedy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
  """How texts are searched.

  `mode`: `joint` (CTC with weight `ctc_weight`, decoder with the rest), `ctc` or `attention` (a beam search with one of
  the two), `greedy` (the best CTC path). See `beam_search` for the others. Raises InputError for values that cannot be.
  """

  mode: str = "joint"
  beam: int = 10
  ctc_weight: float = 0.3
  lm_weight: float = 0.0
  bonus: float = 0.0
  n_best: int = 1
  candidates: int | None = None

  def __post_init__(self):
    if self.mode not in MODES:
      raise InputError(f"unknown search {self.mode!r}: one of {', '.join(MODES)}")
    if not 1 <= self.n_best <= self.beam or not 0 <= self.ctc_weight <= 1 or self.lm_weight < 0:
      raise InputError(
        "a search needs 1 <= n_best <= beam, ctc_weight in [0, 1] and lm_weight >= 0, not"
        f" {self.n_best}, {self.beam}, {self.ctc_weight}, {self.lm_weight}"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transcript:
  """What was read of one clip."""

  hypotheses: tuple[tuple[int, ...], ...]  # token ids, the best first
  scores: np.ndarray  # float [n] of the hypotheses
  log_probs: np.ndarray  # float32 [T, V] of CTC, for `alignment.align`

  @property
  def tokens(self) -> tuple[int, ...]:
    return self.hypotheses[0]


class Transcriber:
  """Compiled once for each of `lengths` (frames, ascending), `batch` clips at a time.

  `language_model(batch, beam)` makes the `Scorer` of a language model; its weight is that of the search.
  """

  def __init__(
    self,
    recogniser: Recogniser,
    *,
    lengths: Sequence[int],
    max_tokens: int,
    search: Search,
    batch: int = 8,
    language_model: Callable[[int, int], Scorer] | None = None,
  ):
    self.recogniser, self.lengths, self.batch, self.search = recogniser, tuple(lengths), batch, search
    self.max_tokens = max_tokens
    self._run = jax.jit(functools.partial(_transcribe, recogniser, search, max_tokens, language_model))

  def __call__(self, params: Params, clips: Sequence[np.ndarray]) -> Iterator[Transcript]:
    """The transcripts of clips [T, D], in their order. Raises InputError for a clip longer than the last length."""
    longest = max((len(clip) for clip in clips), default=0)
    if longest > self.lengths[-1]:
      raise InputError(f"a clip of {longest} frames is longer than the {self.lengths[-1]} that are read at once")
    buckets = np.searchsorted(self.lengths, [len(clip) for clip in clips])
    found: dict[int, Transcript] = {}
    for bucket, frames in enumerate(self.lengths):
      chosen = np.flatnonzero(buckets == bucket)
      for start in range(0, len(chosen), self.batch):
        rows = chosen[start : start + self.batch]
        tokens = np.zeros((self.batch, frames, self.recogniser.in_features), np.float32)
        lengths = np.ones(self.batch, np.int32)  # a place without a clip is read in vain
        for place, row in enumerate(rows):
          tokens[place, : len(clips[row])], lengths[place] = clips[row], len(clips[row])
        hypotheses, log_probs = jax.tree.map(np.asarray, self._run(params, tokens, lengths))
        for place, row in enumerate(rows):
          found[int(row)] = _transcript(Hypotheses(*(x[place] for x in hypotheses)), log_probs[place, : lengths[place]])
    return (found[row] for row in range(len(clips)))


def _transcript(hypotheses: Hypotheses, log_probs: np.ndarray) -> Transcript:
  known = np.isfinite(hypotheses.score)
  known[0] = True
  chosen = zip(hypotheses.tokens[known], hypotheses.length[known], strict=True)
  texts = tuple(tuple(tokens[:length].tolist()) for tokens, length in chosen)
  return Transcript(hypotheses=texts, scores=np.asarray(hypotheses.score[known]), log_probs=log_probs)


def _transcribe(
  recogniser: Recogniser, search: Search, max_tokens: int, language_model, params: Params, tokens: Any, lengths: Any
) -> tuple[Hypotheses, Any]:
  states = recogniser.states(params, recogniser.prepare(tokens, lengths), lengths)
  log_probs = recogniser.ctc_log_probs(params, states)
  if search.mode == "greedy":
    text, count, score = ctc_prefix.greedy(log_probs, lengths)
    return Hypotheses(tokens=text[:, None], length=count[:, None], score=score[:, None]), log_probs
  ctc_weight = {"joint": search.ctc_weight, "ctc": 1.0, "attention": 0.0}[search.mode]
  steps, scorers = min(max_tokens, tokens.shape[1]), []
  if ctc_weight < 1:
    decoder = recogniser.decoder.bind(params["text_decoder"])
    state = decoder.start(states, lengths, beam=search.beam, steps=steps + 1)
    scorers.append(Scorer(step=decoder.step, state=state, weight=1 - ctc_weight))
  if language_model is not None and search.lm_weight:
    model = language_model(len(tokens), search.beam)
    scorers.append(dataclasses.replace(model, weight=search.lm_weight))
  hypotheses = beam_search(
    log_probs if ctc_weight else None,
    lengths,
    scorers,
    end=recogniser.end,
    beam=search.beam,
    max_tokens=steps,
    ctc_weight=ctc_weight,
    bonus=search.bonus,
    n_best=search.n_best,
    candidates=search.candidates if scorers else None,
  )
  return hypotheses, jnp.asarray(log_probs)
