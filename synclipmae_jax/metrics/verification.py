"""Verification: do two clips show one person? The ROC curve of scores, its area, and the equal error rate.

A pair is accepted where its score reaches a threshold. The area (AUC) is the probability that a pair of one person has
a higher score than one of two, ties counted half. The equal error rate (EER) lies where the share of rejected pairs of
one person equals the share of accepted pairs of two, on the line between the two thresholds around it.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from synclipmae_jax.metrics.bootstrap import Estimate
from synclipmae_jax.metrics.factors import FactorState
from synclipmae_jax.metrics.sync import unit

RESAMPLES = 200
DRAWN = 200  # points of a curve in a report, at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roc:
  """Shares in 0..1 at falling thresholds, from none accepted to all."""

  false_accepts: np.ndarray  # [n]
  true_accepts: np.ndarray  # [n]

  @property
  def auc(self) -> float:
    return float(np.trapezoid(self.true_accepts, self.false_accepts))

  @property
  def eer(self) -> float:
    difference = self.false_accepts - (1 - self.true_accepts)  # rises from -1 to 1
    after = int(np.argmax(difference >= 0))
    low, high = difference[after - 1], difference[after]
    part = -low / (high - low)
    return float(self.false_accepts[after - 1] + part * (self.false_accepts[after] - self.false_accepts[after - 1]))

  def thinned(self) -> Roc:
    """At most DRAWN of the points, spread along the curve, for a picture or a file."""
    along = (self.false_accepts + self.true_accepts) / 2
    kept = np.unique(np.append(np.searchsorted(along, np.linspace(0, 1, DRAWN - 1)), len(along) - 1))
    kept = kept[kept < len(along)]
    return Roc(false_accepts=self.false_accepts[kept], true_accepts=self.true_accepts[kept])


def roc_of(scores: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None) -> Roc:
  """The curve of pairs with `scores` [n], of which `same` [n] tells whether both show one person.

  Raises ValueError where either kind has no weight.
  """
  weights = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
  order = np.argsort(-scores, kind="stable")
  same, weights, scores = np.asarray(same, bool)[order], weights[order], scores[order]
  own, other = np.cumsum(weights * same), np.cumsum(weights * ~same)
  if not (len(scores) and own[-1] > 0 and other[-1] > 0):
    raise ValueError("a curve needs pairs of one person and of two")
  last = np.append(
    np.flatnonzero(np.diff(scores)), len(scores) - 1
  )  # of each value: equal scores are accepted together
  start = lambda total: np.concatenate([[0.0], total[last] / total[-1]])
  return Roc(false_accepts=start(other), true_accepts=start(own))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verification:
  """All pairs of clips, by the cosine of their mean features."""

  roc: Roc
  auc: Estimate  # intervals: people are drawn
  eer: Estimate
  pairs: tuple[int, int]  # of one person, of two


def verify_people(feature: str, state: FactorState, *, seed: int = 0) -> Verification | None:
  """None where nobody is seen in two clips, or only one person at all."""
  clips = [clip for clip in state.ordered if clip.identity]
  names, person = np.unique([clip.identity for clip in clips], return_inverse=True)
  first, second = np.triu_indices(len(clips), 1)
  same = person[first] == person[second]
  if not same.any() or same.all():
    return None
  means = unit(np.stack([clip.features[feature].mean(axis=0, dtype=np.float64) for clip in clips]))
  scores = np.einsum("nd,nd->n", means[first], means[second])
  roc = roc_of(scores, same)
  drawn = []
  rng = np.random.default_rng(seed)
  for _ in range(RESAMPLES):
    count = rng.multinomial(len(names), np.full(len(names), 1 / len(names)))[person]
    # A person who is drawn twice is no second person to himself: his clips are not paired with their own copies.
    weights = np.where(same, count[first], count[first] * count[second])
    if (weights * same).any() and (weights * ~same).any():
      one = roc_of(scores, same, weights)
      drawn.append((one.auc, one.eer))
  (auc_low, eer_low), (auc_high, eer_high) = np.percentile(drawn, [2.5, 97.5], axis=0)
  return Verification(
    roc=roc,
    auc=Estimate(value=roc.auc, low=float(auc_low), high=float(auc_high)),
    eer=Estimate(value=roc.eer, low=float(eer_low), high=float(eer_high)),
    pairs=(int(same.sum()), int((~same).sum())),
  )
