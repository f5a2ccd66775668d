"""Scores of one label or several labels a clip, as states that merge exactly.

    accuracy           one label: the largest score is right; several: share of right entries at 0.5 (as MARLIN reports)
    balanced_accuracy  mean over classes of the recall; several: of the mean of both recalls at 0.5
    auc_micro          area under the ROC of all entries together
    auc_macro          mean over classes, each against all others; classes that all clips or none have are not counted
    map                mean over these classes of the average precision

The same numbers of the prior, which gives every clip the frequencies of the training clips, are what nothing learned
would reach. Intervals are percentile bootstraps over clips.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from synclipmae_jax.metrics.bootstrap import RESAMPLES, SEED, Estimate

METRICS = ("accuracy", "balanced_accuracy", "auc_micro", "auc_macro", "map")
_ENTRIES = 2**22  # of an array of the bootstrap


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassScore:
  """One class. Undefined numbers are NaN."""

  clips: int  # that have it
  precision: float
  recall: float
  auc: float
  average_precision: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
  estimates: Mapping[str, Estimate]  # of METRICS
  prior: Mapping[str, float]
  clips: int
  counted: int  # classes that the macro AUC and the mAP count
  classes: Mapping[str, ClassScore]
  confusion: np.ndarray | None  # int [C, C], row: true class, column: the largest score; None for several labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelState:
  """Scores in 0..1 and labels of clips."""

  classes: tuple[str, ...]
  several: bool
  keys: tuple[str, ...]
  scores: np.ndarray  # float [N, C]
  targets: np.ndarray  # bool [N, C]

  def merge(self, other: LabelState) -> LabelState:
    """The clips of both; of other classes: ValueError."""
    if (self.classes, self.several) != (other.classes, other.several):
      raise ValueError("scores of other classes cannot be merged")
    return dataclasses.replace(
      self, keys=self.keys + other.keys, scores=np.concatenate([self.scores, other.scores]),
      targets=np.concatenate([self.targets, other.targets]),
    )  # fmt: skip

  def compute(self, prior: np.ndarray, *, resamples: int = RESAMPLES) -> Scores:
    """`prior`: float [C], the frequencies of the classes in the clips fitted on."""
    order = sorted(range(len(self.keys)), key=self.keys.__getitem__)
    scores, targets = np.asarray(self.scores, np.float64)[order], self.targets[order]
    clips = len(order)
    once = np.ones((1, clips))
    value = self._metrics(scores, targets, once)[0]
    constant = self._metrics(np.broadcast_to(np.asarray(prior, np.float64), scores.shape), targets, once)[0]
    low = high = np.full(len(METRICS), np.nan)
    if clips > 1 and resamples:
      drawn = np.random.default_rng(SEED).multinomial(clips, np.full(clips, 1 / clips), size=resamples)
      block = max(1, _ENTRIES // targets.size)
      found = np.concatenate(
        [self._metrics(scores, targets, drawn[k : k + block].astype(float)) for k in range(0, resamples, block)]
      )
      low, high = np.nanpercentile(found, [2.5, 97.5], axis=0)
    count = targets.sum(axis=0)
    columns = zip(METRICS, value, low, high, strict=True)
    return Scores(
      estimates={name: Estimate(value=float(v), low=float(a), high=float(b)) for name, v, a, b in columns},
      prior=dict(zip(METRICS, map(float, constant), strict=True)),
      clips=clips,
      counted=int(((count > 0) & (count < clips)).sum()),
      classes=self._classes(scores, targets),
      confusion=None if self.several else _confusion(scores, targets),
    )

  def _metrics(self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[R, METRICS] of clips [N, C] that count `weights` [R, N] times."""
    if not len(scores):
      return np.full((len(weights), len(METRICS)), np.nan)
    chosen = decisions(scores, several=self.several)
    right = (chosen == targets).mean(axis=1) if self.several else (chosen & targets).any(axis=1)
    accuracy = weights @ right / weights.sum(axis=1)
    recall = _ratio(weights @ (chosen & targets), weights @ targets)
    if self.several:
      recall = (recall + _ratio(weights @ (~chosen & ~targets), weights @ ~targets)) / 2
    each = [_ranked(scores[:, c], targets[:, c], weights) for c in range(scores.shape[1])]
    micro, _ = _ranked(scores.ravel(), targets.ravel(), np.repeat(weights, scores.shape[1], axis=1))
    auc, precision = (_nanmean(np.stack(columns, axis=1)) for columns in zip(*each, strict=True))
    return np.stack([accuracy, _nanmean(recall), micro, auc, precision], axis=1)

  def _classes(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, ClassScore]:
    found, chosen = {}, decisions(scores, several=self.several) if len(scores) else targets
    for c, name in enumerate(self.classes):
      hits, count = int((chosen[:, c] & targets[:, c]).sum()), int(targets[:, c].sum())
      auc, average = _ranked(scores[:, c], targets[:, c], np.ones((1, len(scores))))
      found[name] = ClassScore(
        clips=count,
        precision=hits / chosen[:, c].sum() if chosen[:, c].any() else np.nan,
        recall=hits / count if count else np.nan,
        auc=float(auc[0]),
        average_precision=float(average[0]),
      )
    return found


def decisions(scores: np.ndarray, *, several: bool) -> np.ndarray:
  """bool [N, C]: the classes that scores [N, C] in 0..1 decide for."""
  if several:
    return scores > 0.5
  return np.arange(scores.shape[1]) == scores.argmax(axis=1)[:, None]


def _confusion(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
  found = np.zeros((targets.shape[1],) * 2, int)
  np.add.at(found, (targets.argmax(axis=1), scores.argmax(axis=1)), 1)
  return found


def _ranked(scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(area under the ROC, average precision), each [R], of entries [n] that count `weights` [R, n] times.

  Equal scores are one threshold. NaN where one of both kinds is missing.
  """
  if not len(scores):
    return (np.full(len(weights), np.nan),) * 2
  order = np.argsort(-scores, kind="stable")
  starts = np.flatnonzero(np.diff(scores[order], prepend=np.inf))
  totals = lambda kind: np.add.reduceat(weights[:, order] * kind[order], starts, axis=1)  # of every threshold
  right, wrong = totals(targets), totals(~targets)
  all_right, all_wrong = right.sum(axis=1), wrong.sum(axis=1)
  below = all_wrong[:, None] - np.cumsum(wrong, axis=1)
  auc = _ratio((right * (below + wrong / 2)).sum(axis=1), all_right * all_wrong)
  found = np.cumsum(right, axis=1)
  precision = _ratio(found, found + np.cumsum(wrong, axis=1), empty=0.0)
  average = _ratio((right * precision).sum(axis=1), all_right)
  return auc, np.where(all_wrong > 0, average, np.nan)


def _ratio(numerator: np.ndarray, denominator: np.ndarray, empty: float = np.nan) -> np.ndarray:
  return np.divide(numerator, denominator, out=np.full(np.shape(numerator), empty), where=denominator > 0)


def _nanmean(values: np.ndarray) -> np.ndarray:
  """Over the last axis; NaN without a number."""
  known = np.isfinite(values)
  return _ratio(np.where(known, values, 0).sum(axis=-1), known.sum(axis=-1))


def merged(states: Sequence[LabelState]) -> LabelState:
  """At least one."""
  first, *rest = states
  for state in rest:
    first = first.merge(state)
  return first
