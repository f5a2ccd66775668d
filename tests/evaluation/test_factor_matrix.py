"""The factor matrix of a model whose tokens are known to hold one factor each."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synclipmae_jax import sharding
from synclipmae_jax.evaluation.factors import FactorEvaluator
from synclipmae_jax.evaluation.pretrain import SyncEvaluator
from synclipmae_jax.evaluation.sync import SYNTHETIC_NOTE
from synclipmae_jax.evaluation.tokens import HeldOutTokens
from synclipmae_jax.types import SAMPLES_PER_FRAME, EvalClip, HeldOut, Tokens

NAMES = ("identity/skin", "mouth/jaw", "ambient/yaw", "ambient/x")
FRAMES = 50


def clips(people, *, seed, clips_each=2, prefix="", truth=True):
  """The upper left quarter of a picture is a pattern of the person, the upper right as bright as the yaw, the lower
  left as bright as the jaw; in the lower right there is noise."""
  rng = np.random.default_rng(seed)
  for person in range(people):
    pattern, skin = rng.integers(0, 256, (4, 4, 3)), rng.uniform()
    for number in range(clips_each):
      jaw, yaw, x = rng.uniform(size=(3, FRAMES))
      frames = rng.integers(0, 256, (FRAMES, 8, 8, 3))
      frames[:, :4, :4] = pattern
      frames[:, :4, 4:] = (255 * yaw)[:, None, None, None]
      frames[:, 4:, :4] = (255 * jaw)[:, None, None, None]
      values = np.stack([np.full(FRAMES, skin), jaw, yaw, x], axis=1).astype(np.float32)
      yield EvalClip(
        key=f"{prefix}{person:02d}_{number}",
        corpus="synthtalk",
        identity=f"{prefix}{person}",
        frames=frames.astype(np.uint8),
        waveform=rng.normal(0, 0.1, FRAMES * SAMPLES_PER_FRAME).astype(np.float32),
        face_box=np.tile(np.float32([0, 0, 1, 1]), (FRAMES, 1)),
        mouth_box=np.full((FRAMES, 4), -1, np.float32),
        lag=0,
        truth=values if truth else None,
        truth_names=NAMES if truth else (),
      )


class QuarterModel:
  """Tokens are the quarters of the picture, multiplied by a parameter."""

  image_size = 8

  def embed(self, trainable, frozen, frames, waveform, **boxes):
    heard = waveform.reshape(*frames.shape[:2], -1)[..., :48]
    return dataclasses.replace(self.embed_visual(trainable, frames, **boxes), audio=heard)

  def embed_visual(self, trainable, frames, *, face_box, mouth_box):
    quarter = lambda x: trainable["gain"] * (x.reshape(*x.shape[:2], -1) / 255 - 0.5)
    return Tokens(
      identity=quarter(frames[:, :, :4, :4]),
      ambient=quarter(frames[:, :, :4, 4:]),
      vocal=quarter(frames[:, :, 4:, :4]),
      audio=None,
    )


PARAMS = {"gain": jnp.ones(())}


def clip_data(held_out, training=(), test=None):
  val = HeldOut(split="val", clips=held_out)
  test = val if test is None else HeldOut(split="test", clips=test)
  return types.SimpleNamespace(val=val, test=test, train_clips=lambda: iter(training))


def evaluator(workdir, held_out, training, *, test=None, **options):
  tokens = HeldOutTokens(QuarterModel(), mesh=sharding.make_mesh((("data", -1),), jax.devices()[:1]))
  return FactorEvaluator(tokens, clip_data(held_out, training, test), workdir=workdir, **options)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("factors")
  held_out, training = list(clips(6, seed=1, prefix="test")), list(clips(12, seed=0, prefix="train"))
  judge = evaluator(workdir, held_out, training, ceiling_steps=30)
  scalars = judge(PARAMS, {}, step=1, final=True)
  return workdir, judge, scalars


def test_each_token_holds_its_own_factor_and_no_other(measured):
  workdir, judge, scalars = measured
  assert scalars["vocal_mouth"] > 0.99 and scalars["ambient_ambient"] > 0.99 and scalars["identity_retrieval"] == 1
  assert scalars["leak_max"] < 0.2 and judge.report.tokens["ambient"].r2["ambient/x"] < 0.2
  entry = json.loads((workdir / "eval.json").read_text(), parse_constant=pytest.fail)["factors"]
  assert entry["tokens"]["vocal"]["r2"].keys() == set(NAMES)
  assert entry["tokens"]["vocal"]["groups"] == pytest.approx(judge.report.tokens["vocal"].groups)
  assert entry["tokens"]["identity"]["retrieval"] == {"top1": 1.0, "ci95": [1.0, 1.0], "chance": pytest.approx(1 / 11)}
  assert entry["fitted_on"] == {"people": 12, "clips": 24} and entry["judged_on"] == {"people": 6, "clips": 12}
  assert entry["note"] == SYNTHETIC_NOTE
  assert (workdir / "factors.png").stat().st_size > 5_000


def test_floor_and_ceiling_stand_beside_the_tokens(measured):
  _, judge, _ = measured
  report = judge.report
  assert report.components == 48 and report.floor.groups["mouth"] > 0.9  # the brightness of a quarter is a component
  assert report.ceiling.groups["mouth"] > 0.3 and report.ceiling.retrieval is None
  table = report.table()
  assert all(text in table for text in ("| vocal ", "floor: 48 components", "ceiling: ", "12 people (24 clips)"))


def test_both_evaluators_look_at_one_embedding(tmp_path):
  held_out = list(clips(3, seed=1, prefix="test"))
  judge = evaluator(tmp_path, held_out, list(clips(4, seed=0)))
  calls = []
  embed = judge._tokens._embed
  judge._tokens._embed = lambda *args, **batch: calls.append(args) or embed(*args, **batch)
  sync = SyncEvaluator(judge._tokens, clip_data(held_out), workdir=tmp_path)
  frozen = {}
  first = sync(PARAMS, frozen, step=1, final=False), judge(PARAMS, frozen, step=1, final=False)
  turns = len(calls)
  assert turns == 6  # a clip a turn on one device
  other = {"gain": jnp.zeros(())}
  second = sync(other, frozen, step=2, final=False), judge(other, frozen, step=2, final=False)
  assert len(calls) == 2 * turns
  assert second[1]["vocal_mouth"] == 0 and first[1]["vocal_mouth"] > 0.9
  assert json.loads((tmp_path / "eval.json").read_text()).keys() >= {"acc", "factors"}


def test_people_who_were_fitted_on_are_named(tmp_path):
  judge = evaluator(tmp_path, list(clips(3, seed=0, clips_each=1)), list(clips(4, seed=0)))
  judge(PARAMS, {}, step=1, final=False)
  assert "3 of the 3 people were fitted on too" in judge.report.notes
  assert any("nobody is seen in two clips" in note for note in judge.report.notes)
  entry = json.loads((tmp_path / "eval.json").read_text(), parse_constant=pytest.fail)["factors"]
  assert entry["tokens"]["identity"]["retrieval"]["top1"] is None and entry["ceiling"] is None


@pytest.mark.parametrize("held_out, training", [(False, True), (True, False)])
def test_without_truth_there_is_no_matrix(held_out, training, tmp_path):
  judge = evaluator(
    tmp_path, list(clips(2, seed=1, truth=held_out, prefix="test")), list(clips(3, seed=0, truth=training))
  )
  assert judge(PARAMS, {}, step=1, final=True) == {} and judge.report is None
  assert json.loads((tmp_path / "eval.json").read_text()) == {"factors": None}


def test_the_test_clips_are_looked_at_in_the_final_evaluation_only(tmp_path):
  val, test = list(clips(3, seed=1, prefix="val")), list(clips(4, seed=2, prefix="test"))
  training = list(clips(4, seed=0))
  judge = evaluator(tmp_path, val, training, test=test)
  sync = SyncEvaluator(judge._tokens, clip_data(val, training, test), workdir=tmp_path)
  seen = []
  embed = judge._tokens._embed_clips
  judge._tokens._embed_clips = lambda *args: seen.extend(clip.key for clip in args[-1]) or embed(*args)
  read = lambda: json.loads((tmp_path / "eval.json").read_text())
  for evaluate in (sync, judge):
    evaluate(PARAMS, {}, step=1, final=False)
  assert set(seen) == {clip.key for clip in val}
  assert (read()["split"], read()["factors"]["split"]) == ("val", "val") and read()["clips"] == 6
  fit = judge._embed_training
  judge._embed_training = lambda *_: pytest.fail("the training clips are embedded again")
  for evaluate in (sync, judge):
    evaluate(PARAMS, {}, step=1, final=True)
  judge._embed_training = fit
  assert {clip.key for clip in test} <= set(seen)
  assert (read()["split"], read()["factors"]["split"]) == ("test", "test")
  assert read()["clips"] == read()["factors"]["judged_on"]["clips"] == 8
