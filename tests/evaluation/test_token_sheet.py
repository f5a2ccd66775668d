"""The factor report on features of which it is known what they hold."""

import json

import numpy as np
import pytest

from synclipmae_jax.evaluation import token_sheet
from synclipmae_jax.evaluation.token_sheet import Correlation, People
from synclipmae_jax.metrics.factors import ClipFactors, FactorState

NAMES = ("identity/skin", "mouth/jaw", "ambient/yaw")


def circle(angle):
  """Near by cosine where the values are near."""
  return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def state(people=10, *, clips_each=2, frames=12, seed=0):
  """vocal holds the jaw, ambient the yaw, identity the skin, each as a place on a half circle; picture is noise."""
  rng = np.random.default_rng(seed)
  made = []
  for person in range(people):
    skin = rng.uniform(0, 3)
    for number in range(clips_each):
      truth = np.stack([np.full(frames, skin), *rng.uniform(0, 3, (2, frames))], axis=1)
      features = {"vocal": circle(truth[:, 1]), "ambient": circle(truth[:, 2]), "identity": circle(truth[:, 0]),
                  "picture": rng.normal(size=(frames, 2))}  # fmt: skip
      made.append(ClipFactors(key=f"{person:02d}/{number}", identity=f"{person}", features=features, truth=truth))
  return FactorState.of(made[::-1])


def test_neighbours_agree_in_what_the_token_holds_and_are_of_other_clips():
  found = token_sheet.find_neighbours(state(), NAMES)
  assert found.ratios["vocal"]["mouth"] < 0.05 and found.ratios["ambient"]["ambient"] < 0.05
  assert found.ratios["identity"]["identity"] < 0.05
  assert 0.7 < found.ratios["vocal"]["ambient"] < 1.3 and 0.7 < found.ratios["ambient"]["mouth"] < 1.3
  for rows in found.nearest.values():
    clips = found.clip[rows]
    assert rows.shape == (240, token_sheet.NEAREST) and (clips != found.clip[:, None]).all()
    assert all(len(set(row)) == len(row) for row in clips)
  table = found.table()
  assert "| vocal" in table and "mouth" in table


def test_the_nearest_come_in_order_and_need_no_truth():
  made = state()
  found = token_sheet.find_neighbours(made, ())
  tokens = np.concatenate([clip.features["vocal"] for clip in made.ordered])
  cosine = np.take_along_axis(tokens @ tokens.T, found.nearest["vocal"], axis=1)
  assert (np.diff(cosine, axis=1) <= 1e-12).all()
  others = np.where(found.clip[:, None] == found.clip, -np.inf, tokens @ tokens.T)
  np.testing.assert_allclose(cosine[:, 0], others.max(1))
  assert found.table() == "" and set(found.to_json()["vocal"].values()) == {None}
  assert token_sheet.find_neighbours(state(1, clips_each=1), NAMES) is None


def test_correlation_of_tokens_that_are_one_another_and_of_unrelated_ones():
  rng = np.random.default_rng(0)
  vocal, identity = rng.normal(size=(2, 4000, 3))
  identity[:, 2] = 7.0  # a constant number goes with nothing
  clip = ClipFactors(key="a", identity="", features={"vocal": vocal, "ambient": -2 * vocal, "identity": identity},
                     truth=np.zeros((4000, 0)))  # fmt: skip
  found = Correlation.of(FactorState.of([clip]))
  blocks = found.blocks()
  assert np.abs(np.diag(found.matrix[:3, 3:6])) == pytest.approx(np.ones(3))
  assert blocks["vocal"]["ambient"] == pytest.approx(3**-0.5, abs=0.02) == blocks["ambient"]["vocal"]
  assert blocks["vocal"]["identity"] < 0.04 and blocks["vocal"]["vocal"] < 0.04
  assert np.isfinite(found.matrix).all() and "4000 frames" in found.table()


def test_who_is_who_is_told_by_the_identity_token():
  people = {name: People.of(name, state(12)) for name in token_sheet.FEATURES}
  assert people["identity"].verification.auc.value > 0.95 > 0.75 > people["vocal"].verification.auc.value
  table = token_sheet.people_table(people)
  assert "12 pairs of clips of one person" in table and "| identity" in table
  entry = json.loads(json.dumps(people["identity"].to_json(), allow_nan=False))
  assert entry["roc"]["true_accepts"][-1] == 1 and 0 <= entry["eer"]["value"] < 0.2
  strangers = {name: People.of(name, state(12, clips_each=1)) for name in token_sheet.FEATURES}
  assert token_sheet.people_table(strangers) == "" and strangers["vocal"].to_json() is None


def test_measured_motion_is_read_from_the_token_that_shows_it_where_it_is_known():
  made = state()
  rng = np.random.default_rng(1)
  names = ("mouth/jaw", "ambient/yaw")
  known = []
  for clip in made.clips:
    motion = clip.truth[:, 1:] + 0.05 * rng.normal(size=(len(clip.truth), 2))
    motion[::5] = np.nan  # no landmarks
    known.append(token_sheet.without_unknown(clip, motion))
  assert all(len(clip.truth) == 9 == len(clip.features["vocal"]) for clip in known)
  measured = token_sheet.measure_motion(FactorState.of(known), names)
  assert measured.rows["vocal"].r2["mouth/jaw"] > 0.8 and measured.rows["vocal"].within_clips["mouth/jaw"] > 0.8
  assert measured.rows["vocal"].r2["ambient/yaw"] < 0.1 > measured.rows["picture"].r2["mouth/jaw"]
  assert measured.over == "people" and "10 people" in measured.table()
  json.dumps(measured.to_json(), allow_nan=False)
  assert token_sheet.without_unknown(known[0], np.full((9, 2), np.nan)) is None
