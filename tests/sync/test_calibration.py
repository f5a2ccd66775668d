import json

import numpy as np
import pytest

from synclipmae_jax.metrics.sync import LAGS
from synclipmae_jax.sync.calibration import STRANGERS, Calibration, CaseSet, Evidence, fit, measure


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
  fitted = fit([CaseSet(pairs=cases(0), strangers=strangers(1))], fitted_on="a test")
  return measure(fitted, [CaseSet(pairs=cases(2), strangers=())])


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
  fitted = fit([CaseSet(pairs=easy, strangers=strangers(1, 20))], fitted_on="easy")
  assert np.isfinite([*fitted.right, *fitted.present, fitted.temperature]).all()
  right, present = fitted.probabilities(easy[0][0])
  assert right > 0.9 and present > 0.9


def noisy(seed, number, *, frames=150, spread=1.0):
  """Foreign sound whose chance peaks are `spread` times as high."""
  return [Evidence(curve=spread * other.curve, frames=frames) for other in strangers(seed, number)]


def accepted(calibration, others):
  return np.mean([calibration.probabilities(other)[1] >= 0.5 for other in others])


def test_few_real_cases_are_not_outvoted_by_many_synthetic_ones():
  """The two sets disagree on what a peak is worth: in one each is right, in the other each is wrong."""
  rng = np.random.default_rng(0)
  peaks = [evidence(rng, 0, 5.0) for _ in range(660)]
  trusted = CaseSet(pairs=[(peak, 0) for peak in peaks[:600]], strangers=strangers(1), real=False)
  doubted = CaseSet(pairs=[(peak, 9) for peak in peaks[600:]], strangers=strangers(2, 60))
  weighted, outvoted = (
    fit(sets, fitted_on="") for sets in (
      [trusted, doubted],
      [CaseSet(pairs=trusted.pairs + doubted.pairs, strangers=[*trusted.strangers, *doubted.strangers])],
    )
  )  # fmt: skip
  sure = [np.mean([each.probabilities(peak)[0] for peak in peaks]) for each in (weighted, outvoted)]
  assert sure[0] == pytest.approx(0.5, abs=0.05) and sure[1] > 0.85
  assert measure(weighted, [trusted, doubted]).error < 0.15 < 0.3 < measure(weighted, [trusted]).error


def test_the_threshold_is_that_of_real_foreign_sound():
  synthetic = CaseSet(pairs=cases(0), strangers=noisy(1, 2000, spread=1.5), real=False)
  real = CaseSet(pairs=cases(2), strangers=noisy(3, 2000))
  both = fit([synthetic, real], fitted_on="")
  assert accepted(both, noisy(4, 1000)) == pytest.approx(STRANGERS, abs=0.015)
  assert accepted(both, noisy(5, 1000, spread=1.5)) > 0.06
  assert accepted(fit([synthetic], fitted_on=""), noisy(5, 1000, spread=1.5)) == pytest.approx(STRANGERS, abs=0.015)


def test_the_threshold_is_higher_where_short_stretches_reach_more_by_chance():
  others = [noisy(seed, 1500, frames=frames, spread=spread) for seed, frames, spread in ((1, 38, 1.6), (2, 150, 1.0))]
  fitted = fit([CaseSet(pairs=cases(0), strangers=[other for part in others for other in part])], fitted_on="")
  for part in others:
    assert accepted(fitted, part) == pytest.approx(STRANGERS, abs=0.015)
  one, other = (fitted.probabilities(Evidence(curve=others[1][0].curve, frames=frames)) for frames in (150, 4000))
  assert one == other  # nothing is extrapolated to longer files


def test_where_too_few_answers_are_right_the_threshold_rises():
  """Half of the real peaks are high and wrong: answers are given above the height from which on 95 % are right."""
  rng = np.random.default_rng(0)
  wrong = [(evidence(rng, 0, 6.0), 9) for _ in range(100)]
  right = [(evidence(rng, 0, strength), 0) for strength in np.linspace(5, 12, 200)]
  fitted = fit([CaseSet(pairs=wrong + right, strangers=strangers(1))], fitted_on="")
  answered = [abs(lag) <= 1 for peak, lag in wrong + right if fitted.probabilities(peak)[1] >= 0.5]
  assert 0.95 <= np.mean(answered) < 0.99 and len(answered) > 80
  none = fit([CaseSet(pairs=wrong, strangers=strangers(1))], fitted_on="")
  assert accepted(none, [peak for peak, _ in wrong]) == 0


def test_evidence_that_tells_nothing_gets_no_answer():
  same = strangers(1, 200)
  fitted = fit([CaseSet(pairs=[(other, 0) for other in same], strangers=same)], fitted_on="")
  assert accepted(fitted, same) == 0
