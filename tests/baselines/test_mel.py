import numpy as np
import pytest

from synclipmae_jax.baselines.mel import log_mel

PLAIN = dict(preemphasis=0.0, pad_mode="reflect")
EMPHASISED = dict(preemphasis=0.97, pad_mode="constant")


def tone(frequency, amplitude, samples=6400):
  return (amplitude * np.sin(2 * np.pi * frequency * np.arange(samples) / 16_000)).astype(np.float32)


@pytest.mark.parametrize("options", [PLAIN, EMPHASISED])
def test_columns_and_range(options):
  mel = log_mel(tone(1000, 0.5), **options)
  assert mel.shape == (80, 33) and mel.dtype == np.float32
  np.testing.assert_array_equal(log_mel(np.zeros(6400), **options), -4)
  assert log_mel(1e4 * tone(1000, 1.0), **options).max() == 4


def test_a_tone_is_in_its_band_at_its_level():
  """The centre of the band in Hz, and 8 units per 100 dB."""
  quiet, loud = (log_mel(tone(1000, amplitude), **PLAIN)[:, 10:20].mean(axis=1) for amplitude in (0.005, 0.05))
  edges = np.linspace(55 * 3 / 200, 15 + np.log(7.6) * 27 / np.log(6.4), 82)  # Slaney: linear below 1 kHz
  assert abs(quiet.argmax() - np.abs(edges[1:-1] - 15).argmin()) <= 1
  assert loud.max() - quiet.max() == pytest.approx(8 * 20 / 100, abs=1e-3)


def test_a_column_is_centred_on_its_samples():
  click = np.zeros(6400, np.float32)
  click[200 * 12] = 0.5
  level = log_mel(click, **PLAIN).mean(axis=0)
  assert level.argmax() == 12
  np.testing.assert_allclose(level[9], level[15], atol=1e-4)
  assert (level[[7, 17]] == -4).all()  # its window is 800 samples


def test_pre_emphasis_and_padding():
  wave = tone(300, 0.3)
  plain, zeros = log_mel(wave, **PLAIN), log_mel(wave, **PLAIN | {"pad_mode": "constant"})
  np.testing.assert_array_equal(plain[:, 2:-2], zeros[:, 2:-2])
  assert np.abs(plain[:, 0] - zeros[:, 0]).max() > 0.05
  gain = abs(1 - 0.97 * np.exp(-2j * np.pi * 300 / 16_000))
  peak = plain[:, 16].argmax()
  lowered = log_mel(wave, **EMPHASISED)[peak, 16] - plain[peak, 16]
  assert lowered == pytest.approx(8 * 20 * np.log10(gain) / 100, abs=2e-3)
