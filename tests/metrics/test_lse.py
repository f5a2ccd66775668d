from __future__ import annotations

import functools

import numpy as np
import pytest

from synclipmae_jax.metrics import lse
from synclipmae_jax.metrics.lse import LseState


def pair(rng, *, windows: int, lag: int, noise: float = 0.3, width: int = 24):
  """Vectors of clips in which the picture of window t + lag belongs to the sound of window t."""
  source = rng.normal(size=(windows + 2 * abs(lag), width)) + 2.0
  audio, lips = source[abs(lag) :][:windows], source[abs(lag) - lag :][:windows]
  return audio, lips + noise * rng.normal(size=lips.shape)


def script(lips, audio, vshift=15):
  """The loop of SyncNetInstance.py in plain Python: (AV offset, min dist, confidence, mdist)."""
  width = len(lips[0])
  padded = [[0.0] * width] * vshift + [list(row) for row in audio] + [[0.0] * width] * vshift
  dists = []
  for i in range(len(lips)):
    shifted = padded[i : i + 2 * vshift + 1]
    dists.append([sum((x - y + 1e-6) ** 2 for x, y in zip(lips[i], row, strict=True)) ** 0.5 for row in shifted])
  mdist = [sum(column) / len(dists) for column in zip(*dists, strict=True)]
  best = min(range(len(mdist)), key=mdist.__getitem__)
  return vshift - best, mdist[best], sorted(mdist)[len(mdist) // 2] - mdist[best], mdist


@pytest.mark.parametrize("windows, lag", [(60, 0), (60, 7), (45, -11), (20, 3), (1, 0)])
def test_syncnet_equals_the_script(windows, lag):
  audio, lips = pair(np.random.default_rng(windows + lag), windows=windows, lag=lag)
  offset, distance, confidence, mdist = script(lips, audio)
  state = LseState.from_syncnet("clip", audio, lips)
  values = state.clips[0].values
  assert values["lse_lag"] == offset
  assert values["lse_d"] == pytest.approx(distance, rel=1e-12)
  assert values["lse_c"] == pytest.approx(confidence, rel=1e-9, abs=1e-12)
  np.testing.assert_allclose(state.clips[0].curve[::-1], mdist, rtol=1e-12)
  assert np.isnan(values["lse_d_masked"]) == (windows < lse.MIN_WINDOWS)


@pytest.mark.parametrize("lag", [-15, -4, 0, 1, 9, 15])
def test_a_positive_lag_means_that_the_video_lags(lag):
  audio, lips = pair(np.random.default_rng(0), windows=70, lag=lag)
  if lag > 0:
    np.testing.assert_allclose(lips[lag:], audio[:-lag], atol=2)  # the picture is `lag` frames after the sound
  syncnet = LseState.from_syncnet("clip", audio, lips).clips[0].values
  stable = LseState.from_stable_syncnet("clip", audio, lips).clips[0].values
  assert syncnet["lse_lag"] == syncnet["lse_lag_masked"] == stable["stable_lse_lag"] == lag


def test_masked_and_stable_against_a_loop():
  rng = np.random.default_rng(1)
  audio, lips = pair(rng, windows=50, lag=4)
  values = {**LseState.from_syncnet("a", audio, lips).clips[0].values}
  values |= LseState.from_stable_syncnet("a", 3 * audio, lips).clips[0].values
  whole = range(15, 50 - 15)
  curve = [np.mean([np.linalg.norm(lips[i] - audio[i - lag] + 1e-6) for i in whole]) for lag in range(-15, 16)]
  assert values["lse_d_masked"] == pytest.approx(min(curve))
  assert values["lse_c_masked"] == pytest.approx(np.median(curve) - min(curve))
  cosine = lambda x, y: x @ y / np.linalg.norm(x) / np.linalg.norm(y)
  cosines = np.array([[cosine(lips[i], audio[i - lag]) for i in whole] for lag in range(-15, 16)])
  curve = np.sqrt(2 - 2 * cosines).mean(axis=1)
  assert values["stable_lse_d"] == pytest.approx(min(curve))
  assert values["stable_lse_c"] == pytest.approx(np.median(curve) - min(curve))
  assert values["stable_lse_cosine"] == pytest.approx(cosines[15 + 4].mean())


def test_zero_padding_biases_the_padded_lag_but_not_the_masked_one():
  """Unrelated unit vectors: the distance to a zero vector is 1, to a mismatch 1.41."""
  rng = np.random.default_rng(2)
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  lags = []
  for i in range(60):
    audio, lips = (unit(rng.normal(size=(50, 64))) for _ in range(2))
    values = LseState.from_syncnet(str(i), audio, lips).clips[0].values
    lags.append((abs(values["lse_lag"]), abs(values["lse_lag_masked"])))
  padded, masked = np.mean(lags, axis=0)
  assert padded > 14 and 5.5 < masked < 10  # 7.74 for uniformly drawn lags


def test_clips_have_equal_weight_and_merge_in_any_order():
  rng = np.random.default_rng(3)
  pairs = {f"clip{i}": pair(rng, windows=20 + 8 * i, lag=i) for i in range(6)}
  states = [LseState.from_syncnet(key, *tokens) for key, tokens in pairs.items()]
  whole = functools.reduce(LseState.merge, states).compute()
  assert functools.reduce(LseState.merge, states[::-1]).compute() == whole
  assert whole["lse_d"].value == pytest.approx(np.mean([state.clips[0].values["lse_d"] for state in states]))
  assert whole["lse_d"].low < whole["lse_d"].value < whole["lse_d"].high
  defined = [state.clips[0].values["lse_c_masked"] for state in states[2:]]  # two have fewer than 31 windows
  assert np.isfinite(defined).all() and whole["lse_c_masked"].value == pytest.approx(np.mean(defined))
  assert np.isnan(LseState(columns=lse.SYNCNET_COLUMNS).compute()["lse_d"].value)


def test_vectors_that_do_not_fit_are_refused():
  rng = np.random.default_rng(4)
  audio, lips = pair(rng, windows=40, lag=0)
  with pytest.raises(ValueError, match=r"clip: audio \(39, 24\) and lips \(40, 24\)"):
    LseState.from_syncnet("clip", audio[1:], lips)
  with pytest.raises(ValueError, match="not finite"):
    LseState.from_stable_syncnet("clip", audio, lips * np.nan)
  with pytest.raises(ValueError, match="cannot be merged"):
    LseState.from_syncnet("clip", audio, lips).merge(LseState.from_stable_syncnet("clip", audio, lips))
