from __future__ import annotations

import functools

import numpy as np
import pytest

from synclipmae_jax.metrics import retrieval
from synclipmae_jax.metrics.retrieval import RetrievalState, expected_hits
from synclipmae_jax.metrics.sync import ClipTokens


def state_of(clips) -> RetrievalState:
  return functools.reduce(RetrievalState.merge, map(RetrievalState.from_clip, clips))


def pairs(rng, *, clips: int, frames=60, width: int = 24, noise: float = 0.0, lag: int = 0) -> list[ClipTokens]:
  result = []
  for i in range(clips):
    source = rng.normal(size=(frames + abs(lag), width))
    audio, vocal = source[abs(lag) * (lag > 0) :][:frames], source[abs(lag) * (lag < 0) :][:frames]
    vocal = vocal + noise * rng.normal(size=vocal.shape)
    result.append(ClipTokens(key=f"clip{i:03d}", audio=audio, vocal=vocal, lag=lag))
  return result


def test_expected_hits_over_tie_breaking_order():
  own = np.zeros(5)
  others = np.full((5, 31), -1.0)
  others[1, 0] = 1.0  # one better
  others[2, 0] = 0.0  # one equal: rank 1 or 2
  others[3, :2] = [1.0, 0.0]  # one better, one equal: rank 2 or 3
  others[4] = 0.0  # all equal: rank uniform in 1..32
  expected = [[1, 1, 1], [0, 1, 1], [0.5, 1, 1], [0, 0.5, 1], [1 / 32, 2 / 32, 3 / 32]]
  np.testing.assert_allclose(expected_hits(own, others), expected)


@pytest.mark.parametrize("lag", [0, 4, -6])
def test_perfect_tokens_hit_at_their_true_lag_and_only_there(lag):
  rng = np.random.default_rng(0)
  clips = pairs(rng, clips=34, lag=lag)
  found = state_of(clips).compute()
  assert all(e.value == 1.0 for e in found.values())
  if lag:
    wrong = state_of([ClipTokens(key=c.key, audio=c.audio, vocal=c.vocal, lag=-lag) for c in clips]).compute()
    assert wrong["r_precision/top1"].value < 0.1


def test_random_and_constant_tokens_score_chance():
  rng = np.random.default_rng(1)
  noise = [
    ClipTokens(key=f"{i:03d}", audio=rng.normal(size=(60, 16)), vocal=rng.normal(size=(60, 16))) for i in range(120)
  ]
  for name, e in state_of(noise).compute().items():
    assert e.value == pytest.approx(retrieval.CHANCE[name], abs=0.012)
    assert e.low - 0.004 < retrieval.CHANCE[name] < e.high + 0.004
  constant = [ClipTokens(key=f"{i:03d}", audio=np.ones((40, 4)), vocal=np.ones((40, 4))) for i in range(33)]
  for name, e in state_of(constant).compute().items():
    assert e.value == pytest.approx(retrieval.CHANCE[name])


def test_samplers_tell_identity_from_speech():
  """Tokens that encode only the clip: always right among other clips, chance within a clip, in between when mixed."""
  rng = np.random.default_rng(2)
  clips = []
  for i in range(40):
    who = np.repeat(rng.normal(size=(1, 32)), 50, axis=0)
    clips.append(ClipTokens(key=f"{i:02d}", audio=who, vocal=who + 1e-3 * rng.normal(size=who.shape)))
  found = {name: e.value for name, e in state_of(clips).compute().items()}
  assert found["r_precision/top1"] == 1.0
  assert found["r_precision_within/top1"] == pytest.approx(1 / 32, abs=0.02)
  assert found["r_precision_mixed/top1"] == pytest.approx(1 / 16, abs=0.03)


def test_equals_a_brute_force_on_the_same_distribution():
  """Hit rates of independent sampling in a plain loop agree within the sampling noise."""
  rng = np.random.default_rng(3)
  clips = pairs(rng, clips=36, noise=2.5, width=12)
  found = state_of(clips).compute()["r_precision/top2"].value
  hits = []
  for i, clip in enumerate(clips):
    for t in range(clip.frames):
      others = rng.choice([j for j in range(len(clips)) if j != i], size=31, replace=False)
      pool = [clip.vocal[t]] + [clips[j].vocal[rng.integers(clips[j].frames)] for j in others]
      cosines = [v @ clip.audio[t] / np.linalg.norm(v) for v in pool]
      hits.append(sum(c > cosines[0] for c in cosines[1:]) < 2)
  assert 0.1 < found < 0.9
  assert found == pytest.approx(np.mean(hits), abs=0.03)


