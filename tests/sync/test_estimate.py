import numpy as np
import pytest

from synclipmae_jax.data.media.speech import level_db, speech_activity
from synclipmae_jax.metrics.sync import LAGS, MAX_LAG, lag_scores
from synclipmae_jax.sync import estimate as module
from synclipmae_jax.sync.calibration import Calibration
from synclipmae_jax.sync.estimate import BLOCK, NO_LAG, LagScorer, estimate, evidence_of

WIDTH = 12
BELIEVER = Calibration.uncalibrated()


def tokens(frames, lag, *, noise=1.0, seed=0, offset=0.0):
  """(audio, vocal) from one hidden sequence, with the video `lag` frames late and noise on both."""
  rng = np.random.default_rng(seed)
  hidden = rng.normal(size=(frames + 200, WIDTH))
  audio = hidden[100 : 100 + frames] + noise * rng.normal(size=(frames, WIDTH))
  vocal = hidden[100 - lag : 100 - lag + frames] + noise * rng.normal(size=(frames, WIDTH)) + offset
  return audio.astype(np.float32), vocal.astype(np.float32)


def score(audio, vocal, pieces=(1000,)):
  scorer, start = LagScorer(), 0
  while start < len(audio):
    for size in pieces:
      scorer.push(audio[start : start + size], vocal[start : start + size])
      start += size
  return scorer.finish()


@pytest.mark.parametrize("lag", [-12, -1, 0, 7])
def test_finds_the_lag_with_its_sign(lag):
  result = estimate(score(*tokens(150, lag)), BELIEVER)
  assert result.lag == lag
  assert result.interval[0] <= lag <= result.interval[1]
  assert result.confidence > 0.9 and result.synchronizable > 0.9
  known = result.frame_lags != NO_LAG
  assert known.sum() == 150 - 2 * MAX_LAG and (result.frame_lags[known] == lag).mean() > 0.95
  assert np.isfinite(result.frame_scores[known]).all() and np.isnan(result.frame_scores[~known]).all()


def test_scores_are_the_mean_of_two_cosines():
  audio, vocal = tokens(100, 3, offset=4.0)
  rows = score(audio, vocal).scores
  place = lag_scores(audio - audio.mean(0), vocal - vocal.mean(0))  # 100 frames: all frames have the same mean
  motion = lag_scores(np.gradient(audio, axis=0), np.gradient(vocal, axis=0))
  expected = (place + motion) / 2
  np.testing.assert_allclose(rows[MAX_LAG:-MAX_LAG], expected, atol=2e-3)
  assert np.isnan(rows[:MAX_LAG]).all() and np.isnan(rows[-MAX_LAG:]).all()


def test_pieces_of_any_size_give_the_same():
  audio, vocal = tokens(700, -4)
  whole, cut = score(audio, vocal), score(audio, vocal, pieces=(1, 130, 64, 7))
  np.testing.assert_array_equal(whole.scores, cut.scores)
  np.testing.assert_allclose(whole.wide_sum, cut.wide_sum, atol=1e-4)
  np.testing.assert_array_equal(whole.wide_count, cut.wide_count)
  assert len(whole.wide_sum) == -(-700 // BLOCK)


def test_a_long_stream_keeps_only_a_window():
  scorer = LagScorer()
  for part in range(40):
    scorer.push(*tokens(128, 0, seed=part))
  assert len(scorer._raw._held) < 600 and len(scorer._compared._held) < 600


def test_a_constant_part_does_not_hide_the_lag():
  audio, vocal = tokens(150, 5, offset=30.0)
  assert estimate(score(audio, vocal), BELIEVER).lag == 5


def test_foreign_sound_and_still_mouths_are_rejected():
  audio, _ = tokens(150, 0)
  _, other = tokens(150, 0, seed=9)
  stranger = estimate(score(audio, other), BELIEVER)
  still = estimate(score(audio, np.ones_like(audio)), BELIEVER)
  assert stranger.synchronizable < 0.5 and stranger.confidence < 0.5
  assert still.synchronizable < 0.1 and still.peak == 0


def test_frames_without_a_face_are_ignored():
  audio, vocal = tokens(300, 4)
  vocal[100:160] = np.nan
  scores = score(audio, vocal)
  assert np.isnan(scores.scores[100 - MAX_LAG + 4 : 160]).all()
  assert scores.wide_count[:, module.WIDE].sum() == 240
  assert estimate(scores, BELIEVER).lag == 4
  nothing = estimate(score(audio, np.full_like(vocal, np.nan)), BELIEVER)
  assert nothing.lag is None and nothing.confidence == 0


@pytest.mark.parametrize("frames", [0, 1, 3, 30])
def test_too_few_frames_have_no_lag(frames):
  result = estimate(score(*tokens(frames, 0)), BELIEVER)
  assert result.lag is None and result.interval is None and result.synchronizable == 0
  assert len(result.frame_lags) == frames and len(result.curve) == len(LAGS)


def test_thirty_one_frames_are_enough_to_try():
  assert evidence_of(score(*tokens(31, 0, noise=0.1))) is not None


def test_far_lags_of_few_frames_do_not_win_by_chance():
  foreign = [score(tokens(36, 0, seed=seed)[0], tokens(36, 0, seed=seed + 400)[1]) for seed in range(200)]
  lags = np.array([estimate(scores, BELIEVER).lag for scores in foreign])
  means = np.array([np.argmax(estimate(scores, BELIEVER).curve) - MAX_LAG for scores in foreign])
  far, far_by_means = (np.mean(np.abs(each) >= 11) for each in (lags, means))  # 10 of the 31 lags
  assert abs(far - 10 / 31) < 0.06 < far_by_means - far


def test_drift_is_the_slope_of_the_lag():
  rng = np.random.default_rng(3)
  frames, per_frame = 3000, 8 / 3000  # 8 frames late at the end: 320 ms in 2 minutes
  hidden = rng.normal(size=(frames + 100, WIDTH)).astype(np.float32)
  shown = np.round(np.arange(frames) * (1 - per_frame)).astype(int)
  result = estimate(score(hidden[:frames], hidden[shown]), BELIEVER)
  assert result.drift_ms_per_min == pytest.approx(160, rel=0.15)
  steady = estimate(score(*tokens(1500, 2)), BELIEVER)
  assert abs(steady.drift_ms_per_min) < 5
  assert estimate(score(*tokens(150, 2)), BELIEVER).drift_ms_per_min is None


def test_tokens_of_two_shapes_are_refused():
  with pytest.raises(ValueError, match="must both be"):
    LagScorer().push(np.zeros((3, 4)), np.zeros((4, 4)))


def test_level_and_speech():
  loud = 0.3 * np.random.default_rng(0).normal(size=640 * 20)
  waveform = np.concatenate([loud, 1e-4 * loud, loud, np.zeros(640 * 5)])
  level = level_db(waveform)
  assert level[0] == pytest.approx(20 * np.log10(0.3), abs=1) and level[-1] == pytest.approx(-120)
  assert speech_activity(level).tolist() == [True] * 20 + [False] * 20 + [True] * 20 + [False] * 5
  assert not speech_activity(np.full(10, -70.0)).any() and not len(speech_activity(np.zeros(0)))
