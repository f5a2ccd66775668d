"""configs/probe.py on SynthTalk: a run from clips to its report, what is cached, and what is refused."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from configs.probe import get_config
from synclipmae_jax.probing.saved import SavedProbe
from synclipmae_jax.run import feature_encoders, jobs, probe
from synclipmae_jax.types import InputError
from tests.tiny_checkpoint import write_tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A checkpoint, and a finished run of the preset `tiny` with its records."""
  place = tmp_path_factory.mktemp("probe")
  write_tiny(place / "checkpoint")
  config = get_config("tiny")
  config.encoder.checkpoint = str(place / "checkpoint")
  config.data.cache = str(place / "cache")
  jobs.run(config, place / "run")
  return place


def config_of(place, **changes):
  config = get_config("tiny")
  config.encoder.checkpoint = str(place / "checkpoint")
  config.data.update(dict(cache=str(place / "cache"), sources=((str(place / "run" / "data" / "prepared"), 1.0),)))
  for name, value in changes.items():
    group, field = name.split("__")
    config[group][field] = value
  return config


def test_a_run_writes_its_scores_its_tables_its_pictures_and_the_probe(place):
  run = place / "run"
  entry = json.loads((run / "eval.json").read_text())["probe"]
  assert [row["features"] for row in entry["rows"]] == ["vocal + ambient, 80 frames", "vocal, 16 frames"]
  assert (entry["fitted_on"], entry["judged_on"]) == ({"clips": 32, "people": 16}, {"clips": 8, "people": 4})
  assert np.sum(entry["confusion"]) == 8 and sum(row["clips"] for row in entry["classes"].values()) == 8
  low, high = entry["rows"][0]["accuracy"]["ci95"]
  assert 0 <= low <= entry["rows"][0]["accuracy"]["value"] <= high <= 1
  assert entry["prior"]["auc_macro"] == 0.5
  text = (run / "probe.md").read_text()
  assert "synthetic, not valid for real faces" in text
  assert "40 clips have fewer than 80 frames: some of their frames count several times" in text
  for picture in ("confusion.png", "classes.png"):
    assert (run / picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
  saved = SavedProbe.load(run)
  assert saved.probe.classes == tuple(entry["classes"]) and saved.tokens == ("vocal", "ambient")
  assert saved.notes == ("it was fitted on synthetic faces only",)
  assert json.loads((run / "config.json").read_text())["config"]["task"] == "probe"


def test_features_are_made_once_for_all_labels_and_choices(place, tmp_path, monkeypatch):
  def refuse(self, frames, **boxes):
    raise AssertionError("these features exist")

  monkeypatch.setattr(feature_encoders.TokenFeatures, "features", refuse)
  report = jobs.job_of(get_config("tiny")).run(
    config_of(place, data__labels="shown", probe__protocol="clips", probe__tokens="vocal|ambient"), tmp_path
  )
  assert report.rows[0].name == "vocal beside ambient, 5 clips of 16" and report.scores.confusion is None
  assert not (tmp_path / "confusion.png").exists() and (tmp_path / "classes.png").exists()
  saved = SavedProbe.load(tmp_path)
  assert saved.probe.several and saved.beside and len(saved.probe.kernel) == 64


def test_another_encoder_behind_the_same_probe(place, tmp_path):
  config = config_of(place, encoder__kind="picture", encoder__checkpoint=None, data__cache=None)
  report = jobs.job_of(config).run(config, tmp_path)
  assert [row.name for row in report.rows] == ["picture, 80 frames"]  # it has no vocal token to compare with
  assert SavedProbe.load(tmp_path).encoder == "picture"


def test_an_encoder_of_video_is_probed_on_as_many_frames(place, tmp_path, monkeypatch):
  class Video:
    name, checkpoint, sha256, row_frames = "video", "none", "video", 16
    names = tokens = ("clip",)

    def __init__(self, image_size):
      self.image_size = image_size

    def features(self, frames, *, face_box, mouth_box):
      return {"clip": frames.mean(axis=(1, 2), dtype=np.float64)[: 2 * 12 : 12] / 255}

  monkeypatch.setitem(feature_encoders.ENCODERS, "video", lambda directory: Video(int(directory)))
  config = config_of(place, encoder__kind="video", encoder__checkpoint="33", data__cache=None)
  with pytest.raises(InputError, match="contains clips of 32 pixels, not 33"):
    jobs.run(config, tmp_path)
  assert not any(tmp_path.iterdir())
  config.encoder.checkpoint = "24"
  config.compare = (("", "frames", 16), ("", "all", 0), ("vocal", "frames", 80))
  report = jobs.job_of(config).run(config, tmp_path)
  assert [row.name for row in report.rows] == ["clip, 80 frames", "clip, 16 frames", "clip, all rows"]
  assert "40 clips have fewer than 80 frames: some of their frames count several times" in report.notes
  assert SavedProbe.load(tmp_path).sampling.row_frames == 16


def test_probes_of_the_same_features_are_equal(place, tmp_path):
  config = config_of(place)
  jobs.run(config, tmp_path)
  np.testing.assert_array_equal(SavedProbe.load(tmp_path).probe.kernel, SavedProbe.load(place / "run").probe.kernel)


@pytest.mark.parametrize(
  "changes, sentence",
  [
    (dict(data__labels="mood"), "unknown data.labels 'mood'"),
    (dict(data__leave_out=("calm",)), "leave_out names 'calm', which is no class"),
    (dict(probe__tokens="vocal+audio"), "probe.tokens names 'audio': SyncLipMAE has identity, vocal, ambient"),
    (dict(probe__frames=0), "probe.frames, probe.clips and probe.clip_frames are at least 1"),
    (dict(encoder__kind="marlin9"), "unknown encoder.kind 'marlin9': one of synclipmae"),
    (dict(encoder__kind="videomae"), "does not describe a video encoder"),
    (dict(encoder__kind="marlin", encoder__checkpoint=None), "no MARLIN comes with the package: give"),
    (dict(encoder__kind="picture"), "the bare picture has no parameters and takes no checkpoint"),
  ],
)
def test_wrong_settings_are_one_sentence_and_nothing_is_written(place, tmp_path, changes, sentence):
  with pytest.raises(InputError, match=sentence.replace("+", r"\+")):
    jobs.run(config_of(place, **changes), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_comparisons_that_are_no_triples_are_refused(place, tmp_path):
  config = config_of(place)
  config.compare = (("vocal", 80),)
  with pytest.raises(InputError, match="compare lists"):
    jobs.run(config, tmp_path / "run")


def with_emotions(monkeypatch, change):
  """Labels of the records as `change` (row, emotion) gives them."""
  read = probe.labelling.label_clips
  changed = lambda records: ({**record, "emotion": change(k, record["emotion"])} for k, record in enumerate(records))
  monkeypatch.setattr(probe.labelling, "label_clips", lambda records, *rest: read(changed(records), *rest))


def test_a_class_with_one_clip_and_records_without_labels_are_refused(place, tmp_path, monkeypatch):
  with_emotions(monkeypatch, lambda row, emotion: "sad" if row == 0 else "happy")
  with pytest.raises(InputError, match="the class 'sad' has one training clip, a probe needs 2"):
    jobs.run(config_of(place), tmp_path / "run")
  monkeypatch.undo()
  with_emotions(monkeypatch, lambda row, emotion: "")
  with pytest.raises(InputError, match="no clip of train of .* has a label: there is nothing to fit on"):
    jobs.run(config_of(place), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_classes_that_nobody_was_fitted_on_and_clips_without_a_label_are_left_out(place, tmp_path, monkeypatch):
  with_emotions(monkeypatch, lambda row, emotion: "" if row == 1 else "sad" if row % 2 else "happy")
  report = jobs.job_of(get_config("tiny")).run(config_of(place), tmp_path)
  assert list(report.scores.classes) == ["happy", "sad"]
  assert any("has the class neutral, angry, fear" in note for note in report.notes)
  assert "2 clips without such a label are left out" in report.notes


def test_features_that_are_not_numbers_leave_no_cache(place, tmp_path, monkeypatch):
  whole = feature_encoders.PictureFeatures.features
  broken = lambda self, frames, **boxes: {"picture": whole(self, frames, **boxes)["picture"] * np.nan}
  monkeypatch.setattr(feature_encoders.PictureFeatures, "features", broken)
  config = config_of(place, encoder__kind="picture", encoder__checkpoint=None, data__cache=str(tmp_path / "cache"))
  with pytest.raises(InputError, match="the features of .* are not finite"):
    jobs.run(config, tmp_path / "run")
  monkeypatch.undo()
  jobs.run(config, tmp_path / "run")
  assert (tmp_path / "run" / "eval.json").exists()


def test_a_validation_split_chooses_l2_and_is_fitted_on_at_the_end():
  part = probe.Gathered(
    keys=tuple("abcdef"), identities=("p", "p", "q", "q", "r", "s"), targets=np.ones((6, 1), bool), features={},
    short=0, unlabelled=0,
  )  # fmt: skip
  held_out = lambda part, watched: probe.held_out_clips(part, watched).tolist()
  assert held_out(part, 2) == [False] * 4 + [True] * 2
  assert held_out(part, 0) == [True, True] + [False] * 4  # every fifth person
  assert held_out(dataclasses.replace(part, identities=("p",) * 6), 0) == [True, False, False, False, False, True]


def test_records_of_other_classes_are_not_mixed(place, tmp_path):
  prepared = place / "run" / "data" / "prepared"
  other = tmp_path / "other"
  shutil.copytree(prepared, other)
  (meta,) = other.glob("records/*/clips/*/metadata.json")
  meta.write_text(meta.read_text().replace('"disgust"', '"calm"'))
  config = config_of(place)
  config.data.sources = ((str(prepared), 1.0), (str(other), 1.0))
  with pytest.raises(InputError, match="have other classes"):
    jobs.run(config, tmp_path / "run")
