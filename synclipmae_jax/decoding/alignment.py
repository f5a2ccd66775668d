"""When a text was said: the best CTC path that reads as the text (forced alignment), and the times of its words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from synclipmae_jax.decoding.ctc_prefix import BLANK
from synclipmae_jax.types import FPS, InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alignment:
  """U tokens on T frames: `start` and `stop` of each token (frames, stop excluded), `log_prob` of each token, the mean
  over its frames, and `score`, the log-probability of the path."""

  start: np.ndarray  # int [U]
  stop: np.ndarray  # int [U]
  log_prob: np.ndarray  # float [U]
  score: float


def align(log_probs: np.ndarray, tokens: Sequence[int]) -> Alignment:
  """The best path of CTC log-probabilities [T, V] that reads as `tokens` (Viterbi, float64).

  Raises InputError if the text does not fit into the frames: CTC needs one frame a token and one between equal ones.
  """
  emitted = np.asarray(log_probs, np.float64)
  text = np.asarray(tokens, int)
  frames, count = len(emitted), len(text)
  needed = count + int(np.sum(text[1:] == text[:-1]))
  if needed > frames or not frames:
    raise InputError(f"a text of {count} tokens needs {max(needed, 1)} frames, but there are {frames}")
  # States: blank, token 0, blank, token 1, ..., blank. A token may skip the blank before it, if the last one differs.
  states = np.full(2 * count + 1, BLANK)
  states[1::2] = text
  may_skip = np.zeros(len(states), bool)
  may_skip[3::2] = text[1:] != text[:-1]
  best = np.full(len(states), -np.inf)
  best[:2] = emitted[0, states[:2]]
  moves = np.zeros((frames, len(states)), np.int8)
  for t in range(1, frames):
    stay_step_skip = np.stack([best, _shifted(best, 1), np.where(may_skip, _shifted(best, 2), -np.inf)])
    moves[t] = stay_step_skip.argmax(axis=0)
    best = stay_step_skip.max(axis=0) + emitted[t, states]
  state = len(states) - 1 if count == 0 or best[-1] >= best[-2] else len(states) - 2
  score = float(best[state])
  path = np.empty(frames, int)
  for t in range(frames - 1, -1, -1):
    path[t] = state
    state -= moves[t, state]
  spans = [np.flatnonzero(path == 2 * u + 1) for u in range(count)]
  return Alignment(
    start=np.array([span[0] for span in spans], int),
    stop=np.array([span[-1] + 1 for span in spans], int),
    log_prob=np.array([emitted[span, token].mean() for span, token in zip(spans, text, strict=True)]),
    score=score,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Word:
  """A word, seconds from the first frame, and the geometric mean of the probabilities of its tokens."""

  text: str
  start: float
  end: float
  confidence: float


def word_times(
  alignment: Alignment, words: Sequence[tuple[str, int, int]], *, frames: int, margin: float = 0.12
) -> list[Word]:
  """The times of `words`, each (text, first token, stop).

  CTC emits a token in a frame or two, not for as long as it is said. Every word is therefore longer at both ends by up
  to `margin` seconds of blank frames, of which neighbours get half each.
  """
  if not words:
    return []
  start = np.array([alignment.start[a] for _, a, _ in words], np.float64)
  stop = np.array([alignment.stop[b - 1] for _, _, b in words], np.float64)
  between = (start[1:] - stop[:-1]) / 2
  before = np.minimum(np.concatenate([start[:1], between]), margin * FPS)
  after = np.minimum(np.concatenate([between, frames - stop[-1:]]), margin * FPS)
  return [
    Word(text=text, start=float(first / FPS), end=float(last / FPS), confidence=float(np.exp(log_prob)))
    for (text, a, b), first, last in zip(words, start - before, stop + after, strict=True)
    for log_prob in [alignment.log_prob[a:b].mean()]
  ]


def _shifted(x: np.ndarray, places: int) -> np.ndarray:
  return np.concatenate([np.full(places, -np.inf), x])[: len(x)]
