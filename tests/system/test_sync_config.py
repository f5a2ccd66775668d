"""configs/sync.py: models of every kind from checkpoints on the same clips."""

import dataclasses
import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from synclipmae_jax.checkpoints import save_items
from synclipmae_jax.convert import donor
from synclipmae_jax.run import jobs, sources, sync_models, sync_protocol, workdir
from synclipmae_jax.run.clock import Clock
from synclipmae_jax.types import InputError

ROOT = Path(__file__).parents[2]


def load(name, preset):
  spec = importlib.util.spec_from_file_location(f"configs_{name}", ROOT / "configs" / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(preset)


def random_baseline(directory, kind, **sizes):
  """A converted checkpoint of small random weights; running variances stay positive."""
  draw = np.random.RandomState(0)
  module = donor.load(kind).modules(**sizes)[kind]
  fill = lambda leaf: np.abs(0.3 * draw.standard_normal(leaf.shape)).astype(np.float32) + 0.01
  save_items(directory, {kind: jax.tree.map(fill, module.abstract)}, {"conversion": {"donor": kind}})


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
  """The preset `tiny` on its SynthTalk, with an untrained SyncLipMAE and an untrained SyncNet."""
  root = tmp_path_factory.mktemp("sync")
  config = load("sync", "tiny")
  config.data.synthtalk.update(dict(train=2, test=2, seconds=2.0))
  clips = sources.open_clips(config, root / "run", Clock())
  ours = load("pretrain", "tiny")
  trainable, _ = jobs.training_job_of(ours).build_task(ours).init(jax.random.key(0))
  items = {name: trainable[name] for name in ("visual_encoder", "audio_adapter")}
  save_items(root / "ours", items, workdir.stamp(ours, clips.preprocessing))
  random_baseline(root / "syncnet", "syncnet", image_size=51, scale=1 / 16, width=8)
  config.data.sources = ((str(clips.sources[0].directory), 1.0),)
  kinds = {"synclipmae": "ours", "synclipmae-5": "ours", "syncnet": "syncnet"}
  config.models = (("linear", None), *((kind, str(root / place)) for kind, place in kinds.items()))
  (root / "run").mkdir(exist_ok=True)
  sync_protocol.run(config, root / "run")
  return root, config


def test_every_kind_of_model_is_in_one_table(measured):
  root, config = measured
  report = json.loads((root / "run" / "sync.json").read_text(), parse_constant=pytest.fail)
  names = ["linear baseline", "linear map of the true mouth", "SyncLipMAE-1", "SyncLipMAE-5", "SyncNet-5"]
  assert [row["name"] for row in report["rows"]] == names
  assert [row["similarity"] for row in report["rows"]] == ["cosine", "cosine", "cosine", "cosine", "l2"]
  assert {row["clips"] for row in report["rows"]} == {2} and {row["frames"] for row in report["rows"]} == {40}
  for row in report["rows"]:
    assert 0 <= row["acc"]["k5"] <= 1 and 0 <= row["r_precision_within"]["top1"] <= 1
  assert report["rows"][4]["lse"].keys() >= {"lse_c", "lse_d"} and report["rows"][2]["lse"] is None
  assert report["rows"][2]["checkpoint"] == str(root / "ours")
  text = (root / "run" / "sync.md").read_text()
  assert all(f"| {name}" in text for name in names) and "synthetic" in text
  assert json.loads((root / "run" / "config.json").read_text())["config"]["task"] == "sync"


def test_five_frames_of_synclipmae_match_as_well_as_single_frames():
  audio, vocal = np.random.default_rng(0).standard_normal((2, 9, 6))
  tokens = SimpleNamespace(audio=audio, vocal=vocal)
  model = SimpleNamespace(embed=lambda *_, **__: tokens, image_size=32)
  clip = SimpleNamespace(frames=np.zeros((9, 2, 2, 3)), waveform=None, face_box=None, mouth_box=None)
  cosine = lambda a, v: float(np.sum(a * v) / np.linalg.norm(a) / np.linalg.norm(v))
  wide = sync_models.EmbeddedTokens(model, context_frames=5).embed(clip)
  assert all(x.shape == (9, 30) for x in wide)
  for t in range(9):
    around = [int(np.clip(t - 2, 0, 4)) + i for i in range(5)]  # at the ends the nearest complete window
    assert cosine(wide[0][4], wide[1][t]) == pytest.approx(
      np.mean([cosine(audio[2 + i], vocal[around[i]]) for i in range(5)]), abs=1e-5
    )


def test_clips_of_unknown_lag_get_a_known_one(measured, tmp_path, monkeypatch):
  """Records without known lags: half of them are shifted, and the report states it."""
  root, config = measured
  read = sources.read_clips
  unknown = lambda clips: (dataclasses.replace(clip, lag=None) for clip in clips)
  monkeypatch.setattr(sources, "read_clips", lambda *a, **k: unknown(read(*a, **k)))
  config = config.copy_and_resolve_references()
  config.models = (("syncnet", str(root / "syncnet")),)
  for inject in (True, False):
    config.inject_lags = inject
    found = sync_protocol.run(config, tmp_path)
    assert any("known lags were injected" in note for note in found.notes) == inject
    assert any("0 is assumed" in note for note in found.notes)
    assert inject or found.lags == [0, 0]


@pytest.mark.parametrize(
  ("models", "sentence"),
  [
    ((), "no model to measure"),
    (("syncnet", "DIR"), "tuple of (kind, checkpoint directory)"),
    ((("wav2lip", "DIR"),), "unknown kind of model 'wav2lip': one of linear, synclipmae, synclipmae-5, syncnet"),
    ((("vocalist", None),), "no weights of vocalist come with the package"),
    ((("linear", "DIR"),), "fitted in this run"),
    ((("syncnet", "nowhere"),), "no complete checkpoint in"),
    ((("vocalist", "{root}/syncnet"),), "has no item 'vocalist'"),
  ],
)
def test_invalid_models_are_refused_before_anything_is_written(measured, tmp_path, models, sentence):
  root, _ = measured
  config = load("sync", "tiny")
  config.models = tuple(
    tuple(part.replace("{root}", str(root)) if isinstance(part, str) else part for part in pair)
    if isinstance(pair, tuple) else pair
    for pair in models
  )  # fmt: skip
  with pytest.raises(InputError, match=re.escape(sentence)):
    sync_protocol.run(config, tmp_path / "w")
  assert not (tmp_path / "w").exists()


def test_the_other_models_load_their_converted_weights(tmp_path):
  random_baseline(tmp_path / "vocalist", "vocalist", widths=(2, 2, 2, 2, 16), depth=1)
  judge = sync_models.MODELS["vocalist"](str(tmp_path / "vocalist"))
  assert (judge.name, judge.context_frames) == ("VocaLiST", 5) and callable(judge.similarity)
  scores = judge.similarity(np.ones((3, 16, 16), np.float32), np.ones((3, 5, 16), np.float32))
  assert scores.shape == (3,) and np.isfinite(scores).all()


def test_a_measuring_job_cannot_be_compiled():
  with pytest.raises(InputError, match="the job 'sync' does not train"):
    jobs.training_job_of(load("sync", "tiny"))


@pytest.mark.slow
def test_a_syncnet_is_trained_and_measured_from_its_workdir(measured, tmp_path):
  """The whole job on the same records: eval.json, a table, and parameters that the protocol loads."""
  _, config = measured
  training = load("syncnet", "tiny")
  training.data.sources = config.data.sources
  training.train.update(dict(steps=1, calibration_batches=1))
  training.data.eval_clips = 2
  assert jobs.run(training, tmp_path / "run") is None
  report = json.loads((tmp_path / "run" / "eval.json").read_text())
  config = config.copy_and_resolve_references()
  config.models = (("syncnet", str(tmp_path / "run")),)
  row = sync_protocol.run(config, tmp_path / "sync").to_json()["rows"][0]
  assert row["similarity"] == "cosine" and row["lse"] is None and row["name"] == "SyncNet-5"
  assert row["acc"] == pytest.approx(report["acc"]) and row["r_precision"] == pytest.approx(report["r_precision"])
