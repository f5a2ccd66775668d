"""`synclipmae calibrate` on tokens of known lag, and what it writes."""

import contextlib
from pathlib import Path

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
  lengths = [case.own.frames for case in cases]
  assert {35, 50, 75, 110, 150} < set(lengths) and 250 not in lengths
  assert sum(length > 150 for length in lengths) == 6 * calibrate.DRAWS  # the whole clip less the lag
  long = [case for case in cases if case.own.frames >= 75]
  assert all(calibrate.LAGS[case.own.best] == case.lag for case in long)
  assert np.mean([calibrate.LAGS[case.stranger.best] == case.lag for case in cases]) < 0.3


def with_sets(monkeypatch, sets):
  """Lets `eval_clips` give the planted clips of the folder and split, and `_tokens` their tokens."""
  kept = {}

  def clips(folder, *, split, image_size):
    for number, (lag, *tokens) in enumerate(sets[f"{Path(folder).name}:{split}"]):
      key = f"{folder}:{split}/{number}"
      kept[key] = tokens
      yield EvalClip(key=key, corpus=Path(folder).name, identity="x", frames=None, waveform=None, face_box=None,
                     mouth_box=None, lag=lag, truth=None)  # fmt: skip

  monkeypatch.setattr(calibrate.pipeline, "eval_clips", clips)
  monkeypatch.setattr(calibrate, "_tokens", lambda model, clip: kept[clip.key])


def test_writes_a_checkpoint_that_knows_what_it_is_worth(untrained, tmp_path, monkeypatch):
  with_sets(monkeypatch, {"footage:test": planted(12)})
  out = tmp_path / "out"
  summary = calibrate.calibrate(untrained, out, records=["footage"], progress=False)
  assert summary["calibration_error"] < 0.15
  assert {row["right"] for row in summary["by_length"][2:]} == {1.0}
  model = SyncLipMAE.load(out)
  assert " stretches of 6 clips of footage:test" in model.calibration.fitted_on
  assert "its confidence is not calibrated" not in model.notes
  assert set(checkpoints.list_items(out)) == {"visual_encoder", "audio_adapter", "decoder"}
  assert f"calibrated on {summary['fitted_on']}" in calibrate._report(summary)
  for item in ("visual_encoder", "decoder"):
    one, other = (checkpoints.load_item(directory, item) for directory in (out, untrained))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_every_set_is_measured_for_itself(untrained, tmp_path, monkeypatch, capsys):
  easy, hard = list(planted(8, frames=120)), list(planted(8, frames=76, noise=2.0))
  with_sets(monkeypatch, {"synthtalk:val": easy, "grid:test": hard})
  arguments = [str(untrained), "--out", str(tmp_path / "out"), "--records", "synthtalk:val", "--records", "grid"]
  assert calibrate.main(arguments) == 0
  out = capsys.readouterr().out
  rows = checkpoints.load_meta(tmp_path / "out")["measured"]["sets"]
  assert [(row["name"], row["real"]) for row in rows] == [("synthtalk:val", False), ("grid:test", True)]
  assert rows[0]["answered"] > 0.9 > 0.5 > rows[1]["answered"] and rows[0]["right_of_answered"] > 0.95
  assert rows[1]["foreign_answered"] < 0.2
  assert "of 4 clips of synthtalk:val and " in out and "| grid:test |" in out and "| synthtalk:val |" in out


def test_synthtalk_is_added_only_if_it_is_wanted(untrained, tmp_path, monkeypatch):
  made = []
  monkeypatch.setattr(calibrate, "_make_synthtalk", lambda scratch, **_: made.append(Path(scratch).name))
  clips = {"grid:test": list(planted(4, frames=60))}
  with_sets(monkeypatch, clips)
  calibrate.calibrate(untrained, tmp_path / "one", records=["grid"], progress=False)
  assert not made
  monkeypatch.setattr(calibrate.tempfile, "TemporaryDirectory", lambda: contextlib.nullcontext("synthtalk"))
  clips["synthtalk:test"] = list(planted(4, frames=60))
  for number, records in enumerate((["grid"], [])):
    calibrate.calibrate(untrained, tmp_path / f"two{number}", records=records, synthtalk=bool(records), progress=False)
    names = [row["name"] for row in checkpoints.load_meta(tmp_path / f"two{number}")["measured"]["sets"]]
    assert names == ["grid:test"] * len(records) + ["SynthTalk, seed 1"]
  assert made == ["synthtalk"] * 2


def test_a_folder_with_a_colon_is_taken_as_it_is(tmp_path):
  (tmp_path / "a:b").mkdir()
  assert calibrate._folder_and_split(tmp_path / "a:b", "val") == (str(tmp_path / "a:b"), "val")
  assert calibrate._folder_and_split(f"{tmp_path}/a:b:train", "val") == (str(tmp_path / "a:b"), "train")


@pytest.mark.parametrize("existing", [True, False])
def test_refuses_in_a_sentence(existing, untrained, tmp_path, capsys):
  out = tmp_path if existing else tmp_path / "out"
  source = untrained if existing else tmp_path / "nothing"
  assert calibrate.main([str(source), "--out", str(out), "--records", str(tmp_path)]) == 2
  error = capsys.readouterr().err
  assert error.startswith("synclipmae calibrate: ") and error.count("\n") == 1
  assert existing or not out.exists()
