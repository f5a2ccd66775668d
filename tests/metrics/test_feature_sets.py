"""FID, FVD and KID against closed forms, scipy and each other's definitions."""

import numpy as np
import pytest

from synclipmae_jax.metrics.feature_sets import FeatureState, VideoFeatures, frechet_distance, kernel_distance


def with_moments(rng, count, mean, covariance):
  """Exactly this mean and covariance."""
  x = rng.normal(size=(count, len(mean)))
  x -= x.mean(axis=0)
  whitened = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T)).T)
  return whitened @ np.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_gaussians_has_its_closed_form():
  """With commuting covariances it is |m1 - m2|^2 + sum (s1 - s2)^2 of the deviations."""
  rng = np.random.default_rng(0)
  turn, _ = np.linalg.qr(rng.normal(size=(4, 4)))
  first, second = np.array([1.0, 2.0, 3.0, 0.5]), np.array([2.0, 1.0, 3.0, 1.5])
  of = lambda deviations, mean: with_moments(rng, 50, mean, turn * deviations**2 @ turn.T)
  a, b = of(first, np.zeros(4)), of(second, np.array([1.0, 0, 0, 2]))
  assert frechet_distance(a, b) == pytest.approx(5 + 1 + 1 + 0 + 1)
  assert frechet_distance(b, a) == pytest.approx(8)


@pytest.mark.parametrize(("n", "m"), [(60, 40), (7, 5), (7, 60)])
def test_frechet_distance_is_that_of_the_root_of_the_product(n, m):
  """Also where there are fewer examples than features."""
  from scipy.linalg import sqrtm

  rng = np.random.default_rng(1)
  a, b = rng.normal(size=(n, 10)), rng.normal(size=(m, 10)) * 2 + 1
  root = sqrtm(np.cov(a.T) @ np.cov(b.T))
  expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root.real)
  assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)
  assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_kid_is_unbiased_and_sees_a_difference():
  rng = np.random.default_rng(2)
  draw = lambda count, shift: rng.normal(size=(count, 16)) + shift
  same, _ = kernel_distance(draw(1000, 0), draw(1000, 0), size=100)
  other, deviation = kernel_distance(draw(1000, 0), draw(1000, 0.5), size=100)
  assert abs(same) < 0.02 < 0.2 < other and deviation > 0
  # Over many small sets of one distribution the mean is zero, where a biased estimate is far above.
  small = [kernel_distance(draw(5, 0), draw(5, 0))[0] for _ in range(500)]
  assert abs(np.mean(small)) < 4 * np.std(small) / np.sqrt(len(small)) < 0.2


def test_kid_of_two_pairs_by_hand():
  a, b = np.array([[1.0], [2.0]]), np.array([[0.0], [3.0]])
  within = (1 * 2 + 1) ** 3 + (0 * 3 + 1) ** 3
  across = np.mean([1, (1 * 3 + 1) ** 3, 1, (2 * 3 + 1) ** 3])
  assert kernel_distance(a, b) == (pytest.approx(within - 2 * across), 0)


def state(*videos):
  return FeatureState(videos=tuple(VideoFeatures(key=key, times=times, features=x) for key, times, x in videos))


def test_merged_states_are_the_whole_and_only_shared_examples_count():
  rng = np.random.default_rng(3)
  a, b = ((name, np.arange(20), rng.normal(size=(20, 4)).astype(np.float32)) for name in "ab")
  short = ("b", np.arange(10, 30), b[2])
  whole, other = state(a, b), state(short, a)
  for merged in (state(a).merge(state(b)), state(b).merge(state(a))):
    assert np.array_equal(merged.shared_with(other), whole.shared_with(other))
  assert len(whole.shared_with(other)) == len(other.shared_with(whole)) == 30
  assert np.array_equal(whole.shared_with(state(short)), b[2][10:])
  assert not len(whole.shared_with(state()))


def test_one_example_has_no_distance():
  for distance in (frechet_distance, kernel_distance):
    with pytest.raises(ValueError, match="two examples"):
      distance(np.zeros((1, 3)), np.zeros((5, 3)))
