"""Ridge and retrieval on features of which it is known what they hold."""

import numpy as np
import pytest

from synclipmae_jax.data.synthtalk.clip import TRUTH_NAMES
from synclipmae_jax.metrics import factors
from synclipmae_jax.metrics.factors import ClipFactors, FactorState

NAMES = ("identity/skin", "mouth/jaw", "mouth/opening", "ambient/yaw")


def clips(people, *, seed, clips_each=2, frames=12, noise=0.0, width=10):
  """Per clip the truth, and features that mix it with five nuisances; `token` holds all but the yaw."""
  rng = np.random.default_rng(seed)
  mix = np.random.default_rng(99).normal(size=(8, width))
  for person in range(people):
    skin = rng.normal()
    for number in range(clips_each):
      truth = np.concatenate([np.full((frames, 1), skin), rng.normal(size=(frames, 3))], axis=1)
      held = np.concatenate([truth[:, :3], rng.normal(size=(frames, 5))], axis=1)
      token = held @ mix + noise * rng.normal(size=(frames, width))
      yield ClipFactors(
        key=f"{seed}/{person}/{number}", identity=f"{seed}/{person}", features={"token": token}, truth=truth
      )


def test_what_the_features_hold_is_found_and_what_they_lack_is_not():
  r2 = factors.parameter_r2("token", FactorState.of(clips(30, seed=0)), FactorState.of(clips(10, seed=1)), NAMES)
  assert r2["mouth/jaw"] > 0.999 and r2["mouth/opening"] > 0.999 and r2["ambient/yaw"] < 0.05
  assert r2["identity/skin"] > 0.9  # from the means of clips, of which there are fewer
  means = factors.group_means(r2)
  assert means["mouth"] > 0.999 and means["ambient"] == max(r2["ambient/yaw"], 0)


def test_r_squared_is_that_of_its_formula():
  truth = np.array([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]])
  predicted = np.array([[0.0, 5.0], [1.0, 5.0], [3.0, 5.0]])
  r2 = factors.r_squared(truth, predicted)
  assert r2[0] == pytest.approx(1 - 1 / 2) and np.isnan(r2[1])
  assert factors.r_squared(truth, truth[::-1])[0] == pytest.approx(1 - 8 / 2)


def test_the_ridge_is_the_closed_form_of_its_strength():
  rng = np.random.default_rng(0)
  x, people = rng.normal(size=(60, 4)), np.arange(60) // 6
  y = x @ rng.normal(size=(4, 2)) + rng.normal(size=(60, 2))
  ridge = factors.fit_ridge(x, y, people)
  centred, target = x - x.mean(0), y - y.mean(0)
  covariance = centred.T @ centred / 60
  for column, strength in enumerate(ridge.strengths):
    penalty = strength * np.trace(covariance) / 4 * np.eye(4)
    want = np.linalg.solve(covariance + penalty, centred.T @ target[:, column] / 60)
    np.testing.assert_allclose(ridge.weights[:, column], want, rtol=1e-9)
  np.testing.assert_allclose(ridge(x).mean(0), y.mean(0))


def test_the_strength_is_chosen_on_people_who_are_left_out():
  """Features that name the person fit everyone who was seen: only other people show that they say nothing."""
  rng = np.random.default_rng(0)
  people = np.arange(40).repeat(5)
  x = np.eye(40)[people]
  y = rng.normal(size=40)[people][:, None] + 0.01 * rng.normal(size=(200, 1))
  assert factors.fit_ridge(x, y, people).strengths[0] >= 1
  assert factors.fit_ridge(x, y, np.arange(200) % 5).strengths[0] < 1e-2  # rows of every person in every fold
  with pytest.raises(ValueError, match="1 people are too few"):
    factors.fit_ridge(x, y, np.zeros(200))


def test_scores_do_not_depend_on_how_the_clips_were_split():
  fitted, judged = list(clips(8, seed=0, noise=0.5)), list(clips(6, seed=1, noise=0.5))
  merged = FactorState.of(judged[7:]).merge(FactorState.of(judged[:7]))
  one = factors.parameter_r2("token", FactorState.of(fitted), FactorState.of(judged), NAMES)
  assert factors.parameter_r2("token", FactorState.of(fitted[::-1]), merged, NAMES) == one
  assert factors.retrieve_people("token", merged) == factors.retrieve_people("token", FactorState.of(judged))


