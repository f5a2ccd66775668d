import numpy as np
import pytest

from synclipmae_jax.metrics.image_quality import MAX_PSNR, WHOLE, picture_scores


def picture(seed=0):
  return np.random.default_rng(seed).random((32, 32, 3))


def test_scores_are_those_of_their_formula_and_of_scikit_image():
  metrics = pytest.importorskip("skimage.metrics")
  true = picture()
  made = np.clip(true + np.random.default_rng(1).normal(0, 0.1, true.shape), 0, 1)
  psnr, ssim = picture_scores(made, true, {"all": WHOLE})["all"]
  assert psnr == pytest.approx(metrics.peak_signal_noise_ratio(true, made, data_range=1))
  options = dict(channel_axis=-1, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
  assert ssim == pytest.approx(metrics.structural_similarity(true, made, **options), abs=0.02)  # it leaves out the rim
  assert picture_scores(true, true, {"all": WHOLE})["all"] == (MAX_PSNR, pytest.approx(1))


def test_only_the_region_counts():
  true = picture()
  made = true.copy()
  made[:16] = 1 - made[:16]  # the upper half
  found = picture_scores(made, true, {"low": (0, 0.75, 1, 1), "high": (0, 0, 1, 0.25), "none": (-1, -1, -1, -1)})
  assert found["low"] == (MAX_PSNR, pytest.approx(1)) and found["high"][0] < 10 and found["high"][1] < 0.1
  assert np.isnan(found["none"]).all()
