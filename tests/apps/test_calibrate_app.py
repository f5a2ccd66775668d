"""`synclipmae calibrate` on tokens of known lag, and what it writes."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.pretrain import get_config
from synclipmae_jax.apps import calibrate
from synclipmae_jax.data import faces
from synclipmae_jax.data.clips import VERSION
from synclipmae_jax.pretrained import SyncLipMAE, build_model
from synclipmae_jax.train import checkpoint
from synclipmae_jax.types import EvalClip


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
  """A step of the preset `tiny`, of random weights."""
  config: ConfigDict = get_config("tiny")
  config = json.loads(config.to_json_best_effort())
  trainable, _ = jax.jit(build_model(config).init)(jax.random.key(0))
  stamp = {"fps": 25, "sample_rate": 16_000, "crop": faces.CROP_RULE, "version": VERSION, "size": 32,
           "image_size": 32, "embed_visible": "face_topk"}  # fmt: skip
  step = tmp_path_factory.mktemp("untrained") / "0"
  checkpoint.save_items(step, trainable, {"config": config, "preprocessing": stamp, "task": "pretrain", "step": 0})
  return step


def planted(number, *, frames=230, width=8, noise=0.7):
  """(lag, audio, lips) of clips in which both follow one hidden sequence."""
  rng = np.random.default_rng(0)
  for _ in range(number):
    lag = int(rng.integers(-8, 9))
    hidden = rng.normal(size=(frames + 40, width))
    heard, seen = (x + noise * rng.normal(size=x.shape) for x in (hidden[20:][:frames], hidden[20 - lag :][:frames]))
    yield lag, heard.astype(np.float32), seen.astype(np.float32)


def test_stretches_have_the_lag_that_they_are_said_to_have():
  cases = list(calibrate._stretches(list(planted(6)), np.random.default_rng(1)))
  assert len({case.own.frames for case in cases}) == len(calibrate.LENGTHS)
  long = [case for case in cases if case.own.frames >= 75]
  assert all(calibrate.LAGS[case.own.best] == case.lag for case in long)
  assert np.mean([calibrate.LAGS[case.stranger.best] == case.lag for case in cases]) < 0.3


def test_writes_a_checkpoint_that_knows_what_it_is_worth(untrained, tmp_path, monkeypatch):
  clips = list(planted(12))
  tokens = iter(clips)
  monkeypatch.setattr(calibrate.pipeline, "eval_clips", lambda *_, **__: [
    EvalClip(key=str(i), corpus="x", identity="x", frames=None, waveform=None, face_box=None, mouth_box=None, lag=lag,
             truth=None) for i, (lag, *_) in enumerate(clips)])  # fmt: skip
  monkeypatch.setattr(calibrate, "_tokens", lambda model, clip: next(tokens)[1:])
  out = tmp_path / "out"
  summary = calibrate.calibrate(untrained, out, records=tmp_path, progress=False)
  assert summary["calibration_error"] < 0.15
  assert {row["right"] for row in summary["by_length"][2:]} == {1.0}
  model = SyncLipMAE.load(out)
  assert " stretches of 6 clips of " in model.calibration.fitted_on
  assert "its confidence is not calibrated" not in model.notes
  assert set(checkpoint.list_items(out)) == {"visual_encoder", "audio_adapter", "decoder"}
  assert f"calibrated on {summary['fitted_on']}" in calibrate._report(summary)
  for item in ("visual_encoder", "decoder"):
    jax.tree.map(np.testing.assert_array_equal, checkpoint.load_item(out, item), checkpoint.load_item(untrained, item))


@pytest.mark.parametrize("existing", [True, False])
def test_refuses_in_a_sentence(existing, untrained, tmp_path, capsys):
  out = tmp_path if existing else tmp_path / "out"
  source = untrained if existing else tmp_path / "nothing"
  assert calibrate.main([str(source), "--out", str(out), "--records", str(tmp_path)]) == 2
  error = capsys.readouterr().err
  assert error.startswith("synclipmae calibrate: ") and error.count("\n") == 1
  assert existing or not out.exists()
