from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from synclipmae_jax.metrics import sync
from synclipmae_jax.metrics.sync import ClipTokens, LagState


def shifted_pair(rng, *, frames: int, lag: int, noise: float = 0.0, width: int = 16) -> ClipTokens:
  """A clip whose video token of audio time t is at t + lag."""
  source = rng.normal(size=(frames + 2 * abs(lag), width))
  audio, vocal = source[abs(lag) :][:frames], source[abs(lag) - lag :][:frames]
  vocal = vocal + noise * rng.normal(size=vocal.shape)
  return ClipTokens(key=f"lag{lag:+d}", audio=audio, vocal=vocal, lag=lag)


def random_pair(rng, *, frames: int, lag: int = 0, key: str = "random") -> ClipTokens:
  return ClipTokens(key=key, audio=rng.normal(size=(frames, 32)), vocal=rng.normal(size=(frames, 32)), lag=lag)


def values(clip: ClipTokens) -> dict[str, float]:
  return {name: e.value for name, e in LagState.from_clip(clip).compute().items()}


@pytest.mark.parametrize("lag", [-15, -7, -1, 0, 1, 5, 15])
def test_planted_lag_is_found_with_its_sign(lag):
  clip = shifted_pair(np.random.default_rng(0), frames=80, lag=lag)
  assert sync.LAGS[sync.lag_scores(clip.audio, clip.vocal).mean(axis=0).argmax()] == lag
  found = values(clip)
  assert all(found[name] == (1.0 if "acc" in name else 0.0) for name in sync.COLUMNS)


def test_positive_lag_means_the_video_lags():
  audio = np.eye(60)
  vocal = np.roll(np.eye(60), 5, axis=0)  # the picture of the sound of frame t is in frame t + 5
  scores = sync.lag_scores(audio, vocal)
  assert (sync.LAGS[scores.argmax(axis=1)] == 5).all()


def test_tolerance_is_one_frame_and_offset_counts_frames():
  rng = np.random.default_rng(1)
  clip = shifted_pair(rng, frames=90, lag=4)
  for claimed, acc in [(3, 1.0), (5, 1.0), (2, 0.0), (-4, 0.0)]:
    found = values(dataclasses.replace(clip, lag=claimed))
    for k in sync.WINDOWS:
      assert found[f"acc/k{k}"] == acc
      assert found[f"offset/k{k}"] == abs(4 - claimed)