def test_pools_never_contain_the_own_clip_or_near_frames():
  rng = np.random.default_rng(4)
  lengths = np.array([40, 55, 70] * 12)
  starts = np.cumsum(lengths) - lengths
  rows = retrieval._other_clips(rng, 200, 7, lengths, starts)
  owners = np.searchsorted(starts, rows, side="right") - 1
  assert rows.shape == (200, 31) and (owners != 7).all()
  assert all(len(set(row)) == 31 for row in owners)
  partners = np.arange(50)
  frames = retrieval._other_frames(rng, partners, 50)
  assert np.abs(frames - partners[:, None]).min() == 3 and all(len(set(row)) == 31 for row in frames)


def test_the_seed_is_fixed_and_the_order_of_merging_has_no_effect():
  clips = pairs(np.random.default_rng(5), clips=33, noise=3.0)
  whole = state_of(clips).compute()
  shuffled = state_of([clips[i] for i in np.random.default_rng(6).permutation(len(clips))]).compute()
  assert whole == shuffled
  assert state_of(clips).compute(seed=1)["r_precision/top1"] != whole["r_precision/top1"]


def test_all_queries_have_equal_weight():
  rng = np.random.default_rng(7)
  short = ClipTokens(key="a", audio=np.ones((40, 8)), vocal=np.ones((40, 8)))  # constant: within-clip chance
  source = rng.normal(size=(160, 8))
  long = ClipTokens(key="b", audio=source, vocal=source)  # perfect
  within = state_of([short, long]).compute()["r_precision_within/top1"].value
  assert within == pytest.approx((40 / 32 + 160) / 200)


def test_few_clips_give_a_note_and_a_single_clip_is_not_defined():
  rng = np.random.default_rng(8)
  few = state_of(pairs(rng, clips=5))
  assert "only 5 clips" in few.pool_note and "replacement" in few.pool_note
  assert few.compute()["r_precision/top1"].value > 0.99
  one = state_of(pairs(rng, clips=1))
  assert "not defined" in one.pool_note
  found = one.compute()
  assert np.isnan(found["r_precision/top1"].value) and np.isnan(found["r_precision_mixed/top1"].value)
  assert found["r_precision_within/top1"].value == 1.0
  assert state_of(pairs(rng, clips=32)).pool_note is None
  assert all(np.isnan(e.value) for e in RetrievalState().compute().values())


def test_pools_are_ranked_by_the_similarity_of_the_tokens():
  """By the distance for "l2". A function of pairs that computes the distance gives the same values."""
  rng = np.random.default_rng(9)
  clips = []
  for i in range(33):  # PAIR_QUERIES include all 31 frames of a clip
    source = rng.normal(size=(31, 4)) * rng.uniform(0.3, 3, size=(31, 1))
    near = source + 0.5 * rng.normal(size=source.shape)
    clips.append(ClipTokens(key=f"{i:02d}", audio=source, vocal=near, similarity="l2"))
  distance = lambda a, v: -np.linalg.norm(a - v, axis=1)
  as_pairs = [ClipTokens(key=c.key, audio=c.audio, vocal=c.vocal, similarity="pairs") for c in clips]
  found, asked = state_of(clips).compute(), state_of(as_pairs).compute(distance)
  assert 0.1 < found["r_precision/top1"].value < 0.9
  assert found["r_precision/top1"].value == pytest.approx(asked["r_precision/top1"].value, abs=0.04)
  # The order of the candidates is that of the distance, not of the cosine.
  score = retrieval._score_vectors(clips)(np.array([5]), np.arange(100)[None])
  vocal = np.concatenate([c.vocal for c in clips])[:100]
  np.testing.assert_array_equal(np.argsort(score[0]), np.argsort(-np.linalg.norm(vocal - clips[0].audio[5], axis=1)))
