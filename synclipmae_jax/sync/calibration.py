"""Calibration: converts the evidence of `sync.estimate` to probabilities.

It consists of two logistic curves and one temperature. `fit` fits them on sets of clips of known lag, on stretches of
many lengths, and on the same clips with the sound of another clip. They are stored in the checkpoint's meta.json. Every
set has the same total weight: a thousand synthetic stretches do not outvote a hundred of real faces.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np

from synclipmae_jax.metrics.sync import LAGS, TOLERANCE

STRANGERS = 0.025  # fraction of stretches with foreign sound that are accepted as synchronizable
PRECISION = 0.95  # fraction of the answers that must be right within a frame
MASS = 0.95  # probability inside the interval of the lag
LONG = 150  # frames: longer stretches count as this long
BINS = 10  # bins of the reliability diagram, with equal numbers of cases
_MOST = 1e6  # upper limit of a weight; fitted weights are far below
_TIE = 1e-6  # of a logit
_MARGIN = 1.0  # of the logit above all cases, where no threshold is precise
_STEEPEST = 3.0  # by which a threshold may rise if the length is halved
_DECAY = 1e-2  # weight decay; keeps the weights finite on a separable set


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
  """Evidence of a stretch for its best lag."""

  curve: np.ndarray  # float64 [31], z(l) of `sync.estimate`
  frames: int

  @property
  def best(self) -> int:
    """Index of the best lag in LAGS."""
    return int(self.curve.argmax())

  @property
  def features(self) -> np.ndarray:
    """float64 [4]: 1, the peak, its margin over the best lag more than one frame away, log2(length / 6 s).

    A stretch longer than 6 s counts as 6 s: its evidence does not depend on the length any more.
    """
    away = np.abs(LAGS - LAGS[self.best]) > TOLERANCE
    peak = self.curve[self.best]
    return np.array([1.0, peak, peak - self.curve[away].max(), np.log2(min(self.frames, LONG) / LONG)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseSet:
  """The evidence of one set of clips."""

  pairs: Sequence[tuple[Evidence, int]]  # with the true lag
  strangers: Sequence[Evidence]  # with the sound of another clip: no lag is true
  real: bool = True  # footage, not SynthTalk


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
  """Parameters of the probabilities.

  `right`: weights of P(|error| <= 1 frame | a lag exists); `present`: weights of P(a lag exists), which is 0.5 at the
  evidence that one foreign sound in forty of the same length reaches. Both are logistic in `Evidence.features`.
  `temperature`: p(l) is proportional to exp(temperature * z(l)).
  """

  right: tuple[float, ...]
  present: tuple[float, ...]
  temperature: float
  fitted_on: str  # description of the data; empty if nothing was fitted
  error: float | None = None  # expected calibration error on clips that were not fitted
  reliability: tuple[tuple[float, float, int], ...] = ()  # (mean confidence, fraction right, cases) by bin

  @classmethod
  def uncalibrated(cls) -> Calibration:
    """Default for a checkpoint without calibration, a guess: probability 0.5 at a peak of z = 4 with a margin of 1."""
    return cls(right=(-5.0, 1.0, 1.0, 0.0), present=(-5.0, 1.0, 1.0, 0.0), temperature=1.0, fitted_on="")

  def probabilities(self, evidence: Evidence) -> tuple[float, float]:
    """(P(|error| <= 1 frame | a lag exists), P(a lag exists))."""
    right, present = (_logistic(evidence.features @ np.array(weights)) for weights in (self.right, self.present))
    return float(right), float(present)

  def interval(self, evidence: Evidence) -> tuple[int, int]:
    """Interval of lags with 95 % of the probability, grown from the best lag towards the neighbour with more mass."""
    mass = _posterior(evidence.curve, self.temperature)
    low = high = evidence.best
    while mass[low : high + 1].sum() < MASS:
      left, right = (mass[low - 1] if low else -1.0), (mass[high + 1] if high + 1 < len(mass) else -1.0)
      low, high = (low - 1, high) if left > right else (low, high + 1)
    return int(LAGS[low]), int(LAGS[high])

  def to_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, stored: Mapping[str, Any]) -> Calibration:
    """Raises ValueError, TypeError or KeyError if `stored` is not a calibration."""
    numbers = {name: tuple(float(x) for x in stored[name]) for name in ("right", "present")}
    if any(len(weights) != 4 or not (np.abs(weights) < _MOST).all() for weights in numbers.values()):
      raise ValueError(f"a calibration needs four weights per curve, each below {_MOST:g}")
    if not 0 < float(stored["temperature"]) < _MOST:
      raise ValueError(f"the temperature {stored['temperature']} is out of range")
    error = stored.get("error")
    return cls(
      **numbers,
      temperature=float(stored["temperature"]),
      fitted_on=str(stored["fitted_on"]),
      error=None if error is None else float(error),
      reliability=tuple((float(c), float(r), int(n)) for c, r, n in stored.get("reliability", ())),
    )


def fit(sets: Sequence[CaseSet], *, fitted_on: str) -> Calibration:
  """A calibration from sets of equal weight.

  The threshold of `present` is a quantile of foreign sound, not the midpoint to own sound: other footage shows weaker
  evidence than these clips and must not be rejected for it. If any set is real, it is a quantile of the real sets
  alone: chance evidence differs between real faces and SynthTalk, and the tool is used on real faces. Short stretches
  reach high evidence by chance, so that the quantile depends on the length; how steeply, all sets say, because the real
  ones may all be short. Where a model is so weak on the judged sets that too few of the answers above it are right,
  the threshold is raised.
  """
  pairs = [pair for each in sets for pair in each.pairs]
  own = [np.array([evidence.features for evidence, _ in each.pairs]) for each in sets]
  foreign = [np.array([evidence.features for evidence in each.strangers]) for each in sets]
  right = [_right(each.pairs) for each in sets]
  curves = np.array([evidence.curve for evidence, _ in pairs])
  truth = np.array([lag for _, lag in pairs]) - LAGS[0]

  def surprise(log_temperature: float) -> float:
    mass = _posterior(curves, np.exp(log_temperature))
    likelihood = np.log(np.maximum(mass[np.arange(len(truth)), truth], 1e-9))
    return -np.average(likelihood, weights=_weights(own))

  import scipy.optimize  # slow to import; the use of a calibration needs none of it

  temperature = scipy.optimize.minimize_scalar(surprise, bounds=(-3.0, 3.0), method="bounded").x
  is_own = np.arange(len(pairs) + sum(map(len, foreign))) < len(pairs)
  weight = np.concatenate([_weights(own), _weights(foreign)])
  # The weight of the length is 0 here: a long stretch without evidence is no sign of foreign sound.
  present = np.array(_fit_logistic(np.concatenate([*own, *foreign]), is_own, weight, length=0.0))
  judged = [k for k, each in enumerate(sets) if each.real] or list(range(len(sets)))
  present -= _threshold([part @ present for part in foreign], [part[:, -1] for part in foreign], judged)
  present[0] -= _precision_threshold([own[k] @ present for k in judged], [right[k] for k in judged])
  return Calibration(
    right=_fit_logistic(np.concatenate(own), np.concatenate(right), _weights(own)),
    present=tuple(float(w) for w in present),
    temperature=float(np.exp(temperature)),
    fitted_on=fitted_on,
  )


def measure(calibration: Calibration, sets: Sequence[CaseSet]) -> Calibration:
  """`calibration` with its reliability and expected calibration error, measured on stretches not used in the fit."""
  pairs = [pair for each in sets for pair in each.pairs]
  weight = _weights([each.pairs for each in sets])
  confidence = np.array([calibration.probabilities(evidence)[0] for evidence, _ in pairs])
  reliability, error = expected_error(confidence, _right(pairs), weight)
  return dataclasses.replace(calibration, reliability=reliability, error=error)


def _right(pairs: Sequence[tuple[Evidence, int]]) -> np.ndarray:
  return np.array([abs(int(LAGS[evidence.best]) - lag) <= TOLERANCE for evidence, lag in pairs])


def _weights(parts: Sequence[Sized]) -> np.ndarray:
  """The weight of every case of sets of equal weight."""
  return np.concatenate([np.full(len(part), 1 / max(len(part), 1)) for part in parts])


def expected_error(
  confidence: np.ndarray, right: np.ndarray, weight: np.ndarray | None = None
) -> tuple[tuple[tuple[float, float, int], ...], float]:
  """(rows of `Calibration.reliability`, expected calibration error) of n confidences and of n outcomes.

  The error is the mean distance of confidence and fraction right over bins of equal weight.
  """
  order = np.argsort(confidence, kind="stable")
  weight = np.ones(len(confidence)) if weight is None else weight
  reached = weight[order].cumsum() - weight[order] / 2
  bins = [order[reached * BINS // weight.sum() == k] for k in range(BINS)]
  mean = lambda values, part: float(np.average(values[part], weights=weight[part]))
  rows = [(mean(confidence, part), mean(right, part), len(part), weight[part].sum()) for part in bins if len(part)]
  error = sum(abs(sure - share) * heavy for sure, share, _, heavy in rows) / weight.sum()
  return tuple(row[:3] for row in rows), float(error)


def _posterior(curve: np.ndarray, temperature: float) -> np.ndarray:
  mass = np.exp(temperature * (curve - curve.max(axis=-1, keepdims=True)))
  return mass / mass.sum(axis=-1, keepdims=True)


def _logistic(x):
  return 1 / (1 + np.exp(-np.clip(x, -50, 50)))


def _fit_logistic(
  features: np.ndarray, labels: np.ndarray, weight: np.ndarray, *, length: float | None = None
) -> tuple[float, ...]:
  """Weights with the least mean log loss. Those of peak and margin are >= 0; `length` fixes that of the length."""
  sign = np.where(labels, 1.0, -1.0)

  def loss(weights):
    mean = np.average(np.logaddexp(0, -sign * (features @ weights)), weights=weight)
    return mean + _DECAY * (weights[1:] ** 2).sum() / len(labels) ** 0.5

  import scipy.optimize

  bounds = [(None, None), (0, None), (0, None), (length, length)]
  return tuple(float(w) for w in scipy.optimize.minimize(loss, np.zeros(4), bounds=bounds).x)


def _threshold(logits: Sequence[np.ndarray], lengths: Sequence[np.ndarray], judged: Sequence[int]) -> np.ndarray:
  """float64 [4], (a, 0, 0, b): a + b * length is the quantile 1 - STRANGERS of the logits of foreign sound; b <= 0.

  `lengths` are the last of `Evidence.features`, at most 0. b is fitted on all sets, each with a constant of its own
  (quantile regression, Koenker and Bassett 1978), a on the sets numbered `judged`.
  """

  def quantile(parts: Sequence[np.ndarray]) -> float:
    values, weight = np.concatenate(parts), _weights(parts)
    order = np.argsort(values)
    return float(values[order[np.searchsorted(weight[order].cumsum() / weight.sum(), 1 - STRANGERS)]])

  def loss(slope: float) -> float:
    rests = [part - slope * length for part, length in zip(logits, lengths, strict=True)]
    above = np.concatenate([rest - quantile([rest]) for rest in rests])
    return np.maximum((1 - STRANGERS) * above, -STRANGERS * above).sum()

  slope = min(np.linspace(0, -_STEEPEST, 61), key=loss)
  # Above the quantile: if the evidence tells nothing, all logits are equal, and none is accepted.
  return np.array([quantile([logits[k] - slope * lengths[k] for k in judged]) + _TIE, 0, 0, slope])


def _precision_threshold(logits: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> float:
  """The least threshold >= 0 above which PRECISION of the cases of sets of equal weight are right."""
  weight, logit, outcome = _weights(logits), np.concatenate(logits), np.concatenate(right)
  order = np.lexsort((outcome, -logit))
  order = order[logit[order] >= 0]
  reached = (weight * outcome)[order].cumsum() / weight[order].cumsum()
  if not len(order) or reached[-1] >= PRECISION:
    return 0.0
  precise = np.flatnonzero(reached >= PRECISION)
  return float(logit[order[precise[-1]]] if len(precise) else logit.max() + _MARGIN)
