"""MFCC against values of python_speech_features (tests/golden/make_mfcc.py)."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synclipmae_jax.baselines.mfcc import int16_scale, mfcc


@pytest.fixture(scope="module")
def golden():
  with np.load(pathlib.Path(__file__).parents[1] / "golden" / "mfcc.npz") as file:
    return dict(file)


def test_equals_the_package(golden):
  found = mfcc(golden["samples"])
  assert found.shape == golden["mfcc"].shape == (1 + -(-(len(golden["samples"]) - 400) // 160), 13)
  np.testing.assert_allclose(found, golden["mfcc"], rtol=1e-9, atol=1e-9)
  assert np.ptp(golden["mfcc"]) > 50  # it contains silence and full scale


def test_less_than_one_window(golden):
  np.testing.assert_allclose(mfcc(golden["samples"][:300]), golden["short"], rtol=1e-9, atol=1e-9)


def test_on_the_device_in_float32(golden):
  samples = golden["samples"].astype(np.float32)
  found = jax.jit(lambda x: mfcc(x, xp=jnp))(np.stack([samples, samples[::-1]]))
  loud = golden["mfcc"][:, 0] > -30  # in silence there is only the floor
  assert 0.5 < loud.mean() < 1
  np.testing.assert_allclose(found[0][loud], golden["mfcc"][loud], atol=2e-2)
  np.testing.assert_allclose(found[1][3], mfcc(samples[::-1])[3], atol=2e-2)


def test_a_waveform_in_the_scale_of_its_file():
  samples = np.array([-32768, -1, 0, 1, 12345, 32767], np.int16)
  np.testing.assert_array_equal(int16_scale(samples.astype(np.float32) / 32768), samples)
  np.testing.assert_array_equal(int16_scale(np.float32([1.0, 1.7, -1.7])), [32767, 32767, -32768])
