"""`configs/sync.py:real` on files: rows, totals, refusals."""

import json

import numpy as np
import pytest
from footage import numbered, write_video

from configs.sync import get_config
from synclipmae_jax.run import jobs
from synclipmae_jax.types import InputError
from tests.tiny_checkpoint import write_tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  place = tmp_path_factory.mktemp("real")
  write_tiny(place / "checkpoint")
  (place / "raw" / "deeper").mkdir(parents=True)
  rng = np.random.default_rng(0)
  for name, frames in (("a.mp4", 60), ("deeper/b.mkv", 50), ("short.mp4", 20)):
    images = [numbered(t * 40503 % 65536) for t in range(frames)]
    write_video(place / "raw" / name, images, sound=rng.normal(0, 0.1, 640 * frames).astype(np.float32))
  (place / "raw" / "bad.mp4").write_text("not a film")
  (place / "raw" / "notes.txt").write_text("no video either")
  return place


def config_of(place, **changes):
  config = get_config("real")
  config.update(dict(checkpoint=str(place / "checkpoint"), faces="full_frame", known_lag=0))
  config.data.raw = str(place / "raw")
  config.update(changes)
  return config


def test_every_file_has_a_row_and_the_unreadable_ones_their_sentence(place, tmp_path, capsys):
  jobs.run(config_of(place), tmp_path)
  report = json.loads((tmp_path / "real.json").read_text())
  rows = {row["file"]: row for row in report["rows"]}
  assert list(rows) == ["a.mp4", "bad.mp4", "deeper/b.mkv", "short.mp4"]
  assert "cannot be read as a video" in rows["bad.mp4"]["error"] and "too short" in rows["short.mp4"]["error"]
  assert (report["files"], report["unreadable"]) == (4, 2)
  assert report["files_with_a_face"] == report["frames_with_a_face"] == 1.0
  assert [rows[name]["frames"] for name in ("a.mp4", "deeper/b.mkv")] == [60, 50]
  for name in ("a.mp4", "deeper/b.mkv"):
    assert [case["shift"] == 0 for case in rows[name]["cases"]] == [True] + [False] * 3
    assert len(rows[name]["foreign"]) == 4  # each with the sound of the other
  assert (report["injected"]["cases"], report["known"]["cases"], report["foreign"]["cases"]) == (6, 8, 6)
  table = (tmp_path / "real.md").read_text()
  assert "| another file's sound |     6 |" in table and "- bad.mp4 cannot be read" in table
  assert table.split("\n\n", 1)[1].strip() in capsys.readouterr().out
  assert json.loads((tmp_path / "config.json").read_text())["config"]["task"] == "real_faces"


def test_one_file_has_no_foreign_sound(place, tmp_path):
  raw = tmp_path / "raw"
  raw.mkdir()
  (raw / "a.mp4").write_bytes((place / "raw" / "a.mp4").read_bytes())
  config = config_of(place, shifts=1, known_lag=None)
  config.data.raw = str(raw)
  jobs.run(config, tmp_path / "out")
  report = json.loads((tmp_path / "out" / "real.json").read_text())
  assert report["known"] is None and report["foreign"]["cases"] == 0 and report["injected"]["cases"] == 1


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({"data": {"raw": None}}, "name the folder"),
    ({"data": {"raw": "absent"}}, "there is no folder absent"),
    ({"shifts": 21}, "must be 1 to 20, not 21"),
    ({"seed": -1}, "0 or more, not -1"),
    ({"faces": "cameo"}, "unknown faces 'cameo'"),
    ({"checkpoint": "absent"}, "absent"),
  ],
)
def test_refuses_in_a_sentence_and_writes_nothing(place, tmp_path, changes, sentence):
  with pytest.raises(InputError, match=sentence):
    jobs.run(config_of(place, **changes), tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_a_folder_without_videos_is_refused(place, tmp_path):
  config = config_of(place)
  config.data.raw = str(place / "checkpoint")
  with pytest.raises(InputError, match="there is no video"):
    jobs.run(config, tmp_path / "out")
