"""ROC, AUC and EER against scikit-learn and closed forms."""

import math

import numpy as np
import pytest

from synclipmae_jax.metrics.factors import ClipFactors, FactorState
from synclipmae_jax.metrics.verification import roc_of, verify_people


def test_the_curve_of_two_normal_distributions_has_its_closed_form():
  """Scores of one person are N(d, 1), of two N(0, 1): AUC = Phi(d / sqrt 2), EER = Phi(-d / 2)."""
  rng = np.random.default_rng(0)
  same = np.arange(200_000) % 2 == 0
  roc = roc_of(rng.normal(1.5 * same, 1), same)
  phi = lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2)))
  assert roc.auc == pytest.approx(phi(1.5 / math.sqrt(2)), abs=0.003)
  assert roc.eer == pytest.approx(phi(-0.75), abs=0.003)


def test_curve_and_area_are_those_of_scikit_learn():
  metrics = pytest.importorskip("sklearn.metrics")
  rng = np.random.default_rng(1)
  same, weights = rng.random(300) < 0.3, rng.integers(0, 4, 300)
  scores = np.round(rng.normal(same, 1), 1)  # with many ties
  roc = roc_of(scores, same, weights)
  false, true, _ = metrics.roc_curve(same, scores, sample_weight=weights, drop_intermediate=False)
  assert roc.auc == pytest.approx(metrics.roc_auc_score(same, scores, sample_weight=weights), abs=1e-12)
  np.testing.assert_allclose(np.interp(false, roc.false_accepts, roc.true_accepts), np.interp(false, false, true))
  thinned = roc.thinned()
  assert (thinned.false_accepts[0], thinned.true_accepts[-1]) == (0, 1)


@pytest.mark.parametrize(("scores", "auc", "eer"), [
  ([3, 2, 1, 0], 1, 0), ([0, 1, 2, 3], 0, 1), ([1, 1, 1, 1], 0.5, 0.5), ([3, 1, 2, 0], 0.75, 0.5),
])  # fmt: skip
def test_small_cases(scores, auc, eer):
  roc = roc_of(np.array(scores, float), np.array([True, True, False, False]))
  assert (roc.auc, roc.eer) == (pytest.approx(auc), pytest.approx(eer))


def state(noise, *, people=30, seed=0, clips_each=2):
  rng = np.random.default_rng(seed)
  made = []
  for person in range(people):
    centre = rng.normal(size=8)
    for number in range(clips_each):
      token = centre + noise * rng.normal(size=(3, 8)).mean(0) + np.zeros((3, 1))
      made.append(ClipFactors(key=f"{person}/{number}", identity=f"{person}", features={"token": token},
                              truth=np.zeros((3, 1))))  # fmt: skip
  return FactorState.of(made)


def test_people_are_told_apart_by_tokens_that_hold_them_and_not_by_noise():
  good, bad = verify_people("token", state(0.1)), verify_people("token", state(100.0))
  assert good.auc.value > 0.99 and good.eer.value < 0.05 and good.pairs == (30, 30 * 29 * 2)
  assert bad.auc.low < 0.5 < bad.auc.high and bad.eer.low < 0.5 < bad.eer.high
  assert good.auc.low <= good.auc.value <= good.auc.high


def test_without_a_second_clip_or_a_second_person_there_are_no_pairs():
  assert verify_people("token", state(1.0, clips_each=1)) is None
  assert verify_people("token", state(1.0, people=1)) is None
