"""Word and character error rates, as states that merge exactly.

    WER = (S + D + I) / N: substituted, deleted and inserted words over the words of the references

The rate of a corpus is the sum of all errors over the sum of all words. Of the alignments with the fewest errors one
with the most hits is counted, that is, with the fewest substitutions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from synclipmae_jax.metrics.bootstrap import Estimate, clip_bootstrap


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edits:
  """The differences of a hypothesis from its reference."""

  hits: int = 0
  substitutions: int = 0
  deletions: int = 0  # of the reference, lacking in the hypothesis
  insertions: int = 0

  @property
  def errors(self) -> int:
    return self.substitutions + self.deletions + self.insertions

  @property
  def length(self) -> int:
    """Units of the reference."""
    return self.hits + self.substitutions + self.deletions

  def __add__(self, other: Edits) -> Edits:
    names = (field.name for field in dataclasses.fields(self))
    return Edits(**{name: getattr(self, name) + getattr(other, name) for name in names})


def edits(reference: Sequence[str], hypothesis: Sequence[str]) -> Edits:
  """The fewest edits (Levenshtein) that turn the reference into the hypothesis; of those, the ones with most hits."""
  # cost[i][j] of the first i and j units; a tuple compares errors first, then hits.
  n, m = len(reference), len(hypothesis)
  cost = [[(j, 0) for j in range(m + 1)]]
  for i, unit in enumerate(reference, start=1):
    above, row = cost[-1], [(i, 0)]
    for j, other in enumerate(hypothesis, start=1):
      errors, hits = above[j - 1]
      both = (errors, hits - 1) if unit == other else (errors + 1, hits)
      deleted, inserted = above[j], row[-1]
      row.append(min(both, (deleted[0] + 1, deleted[1]), (inserted[0] + 1, inserted[1])))
    cost.append(row)
  errors, hits = cost[n][m][0], -cost[n][m][1]
  # n = hits + S + D and m = hits + S + I
  substitutions = n + m - 2 * hits - errors
  return Edits(
    hits=hits, substitutions=substitutions, deletions=n - hits - substitutions, insertions=m - hits - substitutions
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Utterance:
  """One compared text. `label_source` says who wrote the reference (`data.labels.TEXT_SOURCES`; "" if unknown)."""

  key: str
  corpus: str
  label_source: str
  words: Edits
  characters: Edits


@dataclasses.dataclass(frozen=True, kw_only=True)
class ErrorRates:
  """Word and character error rates (fractions, may exceed 1) with 95 % bootstrap intervals over the utterances."""

  utterances: int
  words: Edits
  wer: Estimate
  cer: Estimate
  correct: float  # fraction of utterances without an error


@dataclasses.dataclass(frozen=True, kw_only=True)
class ErrorState:
  """The compared texts of a test set."""

  utterances: tuple[Utterance, ...] = ()

  @classmethod
  def of(cls, key: str, reference: str, hypothesis: str, *, corpus: str = "", label_source: str = "") -> ErrorState:
    """One pair of texts, both already normalised in the same way (`text.normaliser`)."""
    utterance = Utterance(
      key=key,
      corpus=corpus,
      label_source=label_source,
      words=edits(reference.split(), hypothesis.split()),
      characters=edits(" ".join(reference.split()), " ".join(hypothesis.split())),
    )
    return cls(utterances=(utterance,))

  def merge(self, other: ErrorState) -> ErrorState:
    return ErrorState(utterances=self.utterances + other.utterances)

  def compute(self) -> ErrorRates:
    """The rates of all utterances; NaN without a word in the references."""
    chosen = sorted(self.utterances, key=lambda utterance: (utterance.corpus, utterance.key))
    counted = [(u.words, u.characters) for u in chosen]
    errors = np.array([[e.errors for e in pair] for pair in counted], np.float64).reshape(-1, 2)
    lengths = np.array([[e.length for e in pair] for pair in counted], np.float64).reshape(-1, 2)
    wer, cer = _ratios(errors, lengths)
    correct = np.mean([u.words.errors == 0 for u in chosen]) if chosen else np.nan
    words = sum((u.words for u in chosen), Edits())
    return ErrorRates(utterances=len(chosen), words=words, wer=wer, cer=cer, correct=float(correct))

  def by_corpus(self) -> dict[tuple[str, str], ErrorState]:
    """(corpus, source of its labels) -> its utterances, sorted: rates against people and against machines never mix."""
    groups: dict[tuple[str, str], list[Utterance]] = {}
    for utterance in self.utterances:
      groups.setdefault((utterance.corpus, utterance.label_source), []).append(utterance)
    return {name: ErrorState(utterances=tuple(group)) for name, group in sorted(groups.items())}


def merged(states: Iterable[ErrorState]) -> ErrorState:
  return ErrorState(utterances=tuple(u for state in states for u in state.utterances))


def _ratios(errors: np.ndarray, lengths: np.ndarray) -> list[Estimate]:
  """Sums of errors over sums of lengths. An empty reference gets a length near 0, so that its insertions count."""
  weights = np.maximum(lengths, 1e-9)
  found = clip_bootstrap(errors / weights, weights)
  return [e if total else Estimate(value=np.nan) for e, total in zip(found, lengths.sum(0), strict=True)]
