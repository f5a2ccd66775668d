from __future__ import annotations

import csv
import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from data.footage import numbered, write_video
from tiny_checkpoint import write_tiny

from synclipmae_jax.apps import sync
from synclipmae_jax.apps.cli import main as cli
from synclipmae_jax.apps.footage import find_videos, outputs
from synclipmae_jax.sync import report
from synclipmae_jax.types import InputError

ISSUE_KEYS = {
  "file", "fps", "duration_s", "lag_frames", "lag_ms", "confidence", "interval", "score", "verdict",
  "drift_ms_per_min", "faces", "frames",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A checkpoint, and a folder with two good files and a bad one."""
  place = tmp_path_factory.mktemp("sync")
  write_tiny(place / "checkpoint")
  (place / "videos" / "deeper").mkdir(parents=True)
  sound = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
  images = [numbered(t * 40503 % 65536) for t in range(50)]
  write_video(place / "videos" / "a.mp4", images, sound=sound)
  write_video(place / "videos" / "deeper" / "b.mkv", images, sound=sound)
  (place / "videos" / "bad.mp4").write_text("not a film")
  return place


def run(place, *arguments):
  return cli(["sync", *map(str, arguments), "--checkpoint", str(place / "checkpoint"), "--faces", "full_frame"])


def test_one_file_is_one_object(place, capsys):
  assert run(place, place / "videos" / "a.mp4", "--json") == 0
  answer = json.loads(capsys.readouterr().out)
  assert set(answer) >= ISSUE_KEYS and set(answer["frames"][0]) == {"t", "lag", "score", "face", "speech"}
  assert answer["fps"] == 25 and answer["duration_s"] == 2 and len(answer["frames"]) == 50
  assert "this checkpoint was trained on synthetic faces only" in answer["notes"]


def test_a_folder_with_a_broken_file_gives_the_others_and_exit_1(place, capsys):
  assert run(place, place / "videos", "--json", "--csv", place / "answers.csv", "--plot", place / "plots") == 1
  out, err = capsys.readouterr()
  answers = json.loads(out)
  assert [answer["file"].rsplit("/", 1)[1] for answer in answers] == ["a.mp4", "bad.mp4", "b.mkv"]
  assert ["error" in answer for answer in answers] == [False, True, False]
  assert "bad.mp4: it cannot be read as a video" in err and "Traceback" not in err
  with (place / "answers.csv").open() as file:
    assert len(list(csv.DictReader(file))) == 2
  assert sorted(path.name for path in (place / "plots").iterdir()) == ["a.png", "b.png"]


@pytest.mark.slow
def test_processes_give_the_same_answers(place, capsys):
  assert run(place, place / "videos" / "*.mp4", place / "videos" / "deeper", "--json", "--workers", 2) == 1
  several = json.loads(capsys.readouterr().out)
  assert run(place, place / "videos" / "a.mp4", "--json") == 0
  one = json.loads(capsys.readouterr().out)
  assert several[0]["score"] == pytest.approx(one["score"], abs=1e-3) and several[0]["verdict"] == one["verdict"]
  assert [("error" in answer) for answer in several] == [False, True, False]


def test_without_json_the_answer_is_a_table(place, capsys):
  assert run(place, place / "videos" / "a.mp4") == 0
  answer = sync._model.sync(place / "videos" / "a.mp4", faces="full_frame")
  assert capsys.readouterr().out == report.table([answer]) + "\n"


@pytest.mark.parametrize(
  "arguments, complaint",
  [
    (["videos/bad.mp4"], "cannot be read as a video"),
    (["videos/absent.mp4"], "the file is missing"),
    (["checkpoint"], "there is no video"),
    (["videos/*.avi"], "no file matches"),
    (["videos/a.mp4", "--workers", "0"], "at least 1, not 0"),
  ],
)
def test_what_is_wrong_is_one_sentence_and_exit_2(place, monkeypatch, capsys, arguments, complaint):
  monkeypatch.chdir(place)
  assert run(place, *arguments) == 2
  err = capsys.readouterr().err
  assert complaint in err and err.count("\n") == 1


def test_no_checkpoint_is_one_sentence(place, capsys):
  assert cli(["sync", str(place / "videos" / "a.mp4"), "--checkpoint", str(place / "videos")]) == 2
  assert "no complete checkpoint" in capsys.readouterr().err


def test_a_file_is_mended_only_where_a_lag_was_found(place, monkeypatch, tmp_path, capsys):
  assert run(place, place / "videos" / "a.mp4", "--json") == 0
  answer = json.loads(capsys.readouterr().out)
  model = sync._model
  for verdict, lag in (("out_of_sync", 200.0), ("in_sync", 40.0), ("not_synchronizable", None)):
    monkeypatch.setattr(sync, "_answer", lambda video, *_, verdict=verdict, lag=lag: _with(model, video, verdict, lag))
    code = run(place, place / "videos" / "a.mp4", "--fix", tmp_path / f"{verdict}.mp4")
    assert code == (2 if lag is None else 0)
    assert (tmp_path / f"{verdict}.mp4").exists() == (lag is not None)
  assert "is not written because no lag was found" in capsys.readouterr().err and answer["verdict"]


def _with(model, video, verdict, lag):
  result = model.sync(video, faces="full_frame")
  frames = None if lag is None else lag / 40
  return dataclasses.replace(result, verdict=verdict, lag_ms=lag, lag_frames=frames, interval=(0, 6), confidence=0.9)


def test_outputs_of_two_files_never_meet(tmp_path):
  with pytest.raises(InputError, match="several of these files"):
    outputs(str(tmp_path), ["x/a.mp4", "x/a.mkv"], several=True, suffix=".png")
  paths = outputs(str(tmp_path), ["x/a.mp4", "x/y/a.mkv", "x/b.mp4"], several=True, suffix=".png")
  assert [str(path.relative_to(tmp_path)) for path in paths.values()] == ["a.png", "y/a.png", "b.png"]
  assert all(path.parent.is_dir() for path in paths.values())
  assert outputs(str(tmp_path / "new"), ["x/y/a.mkv"], several=True) == {"x/y/a.mkv": tmp_path / "new" / "a.mkv"}


def test_a_folder_with_one_file_is_a_folder(place, tmp_path, capsys):
  deeper = place / "videos" / "deeper"
  assert run(place, deeper, "--json", "--plot", tmp_path / "plots") == 0
  (answer,) = json.loads(capsys.readouterr().out)
  assert answer["file"].endswith("b.mkv") and [path.name for path in (tmp_path / "plots").iterdir()] == ["b.png"]


def test_all_that_can_be_read_is_found_in_a_folder(tmp_path):
  for name in ("a.avi", "b.MTS", "c.m4v", "d.txt", "e.faces.npz"):
    (tmp_path / name).touch()
  found, several = find_videos([str(tmp_path)])
  assert [name.rsplit("/", 1)[1] for name in found] == ["a.avi", "b.MTS", "c.m4v"] and several


def test_a_destination_that_cannot_be_is_said_before_the_work(place, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sync, "_answers", lambda *_: 1 // 0)
  (tmp_path / "there.mp4").write_text("mine")
  assert run(place, place / "videos" / "a.mp4", "--fix", tmp_path / "there.mp4") == 2
  assert run(place, place / "videos" / "a.mp4", "--fix", tmp_path / "a.gif") == 2
  err = capsys.readouterr().err
  assert "exists already" in err and "must name a container" in err and (tmp_path / "there.mp4").read_text() == "mine"


def test_what_is_lost_in_mending_is_said(place, monkeypatch, tmp_path, capsys):
  assert run(place, place / "videos" / "a.mp4", "--json") == 0
  model = sync._model
  monkeypatch.setattr(sync, "_answer", lambda video, *_: _with(model, video, "out_of_sync", -200.0))
  assert run(place, place / "videos" / "deeper" / "b.mkv", "--fix", tmp_path / "b.mkv") == 0
  assert "b.mkv: the picture begins 200 ms later" in capsys.readouterr().err


@pytest.mark.parametrize(
  "arguments, complaint",
  [
    (["--csv", "a.mp4"], "one of the files to be read"),
    (["--plot", "link.mp4"], "one of the files to be read"),
    (["--fix", "."], "one of the files to be read"),
    (["--csv", "absent/a.csv"], "there is no folder absent"),
    (["b.mp4", "--plot", "b.mp4"], "not a folder"),
  ],
)
def test_no_input_is_overwritten_and_no_folder_is_said_first(tmp_path, monkeypatch, capsys, arguments, complaint):
  monkeypatch.chdir(tmp_path)
  for name in ("a.mp4", "b.mp4"):
    (tmp_path / name).write_text("mine")
  (tmp_path / "link.mp4").symlink_to("a.mp4")
  assert cli(["sync", "a.mp4", *arguments, "--checkpoint", "absent"]) == 2
  err = capsys.readouterr().err
  assert complaint in err and err.count("\n") == 1
  assert [(tmp_path / name).read_text() for name in ("a.mp4", "b.mp4")] == ["mine", "mine"]


def test_what_fails_after_the_answer_costs_no_answer(place, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sync, "_fix", lambda result, out: 1 // 0)
  assert run(place, place / "videos" / "a.mp4", "--fix", tmp_path / "b.mp4", "--json") == 2
  out, err = capsys.readouterr()
  assert json.loads(out)["duration_s"] == 2 and "a.mp4: unexpected ZeroDivisionError" in err


def test_a_missing_checkpoint_is_said_once_whatever_the_workers(place, capsys):
  both = [str(place / "videos" / "a.mp4"), str(place / "videos" / "deeper" / "b.mkv")]
  assert cli(["sync", *both, "--workers", "2", "--checkpoint", str(place / "absent")]) == 2
  err = capsys.readouterr().err
  assert "no complete checkpoint" in err and err.count("\n") == 1


def test_a_name_that_breaks_the_line_is_complained_of_in_one(place, tmp_path, capsys):
  (tmp_path / "two\nlines\x1b[31m.mp4").write_text("not a film")
  assert run(place, tmp_path / "two\nlines\x1b[31m.mp4") == 2
  err = capsys.readouterr().err
  assert err.count("\n") == 1 and "\x1b" not in err


class Deadly(str):
  """A name that ends the process that receives it, as a crash of a decoder does."""

  def __reduce__(self):
    return os._exit, (1,)


@pytest.mark.slow
def test_a_file_that_ends_its_process_costs_the_others_nothing(place, monkeypatch, capsys):
  videos = [str(place / "videos" / "a.mp4"), Deadly("deadly.mp4"), str(place / "videos" / "deeper" / "b.mkv")]
  monkeypatch.setattr(sync, "find_videos", lambda _: (videos, True))
  assert run(place, "videos", "--json") == 1
  out, err = capsys.readouterr()
  answers = json.loads(out)
  assert ["error" in answer for answer in answers] == [False, True, False]
  assert "ended the process that read it" in answers[1]["error"] and "Traceback" not in err


def test_the_sound_track_is_chosen(place, tmp_path, capsys):
  assert run(place, place / "videos" / "a.mp4", "--audio-track", "1", "--json") == 0
  assert run(place, place / "videos" / "a.mp4", "--audio-track", "2") == 2
  assert "it has 1 sound track: there is no track 2" in capsys.readouterr().err


def test_outputs_go_through_links_and_pipes_and_say_their_names(place, tmp_path, capsys):
  video = place / "videos" / "a.mp4"
  (tmp_path / "link.csv").symlink_to("answers.csv")
  (tmp_path / "out").symlink_to("/dev/null")
  assert run(place, video, "--csv", tmp_path / "link.csv", "--plot", tmp_path / "plot.v1") == 0
  assert "the picture is written to" in (err := capsys.readouterr().err) and "plot.v1.png" in err
  assert (tmp_path / "link.csv").is_symlink() and "a.mp4" in (tmp_path / "answers.csv").read_text()
  assert run(place, video, "--csv", tmp_path / "out", "--plot", tmp_path / "out") == 0
  assert run(place, video, "--plot", f"{tmp_path / 'plots'}/") == 0
  assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.csv", "link.csv", "out", "plot.v1.png", "plots"]
  assert (tmp_path / "out").is_symlink() and [path.name for path in (tmp_path / "plots").iterdir()] == ["a.png"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_full_disk_is_one_sentence(place, tmp_path):
  (tmp_path / "full").symlink_to("/dev/full")
  video = ["sync", str(place / "videos" / "a.mp4"), "--checkpoint", str(place / "checkpoint"), "--faces", "full_frame"]
  command = [sys.executable, "-m", "synclipmae_jax.apps.cli", *video]
  done = subprocess.run([*command, "--csv", str(tmp_path / "full")], capture_output=True, text=True)
  assert done.returncode == 2 and "full cannot be written (No space left on device)" in done.stderr
  with open("/dev/full", "w") as full:
    done = subprocess.run([*command, "--json"], stdout=full, stderr=subprocess.PIPE, text=True)
  assert done.returncode == 2 and done.stderr == "synclipmae sync: standard output: No space left on device\n"
  assert os.listdir(tmp_path) == ["full"]


def test_what_no_container_of_ours_holds_is_mended_into_matroska(tmp_path):
  paths = outputs(str(tmp_path), ["x/a.mxf", "x/b.MOV"], several=True)
  assert [path.name for path in paths.values()] == ["a.mkv", "b.MOV"]
