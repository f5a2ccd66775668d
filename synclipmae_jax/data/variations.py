"""Variations of transcribed clips of tokens: other speeds, and sentences that nobody said.

A few hundred sentences are soon known by heart: a decoder then writes the one it remembers. What it reads should differ
each time, and what was said too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from synclipmae_jax.types import FPS, InputError, Segment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variation:
  """How much training clips differ from those that were recorded.

  `warp`: the speed of a clip is log-uniform in [1 / warp, warp]. `splice`: the probability that some words in a row are
  those of another clip, of as many words, in the same places: for corpora of one grammar, whose sentences stay
  sentences, and with known times of words. `encode` makes token ids of a text. Raises InputError.
  """

  encode: Callable[[str], Sequence[int]]
  warp: float = 1.0
  splice: float = 0.0

  def __post_init__(self):
    if self.warp < 1 or not 0 <= self.splice <= 1:
      raise InputError(f"data.warp is at least 1 and data.splice in [0, 1], not {self.warp}, {self.splice}")


def warped(tokens: np.ndarray, factor: float) -> np.ndarray:
  """Tokens [T, D] of a clip that lasts `factor` times as long, by linear interpolation in time."""
  count = max(round(len(tokens) * factor), 1)
  at = np.linspace(0, len(tokens) - 1, count)
  low = np.minimum(at.astype(int), max(len(tokens) - 2, 0))
  part = (at - low)[:, None].astype(np.float32)
  high = np.minimum(low + 1, len(tokens) - 1)
  return tokens[low] * (1 - part) + tokens[high] * part


def spliced(
  tokens: np.ndarray, words: Sequence[Segment], others: np.ndarray, their: Sequence[Segment], *, first: int, last: int
) -> tuple[np.ndarray, list[Segment]]:
  """Tokens and words of a clip whose words `first` to `last` (excluded) are those of another.

  The seams lie in the middle between two words. At the ends of the sentence the clip keeps its own silence.
  """

  def seam(said: Sequence[Segment], place: int) -> float:
    if place in (0, len(said)):
      return said[0].start if place == 0 else said[-1].end
    return (said[place - 1].end + said[place].start) / 2

  ours = [min(round(seam(words, place) * FPS), len(tokens)) for place in (first, last)]
  theirs = [min(round(seam(their, place) * FPS), len(others)) for place in (first, last)]
  joined = np.concatenate([tokens[: ours[0]], others[theirs[0] : theirs[1]], tokens[ours[1] :]])
  taken = (ours[0] - theirs[0]) / FPS
  after = (ours[0] + theirs[1] - theirs[0] - ours[1]) / FPS
  moved = lambda some, by: [Segment(word.start + by, word.end + by, word.label) for word in some]
  return joined, [*words[:first], *moved(their[first:last], taken), *moved(words[last:], after)]


def trimmed(
  tokens: np.ndarray, words: Sequence[Segment], *, frames: int, rng: np.random.Generator
) -> tuple[np.ndarray, int] | None:
  """At most `frames` frames, and the first of them: what is too much is taken off the silence at both ends. None where
  there is not enough of it."""
  excess = len(tokens) - frames
  if excess <= 0:
    return tokens, 0
  before = max(int(words[0].start * FPS) - 1, 0)
  behind = max(len(tokens) - int(np.ceil(words[-1].end * FPS)) - 1, 0)
  if before + behind < excess:
    return None
  start = int(rng.integers(max(excess - behind, 0), min(before, excess) + 1))
  return tokens[start : start + frames], start


def vary(
  tokens: np.ndarray,
  words: Sequence[Segment],
  partner: tuple[np.ndarray, Sequence[Segment]] | None,
  variation: Variation,
  *,
  frames: int,
  rng: np.random.Generator,
) -> tuple[np.ndarray, list[Segment], list[int] | None] | None:
  """Tokens of at most `frames` frames, the words, and the ids of their text, None where it is the clip's own.

  `partner` is another clip; it is not used where it has another number of words. None altogether where the result
  would not fit into `frames`.
  """
  tokens, changed = tokens.astype(np.float32), False
  if partner is not None and len(words) == len(partner[1]) > 1 and rng.random() < variation.splice:
    first = int(rng.integers(len(words)))
    last = int(rng.integers(first + 1, len(words) + 1))
    if last - first < len(words):
      tokens, spoken = spliced(tokens, words, *partner, first=first, last=last)
      words, changed = spoken, True
  factor = float(variation.warp ** rng.uniform(-1, 1))
  if not words:
    factor = min(factor, frames / len(tokens))
  tokens = warped(tokens, factor)
  scaled = [Segment(word.start * factor, word.end * factor, word.label) for word in words]
  fitting = trimmed(tokens, scaled, frames=frames, rng=rng)
  if fitting is None or not len(fitting[0]):
    return None
  seen, first = fitting
  moved = [Segment(word.start - first / FPS, word.end - first / FPS, word.label) for word in scaled]
  return seen, moved, list(variation.encode(" ".join(word.label for word in words))) if changed else None