def test_equals_a_brute_force_of_the_definition():
  rng = np.random.default_rng(2)
  clip = shifted_pair(rng, frames=75, lag=-3, noise=6.0)
  frames = range(15, 75 - 15)

  def cosine(x, y):
    return float(np.dot(x, y) / (np.sqrt(np.dot(x, x)) * np.sqrt(np.dot(y, y))))

  score = {t: [cosine(clip.audio[t], clip.vocal[t + lag]) for lag in range(-15, 16)] for t in frames}
  found = values(clip)
  for k in (1, 5, 15):
    correct, error = [], []
    for t in frames:
      near = [score[u] for u in range(t - k // 2, t + k // 2 + 1) if u in score]
      row = [sum(column) / len(near) for column in zip(*near, strict=True)]
      predicted = max(range(31), key=row.__getitem__) - 15
      correct.append(abs(predicted + 3) <= 1)
      error.append(abs(predicted + 3))
    assert 0 < np.mean(correct) < 1
    assert found[f"acc/k{k}"] == pytest.approx(np.mean(correct), abs=1e-12)
    assert found[f"offset/k{k}"] == pytest.approx(np.mean(error), abs=1e-12)


def test_random_tokens_score_chance_without_edge_bias():
  """Zero padding would bias the lags towards the edges (Acc 6 %, Offset 10). Scoring valid frames only does not."""
  rng = np.random.default_rng(3)
  clips = [random_pair(rng, frames=60, key=f"{i:03d}") for i in range(150)]
  state = functools.reduce(LagState.merge, map(LagState.from_clip, clips))
  estimates, chance = state.compute(), state.chance()
  for k in sync.WINDOWS:
    assert estimates[f"acc/k{k}"].value == pytest.approx(chance[f"acc/k{k}"], abs=0.025)
    assert estimates[f"offset/k{k}"].value == pytest.approx(chance[f"offset/k{k}"], abs=0.35)
  predicted = np.concatenate([sync.lag_scores(c.audio, c.vocal).argmax(axis=1) for c in clips])
  histogram = np.bincount(predicted, minlength=31) / len(predicted)
  assert histogram.min() > 0.5 / 31 and histogram.max() < 1.6 / 31


def test_chance_is_computed_for_the_true_lags():
  assert sync.chance(0) == pytest.approx((3 / 31, 240 / 31))
  assert sync.chance(15)[0] == pytest.approx(2 / 31)
  drawn = [sync.chance(lag) for lag in range(-10, 11)]
  assert np.mean(drawn, axis=0) == pytest.approx((3 / 31, 8.92), abs=5e-3)
  rng = np.random.default_rng(4)
  state = functools.reduce(
    LagState.merge, (LagState.from_clip(random_pair(rng, frames=50, lag=lag)) for lag in (-10, 0, 0, 7))
  )
  assert state.chance()["offset/k5"] == pytest.approx(np.mean([sync.chance(lag)[1] for lag in (-10, 0, 0, 7)]))


def test_constant_tokens_score_exactly_chance():
  """All lags of a collapsed model tie. The order of the lags must not decide."""
  collapsed = ClipTokens(key="c", audio=np.ones((80, 8)), vocal=np.full((80, 8), 0.3, np.float32), lag=2)
  found, chance = values(collapsed), LagState.from_clip(collapsed).chance()
  assert found == pytest.approx(chance)


def test_smoothing_window_is_centred_and_truncated():
  scores = np.random.default_rng(5).normal(size=(20, 31))
  smoothed = sync.smooth(scores, 5)
  assert smoothed[0] == pytest.approx(scores[:3].mean(axis=0))
  assert smoothed[10] == pytest.approx(scores[8:13].mean(axis=0))
  assert smoothed[-1] == pytest.approx(scores[-3:].mean(axis=0))
  np.testing.assert_allclose(sync.smooth(scores, 1), scores, atol=1e-12)


def test_merging_unequal_shares_in_any_order_equals_the_whole():
  rng = np.random.default_rng(6)
  clips = [
    dataclasses.replace(shifted_pair(rng, frames=50 + 7 * i, lag=i % 4, noise=4.0), key=f"clip{i}") for i in range(9)
  ]
  states = [LagState.from_clip(clip) for clip in clips]
  whole = functools.reduce(LagState.merge, states)
  shares = [functools.reduce(LagState.merge, share) for share in (states[6:], states[:1], states[1:6])]
  assert functools.reduce(LagState.merge, shares).compute() == whole.compute()
  accs = [values(clip)["acc/k1"] for clip in clips]
  assert whole.compute()["acc/k1"].value == pytest.approx(np.mean(accs))  # equal weight per clip, not per frame


def test_no_clips_and_one_clip():
  empty = LagState()
  assert all(np.isnan(e.value) for e in empty.compute().values())
  assert all(np.isnan(level) for level in empty.chance().values())
  one = LagState.from_clip(shifted_pair(np.random.default_rng(7), frames=60, lag=1)).compute()["acc/k1"]
  assert one.value == 1.0 and np.isnan(one.low) and np.isnan(one.high)


def test_bad_tokens_are_refused_by_name():
  good = np.ones((50, 4))
  with pytest.raises(ValueError, match="clip7.*\\[T, D\\]"):
    ClipTokens(key="clip7", audio=good, vocal=good[:-1])
  bad = good.copy()
  bad[3, 1] = np.nan
  with pytest.raises(ValueError, match="clip7.*not finite"):
    ClipTokens(key="clip7", audio=good, vocal=bad)
  with pytest.raises(ValueError, match="too few"):
    sync.lag_scores(good[:30], good[:30])


def test_the_distance_is_that_of_the_vectors_without_normalisation():
  rng = np.random.default_rng(8)
  audio, vocal = rng.normal(size=(50, 6)), rng.normal(size=(50, 6)) * rng.uniform(0.1, 10, size=(50, 1))
  scores = sync.lag_scores(audio, vocal, "l2")
  for row, lag in ((0, -15), (3, 0), (19, 15)):
    assert scores[row, lag + 15] == pytest.approx(-np.sqrt(((audio[row + 15] - vocal[row + 15 + lag]) ** 2).sum()))
  clip = ClipTokens(key="c", audio=audio, vocal=vocal, lag=2, similarity="l2")
  by_scores = {name: e.value for name, e in LagState.from_scores("c", scores, 2).compute().items()}
  assert values(clip) == by_scores != values(dataclasses.replace(clip, similarity="cosine"))


def test_a_function_of_pairs_scores_the_same_pairs():
  rng = np.random.default_rng(9)
  audio, vocal = rng.normal(size=(48, 6)), rng.normal(size=(48, 6))
  asked = sync.pair_lag_scores(audio[:, None], vocal[:, None, None], lambda a, v: (a[:, 0] * v[:, 0, 0]).sum(axis=1))
  norm = lambda x: np.linalg.norm(x, axis=1)
  lags = np.arange(31)
  rows = np.arange(18)[:, None]
  np.testing.assert_allclose(
    asked / (norm(audio)[rows + 15] * norm(vocal)[rows + lags]), sync.lag_scores(audio, vocal), atol=1e-12
  )
  with pytest.raises(ValueError, match=r"both be \[T, \.\.\.\]"):
    ClipTokens(key="c", audio=audio[:, None], vocal=vocal[:-1], similarity="pairs")
  with pytest.raises(ValueError, match="unknown similarity 'l1'"):
    ClipTokens(key="c", audio=audio, vocal=vocal, similarity="l1")
  with pytest.raises(ValueError, match="must be finite"):
    LagState.from_scores("c", np.full((4, 31), np.nan), 0)
