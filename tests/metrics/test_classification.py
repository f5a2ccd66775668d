"""Scores of labels against scikit-learn's, and the merging of states."""

import numpy as np
import pytest
from sklearn import metrics as reference

from synclipmae_jax.metrics.classification import METRICS, LabelState, merged

CLASSES = ("a", "b", "c", "d")


def state(*, several, clips=120, seed=0, ties=False):
  rng = np.random.default_rng(seed)
  targets = (
    rng.random((clips, 4)) < [0.2, 0.5, 0.7, 0.1] if several else np.eye(4, dtype=bool)[rng.integers(0, 4, clips)]
  )
  scores = rng.normal(size=(clips, 4)) + 1.5 * targets
  scores = 1 / (1 + np.exp(-scores)) if several else np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
  scores = scores.round(1) if ties else scores
  keys = tuple(f"{seed}/{k:04d}" for k in range(clips))
  return LabelState(classes=CLASSES, several=several, keys=keys, scores=scores, targets=targets)


@pytest.mark.parametrize("ties", [False, True])
def test_one_label_a_clip(ties):
  one = state(several=False, ties=ties)
  found = one.compute(one.targets.mean(0), resamples=0)
  truth, answer = one.targets.argmax(1), one.scores.argmax(1)
  expected = {
    "accuracy": reference.accuracy_score(truth, answer),
    "balanced_accuracy": reference.balanced_accuracy_score(truth, answer),
    "auc_micro": reference.roc_auc_score(one.targets, one.scores, average="micro"),
    "auc_macro": reference.roc_auc_score(one.targets, one.scores, average="macro"),
    "map": reference.average_precision_score(one.targets, one.scores, average="macro"),
  }
  assert tuple(expected) == METRICS
  for name, value in expected.items():
    np.testing.assert_allclose(found.estimates[name].value, value, rtol=1e-9, err_msg=name)
  np.testing.assert_array_equal(found.confusion, reference.confusion_matrix(truth, answer))
  precision, recall, _, clips = reference.precision_recall_fscore_support(truth, answer)
  rows = found.classes.values()
  np.testing.assert_allclose([row.precision for row in rows], precision)
  np.testing.assert_allclose([row.recall for row in rows], recall)
  assert [row.clips for row in rows] == clips.tolist() and found.counted == 4


def test_several_labels_a_clip():
  one = state(several=True)
  found = one.compute(one.targets.mean(0), resamples=0)
  answers = one.scores > 0.5
  expected = {
    "accuracy": (answers == one.targets).mean(),
    "balanced_accuracy": np.mean(
      [reference.balanced_accuracy_score(one.targets[:, c], answers[:, c]) for c in range(4)]
    ),
    "auc_micro": reference.roc_auc_score(one.targets, one.scores, average="micro"),
    "auc_macro": reference.roc_auc_score(one.targets, one.scores, average="macro"),
    "map": reference.average_precision_score(one.targets, one.scores, average="macro"),
  }
  for name, value in expected.items():
    np.testing.assert_allclose(found.estimates[name].value, value, rtol=1e-9, err_msg=name)
  assert found.confusion is None


def test_the_prior_answers_the_same_of_every_clip():
  one = state(several=False)
  found = one.compute(np.array([0.1, 0.2, 0.6, 0.1]), resamples=0).prior
  assert found["accuracy"] == one.targets[:, 2].mean()
  assert found["balanced_accuracy"] == 0.25 and found["auc_macro"] == 0.5
  np.testing.assert_allclose(found["map"], one.targets.mean(0).mean())


def test_a_class_that_all_or_none_have_is_not_counted():
  one = state(several=True)
  targets = one.targets.copy()
  targets[:, 0], targets[:, 3] = True, False
  found = LabelState(classes=CLASSES, several=True, keys=one.keys, scores=one.scores, targets=targets).compute(
    targets.mean(0), resamples=0
  )
  assert found.counted == 2
  np.testing.assert_allclose(
    found.estimates["auc_macro"].value, reference.roc_auc_score(targets[:, 1:3], one.scores[:, 1:3], average="macro")
  )
  assert np.isnan(found.classes["a"].auc) and np.isnan(found.classes["d"].average_precision)


@pytest.mark.parametrize("several", [False, True])
def test_states_merge_exactly_in_any_order(several):
  parts = [state(several=several, clips=20, seed=seed) for seed in range(4)]
  prior = np.full(4, 0.25)
  expected = merged(parts).compute(prior, resamples=50)
  assert expected.clips == 80
  assert merged(parts[::-1]).compute(prior, resamples=50).estimates == expected.estimates
  with pytest.raises(ValueError, match="other classes"):
    parts[0].merge(state(several=not several))


def test_intervals_resample_clips():
  """The interval is that of a plain bootstrap, done here by drawing the clips themselves."""
  one = state(several=False, clips=60)
  found = one.compute(np.full(4, 0.25), resamples=400).estimates
  rng = np.random.default_rng(5)
  drawn = []
  for _ in range(400):
    rows = rng.integers(0, 60, 60)
    drawn.append(reference.roc_auc_score(one.targets[rows], one.scores[rows], average="macro"))
  np.testing.assert_allclose(
    [found["auc_macro"].low, found["auc_macro"].high], np.percentile(drawn, [2.5, 97.5]), atol=0.02
  )
  assert all(one.low <= one.value <= one.high for one in found.values())


def test_no_clips_have_no_scores():
  none = LabelState(
    classes=CLASSES, several=True, keys=(), scores=np.zeros((0, 4)), targets=np.zeros((0, 4), bool)
  ).compute(np.full(4, 0.25))
  assert all(np.isnan(estimate.value) for estimate in none.estimates.values()) and none.counted == 0
