"""The motion of a generated mouth against the true one."""

import numpy as np
import pytest

from synclipmae_jax.metrics import dubbing


def face(openings):
  """float [T, 68, 2]: eyes 100 apart, inner lips `openings` apart."""
  points = np.zeros((len(openings), 68, 2))
  points[:, 36, 0], points[:, 45, 0] = -50, 50
  points[:, [61, 62, 63], 1] = -np.array(openings)[:, None] / 2
  points[:, [65, 66, 67], 1] = np.array(openings)[:, None] / 2
  return points


def test_the_distance_is_that_of_the_form_alone():
  true = face([0.0, 10.0, 20.0])
  assert dubbing.mouth_distance(true + np.array([7.0, -3.0]), true) == pytest.approx(0)
  # Six of twenty points are 5 away, in percent of an eye distance of 100.
  assert dubbing.mouth_distance(face([10.0, 20.0, 30.0]), true) == pytest.approx(5 * 6 / 20)
  unknown = true.copy()
  unknown[0] = np.nan
  assert dubbing.mouth_distance(unknown, true) == pytest.approx(0)
  assert np.isnan(dubbing.mouth_distance(np.full_like(true, np.nan), true))


def test_the_opening_follows_or_does_not():
  true = face([0.0, 10.0, 5.0, 20.0])
  np.testing.assert_allclose(dubbing.opening(true), [0, 0.1, 0.05, 0.2])
  assert dubbing.opening_correlation(2 * true, true) == pytest.approx(1)
  assert dubbing.opening_correlation(face([20.0, 10.0, 15.0, 0.0]), true) == pytest.approx(-1)
  assert np.isnan(dubbing.opening_correlation(face([5.0] * 4), true))


def test_drift_is_between_the_ends():
  colours = np.zeros((100, 3))
  colours[:, 1] = np.linspace(0, 9.9, 100)
  assert dubbing.drift(colours, frames=10) == pytest.approx(9.0)
  assert dubbing.drift(np.zeros((5, 3)), frames=17) == 0
  assert np.isnan(dubbing.drift(np.full((5, 3), np.nan), frames=17))


def test_the_gain_compares_errors_in_the_mouth_region():
  truth = np.zeros((1, 2, 4, 4, 3), np.float32)
  mask = np.zeros((1, 4, 4), bool)
  mask[:, 2:] = True
  still, told = truth.copy(), truth.copy()
  still[:, :, :2], still[:, :, 2:], told[:, :, 2:] = 1.0, 0.4, 0.04
  errors = [dubbing.region_error(made, truth, mask)[0] for made in (told, still)]
  assert errors == pytest.approx([0.02**2, 0.2**2], rel=1e-5)  # in pixels of 0..1
  assert dubbing.mouth_gain(*errors) == pytest.approx(20, abs=1e-4)


def test_the_motion_explained_is_that_of_the_changes_in_the_mask():
  rng = np.random.default_rng(0)
  truth = rng.uniform(-1, 1, (2, 5, 8, 8, 3))
  mask = np.zeros((2, 8, 8), bool)
  mask[:, 4:] = True
  explained = lambda found: dubbing.motion_explained(dubbing.motion_errors(found, truth, mask))
  mean = truth.mean(axis=1, keepdims=True)
  outside = np.where(mask[:, None, :, :, None], truth, 0)
  assert explained(outside + 0.3) == pytest.approx(1)  # another colour, and another picture beside the mask
  assert explained(np.broadcast_to(mean, truth.shape)) == pytest.approx(0)
  assert explained(mean + 0.5 * (truth - mean)) == pytest.approx(0.75)
  assert explained(mean - (truth - mean)) == pytest.approx(-3)
  assert np.isnan(dubbing.motion_explained(dubbing.motion_errors(truth, truth[:, :1], mask)))
