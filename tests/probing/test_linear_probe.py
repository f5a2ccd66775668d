"""The fit against scikit-learn's, and what it refuses."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from synclipmae_jax.probing import linear_probe
from synclipmae_jax.types import InputError

L2 = 0.03
CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def data():
  """300 clips of 10 features of unequal scale; three classes that the features tell in part."""
  rng = np.random.default_rng(0)
  features = rng.normal(3, 1, (300, 10)) * np.geomspace(0.01, 100, 10)
  scores = ((features - features.mean(0)) / features.std(0)) @ rng.normal(0, 1, (10, 3)) + rng.gumbel(0, 1, (300, 3))
  return features.astype(np.float32), scores


def reference(features, target):
  scaled = StandardScaler().fit(features)
  model = LogisticRegression(C=1 / (L2 * len(features)), tol=1e-8, max_iter=10_000)
  return model.fit(scaled.transform(features), target), scaled


def test_one_label_is_scikit_learns_softmax(data):
  features, scores = data
  target = scores.argmax(1)
  fitted = linear_probe.fit(
    features, np.eye(3, dtype=bool)[target], np.zeros(300, bool), CLASSES, several=False, strengths=[L2]
  )
  probe = fitted.probe
  model, scaled = reference(features, target)
  found = probe.probabilities(probe.logits(features))
  np.testing.assert_allclose(found, model.predict_proba(scaled.transform(features)), atol=2e-3)
  np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


def test_several_labels_are_one_logistic_regression_each(data):
  features, scores = data
  targets = scores > np.array([0.0, 1.0, 3.0])
  fitted = linear_probe.fit(features, targets, np.zeros(300, bool), CLASSES, several=True, strengths=[L2])
  found = fitted.probe.probabilities(fitted.probe.logits(features))
  for c in range(3):
    model, scaled = reference(features, targets[:, c])
    np.testing.assert_allclose(found[:, c], model.predict_proba(scaled.transform(features))[:, 1], atol=2e-3)


def test_l2_is_chosen_on_the_held_out_clips():
  """Of 60 clips with 40 features of pure noise and one that tells, the weakest L2 fits the noise."""
  rng = np.random.default_rng(1)
  features = rng.normal(size=(120, 41))
  truth = features[:, 0] + rng.normal(0, 1, 120) > 0
  held_out = np.arange(120) >= 60
  fitted = linear_probe.fit(features, np.stack([truth, ~truth], 1), held_out, ("yes", "no"), several=False)
  losses = fitted.held_out_loss
  assert set(losses) == set(linear_probe.STRENGTHS)
  assert losses[fitted.l2] == min(losses.values()) < losses[min(losses)]
  assert min(linear_probe.STRENGTHS) < fitted.l2


def test_logits_of_a_mean_are_the_mean_of_logits(data):
  features, scores = data
  targets = np.eye(3, dtype=bool)[scores.argmax(1)]
  probe = linear_probe.fit(features, targets, np.zeros(300, bool), CLASSES, several=False, strengths=[L2]).probe
  frames = features[:80]
  np.testing.assert_allclose(probe.logits(frames).mean(0), probe.logits(frames.mean(0)), rtol=1e-3, atol=1e-4)


def test_a_constant_feature_changes_nothing(data):
  features, scores = data
  targets = np.eye(3, dtype=bool)[scores.argmax(1)]
  fit = lambda x: linear_probe.fit(x, targets, np.zeros(300, bool), CLASSES, several=False, strengths=[L2]).probe
  more = np.concatenate([features, np.full((300, 1), 7.3, np.float32)], 1)
  np.testing.assert_allclose(fit(more).logits(more), fit(features).logits(features), atol=1e-3)


def test_bad_input_is_one_sentence():
  rng = np.random.default_rng(2)
  features, held_out = rng.normal(size=(12, 3)), np.arange(12) % 5 == 0
  targets = np.eye(3, dtype=bool)[np.arange(12) % 3]
  fit = lambda x, y, several=False, **k: linear_probe.fit(x, y, held_out, CLASSES, several=several, **k)
  broken = features.copy()
  broken[4, 1] = np.nan
  with pytest.raises(InputError, match="the features of clip 4 are not finite"):
    fit(broken, targets)
  alone = np.eye(3, dtype=bool)[[0, 1] * 5 + [0, 2]]
  with pytest.raises(InputError, match="the class 'c' has one training clip, a probe needs 2: .*leave_out"):
    fit(features, alone)
  with pytest.raises(InputError, match="the class 'c' has no training clip"):
    fit(features, np.eye(3, dtype=bool)[[0, 1] * 6])
  with pytest.raises(InputError, match="the label 'a' holds in all training clips but 0"):
    fit(features, np.array([[True, k % 2, k % 3] for k in range(12)], bool), several=True)
  with pytest.raises(InputError, match="the strengths of L2 are positive"):
    fit(features, targets, strengths=[0.0])
  with pytest.raises(InputError, match="chosen on held-out clips"):
    linear_probe.fit(features, targets, np.zeros(12, bool), CLASSES, several=False)
