"""`configs/dub.py:evaluate` on folders: rows, the table, refusals."""

import json

import numpy as np
import pytest
from footage import write_video
from photograph import picture

from configs.dub import get_config
from synclipmae_jax.run import jobs
from synclipmae_jax.types import InputError
from tests.tiny_checkpoint import write_tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """True videos; a system that is nearly right but drifts to red; one that is another size, and lacks a video."""
  place = tmp_path_factory.mktemp("scores")
  write_tiny(place / "checkpoint")
  for folder in ("truth", "near", "small"):
    (place / folder).mkdir()
  sound = 0.3 * np.sin(np.arange(640 * 34) * 0.1).astype(np.float32)
  heads = [picture((100 + t // 8, 100, 150), width=200, height=200) for t in range(34)]
  for name in ("a", "b"):
    write_video(place / "truth" / f"{name}.mp4", heads, sound=sound)
  redder = [np.clip(head + np.array([t // 2, 0, 0]), 0, 255).astype(np.uint8) for t, head in enumerate(heads)]
  write_video(place / "near" / "a.mp4", redder, sound=sound)
  (place / "near" / "b.mp4").write_text("not a film")
  write_video(place / "small" / "a.mkv", [head[::2, ::2] for head in heads], sound=sound)
  return place


def config_of(place, *systems, **data):
  config = get_config("evaluate")
  config.checkpoint = str(place / "checkpoint")
  config.data.systems = tuple((name, str(place / name)) for name in systems)
  for name, folder in data.items():
    config.data[name] = str(place / folder)
  return config


@pytest.mark.slow
def test_every_system_is_measured_in_the_box_of_the_truth(place, tmp_path, capsys):
  config = config_of(place, "near", "small", truth="truth")
  config.faces = "full_frame"
  jobs.run(config, tmp_path)
  report = json.loads((tmp_path / "dub_scores.json").read_text())
  rows = {(row["system"], row["video"]): row for row in report["rows"]}
  assert set(rows) == {("truth", "a"), ("truth", "b"), ("near", "a"), ("near", "b"), ("small", "a")}
  near, small = rows["near", "a"], rows["small", "a"]
  assert near["frames"] == small["frames"] == 34 and "cannot be read" in rows["near", "b"]["error"]
  assert report["missing"] == {"small": ["b"]} and report["systems"]["near"]["failed"] == 1
  assert near["values"]["drift"] == pytest.approx(8.5, abs=1.5) and small["values"]["drift"] < 1
  assert near["values"]["ssim_mouth"] > small["values"]["ssim_mouth"] and near["values"]["psnr_face"] > 25
  assert 0 <= near["values"]["mouth_distance"] < 5 and near["values"]["identity"] > 0.9
  assert near["values"].keys() >= {"sync", "in_sync"} and rows["truth", "a"]["values"].keys() == {"sync", "in_sync"}
  table = (tmp_path / "dub_scores.md").read_text()
  assert "| near " in table and "small lacks b" in table and "LSE" not in table
  assert table.split("\n\n", 1)[1].strip() in capsys.readouterr().out


@pytest.mark.slow
def test_without_truth_nothing_is_said_of_the_true_mouth(place, tmp_path):
  config = config_of(place, "small", source="truth")
  config.faces = "full_frame"
  jobs.run(config, tmp_path)
  report = json.loads((tmp_path / "dub_scores.json").read_text())
  (row,) = (row for row in report["rows"] if row["system"] == "small")
  assert row["values"].keys() == {"sync", "in_sync", "identity", "drift"} and report["reference"] == "source"


@pytest.mark.parametrize(("systems", "data", "sentence"), [
  ((), {"truth": "truth"}, "name the folders"), (("near",), {}, "true or of undubbed"),
  (("nowhere",), {"truth": "truth"}, "there is no folder"), (("checkpoint",), {"truth": "truth"}, "no video"),
])  # fmt: skip
def test_wrong_settings_are_refused_before_anything_is_written(tmp_path, systems, data, sentence):
  for folder in ("truth", "near", "checkpoint"):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / ("a.txt" if folder == "checkpoint" else "a.mp4")).touch()
  with pytest.raises(InputError, match=sentence):
    jobs.run(config_of(tmp_path, *systems, **data), tmp_path / "workdir")
  assert not (tmp_path / "workdir").exists()
