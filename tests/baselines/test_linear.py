from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from synclipmae_jax.baselines import linear
from synclipmae_jax.metrics.retrieval import RetrievalState
from synclipmae_jax.metrics.sync import ClipTokens, LagState
from synclipmae_jax.types import EvalClip


def talking_bars(rng, *, frames: int = 80, lag: int = 0, size: int = 32, landmarks: bool = True) -> EvalClip:
  """Four tones. The grey of a bar of the mouth is the logarithm of the amplitude of a tone. The background is noise."""
  level = rng.uniform(-1.5, 1.5, size=(frames + 2 * abs(lag), 4))
  heard, seen = level[abs(lag) :][:frames], level[abs(lag) - lag :][:frames]
  pictures = rng.integers(0, 255, size=(frames, size, size, 3))
  bars = np.repeat(120 + 40 * seen, 3, axis=1)[:, None, :, None]
  pictures[:, 18:28, 10:22] = bars + rng.normal(0, 4, size=(frames, 10, 12, 1))
  time = np.arange(640 * frames) / 16000
  tones = np.sin(2 * np.pi * np.array([300, 900, 2000, 4500]) * time[:, None])
  wave = (0.05 * np.repeat(np.exp(heard), 640, axis=0) * tones).sum(axis=1)
  mouth = np.array([10, 18, 22, 28]) / size if landmarks else np.full(4, -1.0)
  return EvalClip(
    key=f"bars{rng.integers(1 << 30)}",
    corpus="bars",
    identity="bars",
    frames=np.clip(pictures, 0, 255).astype(np.uint8),
    waveform=wave.astype(np.float32),
    face_box=np.tile(np.float32([0.2, 0.2, 0.8, 0.9]), (frames, 1)),
    mouth_box=np.tile(np.float32(mouth), (frames, 1)),
    lag=lag,
    truth=np.concatenate([seen, rng.normal(size=(frames, 1))], axis=1).astype(np.float32),
    truth_names=("mouth/jaw", "mouth/width", "mouth/teeth", "mouth/rounding", "ambient/yaw"),
  )


def score(tokens_of, clip: EvalClip) -> dict[str, float]:
  audio, vocal = tokens_of(clip)
  state = LagState.from_clip(ClipTokens(key=clip.key, audio=audio, vocal=vocal, lag=clip.lag))
  return {name: e.value for name, e in state.compute().items()}


def test_cca_recovers_planted_canonical_correlations():
  rng = np.random.default_rng(0)
  shared, own_x, own_y = rng.normal(size=(20000, 2)), rng.normal(size=(20000, 4)), rng.normal(size=(20000, 5))
  x, y = np.concatenate([shared, own_x[:, 2:]], 1), np.concatenate([shared, own_y[:, 2:]], 1)
  x[:, :2] += np.array([0.5, 1.0]) * own_x[:, :2]
  y[:, :2] += np.array([0.5, 1.0]) * own_y[:, :2]
  cca = linear.fit_cca(x @ rng.normal(size=(4, 4)), y @ rng.normal(size=(5, 5)), ridge=1e-9)
  np.testing.assert_allclose(cca.correlations, [1 / 1.25, 1 / 2, 0, 0], atol=0.02)


def test_cca_columns_are_paired_uncorrelated_and_scaled_by_their_correlation():
  rng = np.random.default_rng(1)
  x = rng.normal(size=(5000, 6)) @ rng.normal(size=(6, 6))
  y = x @ rng.normal(size=(6, 4)) + 2 * rng.normal(size=(5000, 4))
  x, y = x - x.mean(axis=0), y - y.mean(axis=0)
  cca = linear.fit_cca(x, y, ridge=1e-9)
  u, v = x @ cca.x_weights, y @ cca.y_weights
  np.testing.assert_allclose(u.T @ u / len(u), np.diag(cca.correlations**2), atol=1e-5)
  np.testing.assert_allclose(u.T @ v / len(u), np.diag(cca.correlations**3), atol=1e-5)


def test_cca_survives_constant_columns():
  x = np.zeros((50, 3))
  assert np.isfinite(linear.fit_cca(x, np.random.default_rng(2).normal(size=(50, 2))).x_weights).all()


