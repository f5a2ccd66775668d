"""Calibration: converts the evidence of `sync.estimate` to probabilities.

It consists of two logistic curves and one temperature. `fit` fits them on clips of known lag, on stretches of many
lengths, and on the same clips with the sound of another clip. They are stored in the checkpoint's meta.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.optimize

from synclipmae_jax.metrics.sync import LAGS, TOLERANCE

STRANGERS = 0.025  # fraction of stretches with foreign sound that are accepted as synchronizable
MASS = 0.95  # probability inside the interval of the lag
BINS = 10  # bins of the reliability diagram, with equal numbers of cases
_MOST = 1e6  # upper limit of a weight; fitted weights are far below
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
    """float64 [4]: 1, the peak, its margin over the best lag more than one frame away, log2(length / 6 s)."""
    away = np.abs(LAGS - LAGS[self.best]) > TOLERANCE
    peak = self.curve[self.best]
    return np.array([1.0, peak, peak - self.curve[away].max(), np.log2(self.frames / 150)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
  """Parameters of the probabilities.

  `right`: weights of P(|error| <= 1 frame | a lag exists); `present`: weights of P(a lag exists), which is 0.5 at the
  evidence that one foreign sound in forty reaches. Both are logistic in `Evidence.features`. `temperature`: p(l) is
  proportional to exp(temperature * z(l)).
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


def fit(pairs: Sequence[tuple[Evidence, int]], strangers: Sequence[Evidence], *, fitted_on: str) -> Calibration:
  """A calibration from stretches with their true lag and from stretches without one (sound of another clip)."""
  right = np.array([abs(int(LAGS[evidence.best]) - lag) <= TOLERANCE for evidence, lag in pairs])
  own, foreign = (np.array([e.features for e in group]) for group in ([e for e, _ in pairs], strangers))
  curves = np.array([evidence.curve for evidence, _ in pairs])
  truth = np.array([lag for _, lag in pairs]) - LAGS[0]

  def surprise(log_temperature: float) -> float:
    mass = _posterior(curves, np.exp(log_temperature))
    return -np.log(np.maximum(mass[np.arange(len(truth)), truth], 1e-9)).mean()

  temperature = scipy.optimize.minimize_scalar(surprise, bounds=(-3.0, 3.0), method="bounded").x
  # The threshold is a quantile of foreign sound, not the midpoint to own sound: other footage shows weaker evidence
  # than these clips and must not be rejected for it. The weight of the length is 0: length is no evidence for a lag.
  weights = np.array(_fit_logistic(np.concatenate([own, foreign]), np.arange(len(own) + len(foreign)) < len(own), 0.0))
  weights[0] -= np.quantile(foreign @ weights, 1 - STRANGERS)
  return Calibration(
    right=_fit_logistic(own, right),
    present=tuple(float(w) for w in weights),
    temperature=float(np.exp(temperature)),
    fitted_on=fitted_on,
  )


def measure(calibration: Calibration, pairs: Sequence[tuple[Evidence, int]]) -> Calibration:
  """`calibration` with its reliability and expected calibration error, measured on stretches not used in the fit."""
  confidence = np.array([calibration.probabilities(evidence)[0] for evidence, _ in pairs])
  right = np.array([abs(int(LAGS[evidence.best]) - lag) <= TOLERANCE for evidence, lag in pairs])
  reliability, error = expected_error(confidence, right)
  return dataclasses.replace(calibration, reliability=reliability, error=error)


def expected_error(confidence: np.ndarray, right: np.ndarray) -> tuple[tuple[tuple[float, float, int], ...], float]:
  """(rows of `Calibration.reliability`, expected calibration error) of n confidences and of n outcomes.

  The error is the mean distance of confidence and fraction right over bins of equal size.
  """
  bins = [part for part in np.array_split(np.argsort(confidence, kind="stable"), BINS) if len(part)]
  reliability = tuple((float(confidence[part].mean()), float(right[part].mean()), len(part)) for part in bins)
  error = sum(abs(mean - share) * cases for mean, share, cases in reliability) / max(len(confidence), 1)
  return reliability, float(error)


def _posterior(curve: np.ndarray, temperature: float) -> np.ndarray:
  mass = np.exp(temperature * (curve - curve.max(axis=-1, keepdims=True)))
  return mass / mass.sum(axis=-1, keepdims=True)


def _logistic(x):
  return 1 / (1 + np.exp(-np.clip(x, -50, 50)))


def _fit_logistic(features: np.ndarray, labels: np.ndarray, length: float | None = None) -> tuple[float, ...]:
  """Weights with the least mean log loss. Those of peak and margin are >= 0; `length` fixes that of the length."""
  sign = np.where(labels, 1.0, -1.0)

  def loss(weights):
    return np.logaddexp(0, -sign * (features @ weights)).mean() + _DECAY * (weights[1:] ** 2).sum() / len(labels) ** 0.5

  bounds = [(None, None), (0, None), (0, None), (length, length)]
  return tuple(float(w) for w in scipy.optimize.minimize(loss, np.zeros(4), bounds=bounds).x)
