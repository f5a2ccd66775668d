import json

import numpy as np
import pytest

from synclipmae_jax.metrics.sync import LAGS
from synclipmae_jax.sync.calibration import Calibration, Evidence, fit, measure


def evidence(rng, lag, strength, frames=150):
  curve = rng.normal(size=len(LAGS))
  curve[lag - LAGS[0]] += strength
  return Evidence(curve=curve, frames=frames)


def cases(seed, number=600):
  """Peaks of 0 .. 6 sigma; some are found, some are not."""
  rng = np.random.default_rng(seed)
  lags = rng.integers(-10, 11, number)
  return [(evidence(rng, lag, rng.uniform(0, 6)), int(lag)) for lag in lags]


def strangers(seed, number=600):
  rng = np.random.default_rng(seed)
  return [evidence(rng, 0, 0.0) for _ in range(number)]


@pytest.fixture(scope="module")
def calibration():
  return measure(fit(cases(0), strangers(1), fitted_on="a test"), cases(2))


def test_confidence_is_the_fraction_that_is_correct(calibration):
  assert calibration.error < 0.05
  low, high = calibration.reliability[0], calibration.reliability[-1]
  assert low[1] < 0.6 < 0.95 < high[1]  # the cases differ
  assert sum(count for *_, count in calibration.reliability) == 600


def test_foreign_sound_is_separated_from_peaks(calibration):
  rng = np.random.default_rng(5)
  strong = [calibration.probabilities(evidence(rng, 3, 8.0))[1] for _ in range(50)]
  none = [calibration.probabilities(other)[1] for other in strangers(6, 50)]
  assert np.mean(np.array(strong) > 0.5) > 0.95 and np.mean(np.array(none) < 0.5) > 0.8


def test_the_interval_has_its_nominal_coverage(calibration):
  held = [calibration.interval(own)[0] <= lag <= calibration.interval(own)[1] for own, lag in cases(7)]
  assert 0.9 < np.mean(held) <= 1
  sharp = calibration.interval(evidence(np.random.default_rng(0), 4, 40.0))
  assert sharp == (4, 4)


def test_an_edge_lag_has_an_interval():
  curve = np.full(len(LAGS), -30.0)
  curve[0] = 30.0
  assert Calibration.uncalibrated().interval(Evidence(curve=curve, frames=150)) == (-15, -15)
  flat = Calibration.uncalibrated().interval(Evidence(curve=np.zeros(len(LAGS)), frames=150))
  assert flat[0] <= -13 and flat[1] >= 13


def test_survives_json(calibration):
  assert Calibration.from_json(json.loads(json.dumps(calibration.to_json()))) == calibration
  with pytest.raises(ValueError, match="four weights per curve"):
    Calibration.from_json({**calibration.to_json(), "right": [1.0, float("nan"), 0, 0]})
  with pytest.raises(ValueError, match="four weights per curve"):
    Calibration.from_json({**calibration.to_json(), "present": [1e308] * 4})
  for temperature in (float("nan"), float("inf"), 0, -1):
    with pytest.raises(ValueError, match="temperature"):
      Calibration.from_json({**calibration.to_json(), "temperature": temperature})


def test_separable_cases_leave_finite_weights():
  rng = np.random.default_rng(0)
  easy = [(evidence(rng, lag, 50.0), lag) for lag in range(-10, 11)]
  fitted = fit(easy, strangers(1, 20), fitted_on="easy")
  assert np.isfinite([*fitted.right, *fitted.present, fitted.temperature]).all()
  right, present = fitted.probabilities(easy[0][0])
  assert right > 0.9 and present > 0.9
