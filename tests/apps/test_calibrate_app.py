"""`synclipmae calibrate` on tokens of known lag, and what it writes."""

import jax
import numpy as np
import pytest

from synclipmae_jax import checkpoints
from synclipmae_jax.apps import calibrate
from synclipmae_jax.pretrained import SyncLipMAE
from synclipmae_jax.types import EvalClip
from tests.tiny_checkpoint import write_tiny


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
  return write_tiny(tmp_path_factory.mktemp("untrained") / "0")


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
  assert set(checkpoints.list_items(out)) == {"visual_encoder", "audio_adapter", "decoder"}
  assert f"calibrated on {summary['fitted_on']}" in calibrate._report(summary)
  for item in ("visual_encoder", "decoder"):
    one, other = (checkpoints.load_item(directory, item) for directory in (out, untrained))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("existing", [True, False])
def test_refuses_in_a_sentence(existing, untrained, tmp_path, capsys):
  out = tmp_path if existing else tmp_path / "out"
  source = untrained if existing else tmp_path / "nothing"
  assert calibrate.main([str(source), "--out", str(out), "--records", str(tmp_path)]) == 2
  error = capsys.readouterr().err
  assert error.startswith("synclipmae calibrate: ") and error.count("\n") == 1
  assert existing or not out.exists()
