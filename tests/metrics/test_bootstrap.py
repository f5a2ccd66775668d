from __future__ import annotations

import numpy as np
import pytest

from synclipmae_jax.metrics.bootstrap import clip_bootstrap


def test_interval_covers_the_mean_in_about_95_percent():
  rng = np.random.default_rng(0)
  values = rng.exponential(size=(40, 400))  # 400 experiments of 40 clips, true mean 1
  covered = [e.low <= 1.0 <= e.high for e in clip_bootstrap(values)]
  assert 0.87 < np.mean(covered) < 0.97


def test_interval_matches_the_normal_approximation():
  values = np.random.default_rng(1).normal(size=(400, 1))
  (e,) = clip_bootstrap(values)
  error = values.std() / np.sqrt(400)
  assert e.value == pytest.approx(values.mean())
  assert (e.low, e.high) == pytest.approx((e.value - 1.96 * error, e.value + 1.96 * error), abs=0.3 * error)


def test_weights_give_the_mean_over_queries_and_ignore_undefined_clips():
  values = np.array([[0.0, 1.0], [1.0, np.nan], [1.0, 0.0]])
  weights = np.array([[1.0, 3.0], [3.0, 0.0], [0.0, 1.0]])
  first, second = clip_bootstrap(values, weights)
  assert first.value == 0.75 and second.value == 0.75
  assert 0 <= first.low <= 0.75 <= first.high <= 1 and 0 <= second.low <= 0.75 <= second.high <= 1


def test_the_seed_is_fixed_and_undefined_values_are_nan():
  values = np.random.default_rng(2).normal(size=(10, 2))
  assert clip_bootstrap(values) == clip_bootstrap(values)
  assert clip_bootstrap(values) != clip_bootstrap(values, seed=1)
  assert np.isnan(clip_bootstrap(np.empty((0, 1)))[0].value)
  (one,) = clip_bootstrap(np.array([[2.0]]))
  assert one.value == 2.0 and np.isnan(one.low)
  (none,) = clip_bootstrap(np.array([[np.nan], [np.nan]]), np.zeros((2, 1)))
  assert np.isnan(none.value) and np.isnan(none.high)