def test_log_mel_is_centred_on_the_frame_and_independent_of_level():
  wave = np.zeros(640 * 20, np.float32)
  wave[640 * 7 + 320] = 0.5  # the middle of frame 7
  mel = linear.log_mel(wave, 20)
  assert mel.shape == (20, linear.MELS)
  assert mel.sum(axis=1).argmax() == 7
  np.testing.assert_allclose(mel[6], mel[8], atol=1e-6)
  np.testing.assert_allclose(linear.log_mel(wave / 10, 20), mel, atol=1e-6)
  assert np.isfinite(linear.log_mel(np.zeros(640 * 5), 5)).all()


def test_crop_averages_the_area_it_covers():
  clip = talking_bars(np.random.default_rng(3))
  gradient = np.broadcast_to(np.arange(32, dtype=np.uint8)[:, None, None] * 8, (80, 32, 32, 3)).copy()
  gradient[1::2] = 0  # makes the mean of the clip known
  pixels = linear.mouth_pixels(dataclasses.replace(clip, frames=gradient)).reshape(80, 24, 24)
  x, y, side = linear.mouth_region(clip)
  assert (x, y, side) == pytest.approx((16, 23, 18))  # 1.5 x the longer side of 12 x 10 pixels, before clipping
  top = 32 - 18
  centres = top + 18 * (np.arange(24) + 0.5) / 24 - 0.5
  np.testing.assert_allclose(2 * pixels[0, :, 5] * 255, 8 * centres, atol=4.1)
  np.testing.assert_allclose(pixels[0, :, 5], pixels[0, :, 19], atol=1e-12)
  weights = linear.area_weights(16.0, 12.0, 32, cells=linear.CROP)
  np.testing.assert_allclose(weights.sum(axis=1), 1)
  assert np.flatnonzero(weights.sum(axis=0)).tolist() == list(range(10, 22))


def test_face_prior_replaces_an_unknown_mouth():
  clip = talking_bars(np.random.default_rng(4), landmarks=False)
  x, y, side = linear.mouth_region(clip)
  assert (x, y, side) == pytest.approx((0.5 * 32, (0.2 + 0.78 * 0.7) * 32, 0.5 * 0.6 * 32), rel=1e-5)


@pytest.mark.parametrize("landmarks", [True, False])
def test_planted_linear_relation_is_recovered_on_unseen_clips(landmarks):
  rng = np.random.default_rng(5)
  fits = linear.fit_linear(talking_bars(rng, landmarks=landmarks) for _ in range(12))
  assert fits.pixels.correlations[0] > 0.8
  for lag in (0, 6, -9):
    found = score(fits.pixels, talking_bars(rng, lag=lag, landmarks=landmarks))
    assert found["acc/k1"] > 0.35 and found["acc/k5"] > 0.95 and found["offset/k15"] < 0.1
    assert score(fits.parameters, talking_bars(rng, lag=lag))["acc/k5"] > 0.95
  assert fits.parameters.video_weights.shape == (4, 4)  # the ambient column is excluded


def test_training_clips_are_paired_by_their_true_lag():
  rng = np.random.default_rng(6)
  fits = linear.fit_linear([talking_bars(rng, lag=lag) for lag in (5, -5) * 6])
  assert score(fits.pixels, talking_bars(rng))["acc/k5"] > 0.95


def test_unrelated_sound_scores_chance():
  rng = np.random.default_rng(7)
  dubbed = [dataclasses.replace(talking_bars(rng), waveform=talking_bars(rng).waveform) for _ in range(30)]
  fits = linear.fit_linear(dubbed[:10])
  lags, pairs = LagState(), RetrievalState()
  for clip in dubbed[10:]:
    audio, vocal = fits.pixels(clip)
    tokens = ClipTokens(key=clip.key, audio=audio, vocal=vocal)
    lags, pairs = lags.merge(LagState.from_clip(tokens)), pairs.merge(RetrievalState.from_clip(tokens))
  assert lags.compute()["acc/k1"].value == pytest.approx(3 / 31, abs=0.03)
  assert pairs.compute()["r_precision/top1"].value == pytest.approx(1 / 32, abs=0.02)


def test_without_truth_there_is_no_ceiling_and_without_clips_no_fit():
  rng = np.random.default_rng(8)
  real = [dataclasses.replace(talking_bars(rng), truth=None, truth_names=(), lag=None) for _ in range(3)]
  fits = linear.fit_linear(real)
  assert fits.parameters is None and fits.pixels is not None
  assert linear.fit_linear([]) is None
  known = linear.fit_linear([talking_bars(rng) for _ in range(3)])
  with pytest.raises(ValueError, match="no true mouth parameters"):
    known.parameters(real[0])