def test_cross_validation_judges_people_who_were_not_fitted_on():
  """A token that names its person says nothing of the next one; one that holds the jaw says it of everybody."""
  found = factors.cross_validated_r2("token", FactorState.of(clips(12, seed=0)), NAMES)
  assert found.over == "people" and found.r2["mouth/jaw"] > 0.999 and found.r2["ambient/yaw"] < 0.05
  named = []
  for person, clip in enumerate(clips(12, seed=0, clips_each=1)):
    token = np.tile(np.eye(12)[person], (len(clip.truth), 1))
    named.append(ClipFactors(key=clip.key, identity=clip.identity, features={"token": token}, truth=clip.truth))
  assert factors.cross_validated_r2("token", FactorState.of(named), NAMES).r2["identity/skin"] < 0.05


def test_cross_validation_of_few_people_is_over_clips_and_motion_is_judged_apart_from_the_level():
  """The level of a clip is unknown to the token, its motion known: R² is low, and 1 within the clips."""
  rng = np.random.default_rng(0)
  made = []
  for number in range(6):
    jaw = rng.normal(size=(20, 1))
    made.append(ClipFactors(key=f"{number}", identity=f"{number % 2}", features={"token": jaw - jaw.mean()},
                            truth=jaw - jaw.mean() + 30 * rng.normal()))  # fmt: skip
  found = factors.cross_validated_r2("token", FactorState.of(made), ("mouth/jaw",))
  assert found.over == "clips" and found.r2["mouth/jaw"] < 0.2 and found.within_clips["mouth/jaw"] > 0.95
  assert factors.cross_validated_r2("token", FactorState.of(made[:2]), ("mouth/jaw",)) is None


def person_clip(identity, number, vector):
  feature = np.tile(np.asarray(vector, float), (3, 1))
  return ClipFactors(key=f"{identity}{number}", identity=identity, features={"token": feature}, truth=np.zeros((3, 1)))


def test_another_clip_of_the_person_must_come_before_all_clips_of_others():
  rows = [("a", 0, [1, 0]), ("a", 1, [0.9, 0.1]), ("b", 0, [0, 1]), ("b", 1, [1, 0.05]), ("c", 0, [-1, 0])]
  estimate, chance = factors.retrieve_people("token", FactorState.of(person_clip(*row) for row in rows))
  # Nearest to a0 is b1, before a1; to a1 too; b0 and b1 have each other's place taken by a1 and a0.
  assert estimate.value == 0
  assert chance == pytest.approx(1 / 4)
  rows[3] = ("b", 1, [0.05, 1])
  estimate, _ = factors.retrieve_people("token", FactorState.of(person_clip(*row) for row in rows))
  assert estimate.value == 1


def test_retrieval_of_equal_tokens_is_chance_and_without_a_second_clip_there_is_none():
  rows = [(name, number, [1, 1]) for name in "abcd" for number in range(2)]
  estimate, chance = factors.retrieve_people("token", FactorState.of(person_clip(*row) for row in rows))
  assert estimate.value == pytest.approx(chance) and chance == pytest.approx(1 / 7)
  alone = FactorState.of(person_clip(name, 0, [1, 1]) for name in "abcd")
  estimate, chance = factors.retrieve_people("token", alone)
  assert np.isnan(estimate.value) and np.isnan(chance)


def test_a_large_pool_keeps_whole_people():
  state = FactorState.of(person_clip(f"{name:03d}", number, [name, 1]) for number in range(2) for name in range(100))
  _, chance = factors.retrieve_people("token", state)
  assert chance == pytest.approx(1 / (1 + factors.POOL - 2))


def test_the_groups_are_parameters_of_synthtalk():
  for group, names in factors.GROUPS.items():
    assert {f"{group}/{name}" for name in names} <= set(TRUTH_NAMES)
  assert {name.split("/")[0] for name in TRUTH_NAMES} == factors.GROUPS.keys()
  means = factors.group_means(dict.fromkeys(TRUTH_NAMES, -1.0) | {"mouth/jaw": 1.0, "mouth/tuck": 1.0})
  assert means == {"mouth": 0.25, "ambient": 0.0, "identity": 0.0}


def test_what_cannot_be_compared_is_refused():
  with pytest.raises(ValueError, match="c: token"):
    ClipFactors(key="c", identity="", features={"token": np.zeros((3, 2))}, truth=np.zeros((4, 1)))
  with pytest.raises(ValueError, match="c: truth"):
    ClipFactors(key="c", identity="", features={}, truth=np.full((4, 1), np.nan))


@pytest.mark.parametrize("frames, count", [(1, 1), (10, 10), (150, factors.FRAMES)])
def test_frames_are_spread_from_the_first_to_the_last(frames, count):
  chosen = factors.spread_frames(frames)
  assert len(set(chosen)) == count and chosen[0] == 0 and chosen[-1] == frames - 1
