from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
from data.footage import numbered, write_video
from tiny_checkpoint import write_tiny

from synclipmae_jax import SyncLipMAE
from synclipmae_jax.apps.cli import main as cli
from synclipmae_jax.probing.linear_probe import LinearProbe
from synclipmae_jax.probing.sampling import Sampling
from synclipmae_jax.probing.saved import SavedProbe
from synclipmae_jax.run.feature_encoders import visual_hash

WIDTH = 32  # of the tiny checkpoint's tokens


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  place = tmp_path_factory.mktemp("emotion")
  write_tiny(place / "checkpoint")
  sound = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
  for name in ("a", "b"):
    write_video(place / f"{name}.mp4", [numbered(t * 40503 % 65536) for t in range(50)], sound=sound)
  (place / "silent").mkdir()
  write_video(place / "silent" / "a.mp4", [numbered(t * 40503 % 65536) for t in range(50)])
  (place / "bad.mp4").write_text("not a film")
  model = SyncLipMAE.load(place / "checkpoint")
  vocal = model.embed(place / "a.mp4", faces="full_frame").vocal
  kernel = np.zeros((WIDTH, 3), np.float32)  # the first class holds in the first frames of a.mp4, the second later
  direction = vocal[:25].mean(0) - vocal[25:].mean(0)
  kernel[:, 0], kernel[:, 1] = direction, -direction
  middle = (vocal.mean(0) @ direction).item()
  probe = LinearProbe(
    kernel=kernel, bias=np.array([-middle, middle, -50], np.float32), classes=("early", "late", "never"), several=False
  )
  (place / "probe").mkdir()
  saved = SavedProbe(
    probe=probe, labels="emotion", tokens=("vocal",), sampling=Sampling(frames=80), encoder="synclipmae",
    checkpoint="its checkpoint", sha256=visual_hash(model), notes=("it was fitted on synthetic faces only",),
  )  # fmt: skip
  saved.save(place / "probe")
  (place / "several").mkdir()
  dataclasses.replace(saved, probe=dataclasses.replace(probe, several=True)).save(place / "several")
  (place / "other").mkdir()
  dataclasses.replace(saved, encoder="videomae").save(place / "other")
  return place


def run(place, *arguments, probe="probe"):
  known = ["--checkpoint", place / "checkpoint", "--probe", place / probe, "--faces", "full_frame"]
  return cli(["emotion", *map(str, [*arguments, *known])])


def test_one_file(place, tmp_path, capsys):
  assert run(place, place / "a.mp4", "--json", "--csv", tmp_path / "a.csv", "--plot", tmp_path / "a.png") == 0
  out, err = capsys.readouterr()
  entry = json.loads(out)
  assert entry["frames"] == entry["frames_with_a_face"] == 50
  assert set(entry["probabilities"]) == {"early", "late", "never"}
  assert abs(sum(entry["probabilities"].values()) - 1) < 1e-3
  assert {"early", "late"} <= {stretch["label"] for stretch in entry["stretches"]}
  assert "the probe: it was fitted on synthetic faces only" in err
  assert "seen in 50 frames, fewer than 80: some count several times" in err
  rows = list(csv.DictReader((tmp_path / "a.csv").open()))
  assert [row["label"] for row in rows if row["part"] == "file"] == entry["labels"]
  assert len(rows) == 1 + len(entry["stretches"])
  assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
  assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.png"]


def test_the_sound_does_not_matter(place, capsys):
  found = []
  for video in (place / "a.mp4", place / "silent" / "a.mp4"):
    assert run(place, video, "--json") == 0
    found.append(json.loads(capsys.readouterr().out))
  assert found[0]["probabilities"] == found[1]["probabilities"] and found[0]["stretches"] == found[1]["stretches"]


def test_several_files_and_a_bad_one(place, tmp_path, capsys):
  assert run(place, place / "*.mp4", "--json", "--plot", tmp_path / "plots", probe="several") == 1
  out, err = capsys.readouterr()
  entries = json.loads(out)
  assert [entry["file"].rsplit("/", 1)[1] for entry in entries] == ["a.mp4", "b.mp4", "bad.mp4"]
  assert "error" in entries[2] and "bad.mp4: it cannot be read" in err
  assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["a.png", "b.png"]
  assert run(place, place / "a.mp4", place / "b.mp4") == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith(str(place / "a.mp4")) and " s  " in lines[1]


@pytest.mark.parametrize(
  "arguments, sentence",
  [
    (["--probe", "nowhere"], "there is no probe in nowhere"),
    (["--probe", "PLACE/other"], "this probe reads the features of videomae"),
    (["--window", "0"], "the window must be longer than 0 s"),
    (["--csv", "PLACE/a.mp4"], "it is never overwritten"),
  ],
)
def test_wrong_arguments(place, capsys, arguments, sentence):
  arguments = [argument.replace("PLACE", str(place)) for argument in arguments]
  base = ["emotion", str(place / "a.mp4"), "--checkpoint", str(place / "checkpoint"), "--probe", str(place / "probe")]
  assert cli([*base, *arguments]) == 2
  assert sentence in capsys.readouterr().err


def test_a_probe_of_another_checkpoint_is_refused(place, capsys):
  assert cli(["emotion", str(place / "a.mp4"), "--probe", str(place / "probe")]) == 2  # with the embedded model
  assert "this probe was made for another checkpoint (its checkpoint)" in capsys.readouterr().err
