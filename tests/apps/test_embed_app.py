from __future__ import annotations

import numpy as np
import pytest
from data.footage import numbered, write_video
from safetensors.numpy import load_file
from tiny_checkpoint import write_tiny

from synclipmae_jax import SyncLipMAE
from synclipmae_jax.apps.cli import main as cli


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  place = tmp_path_factory.mktemp("embed")
  write_tiny(place / "checkpoint")
  sound = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
  for name in ("a", "b"):
    write_video(place / f"{name}.mp4", [numbered(t * 40503 % 65536) for t in range(50)], sound=sound)
  (place / "bad.mp4").write_text("not a film")
  return place


def run(place, *arguments):
  return cli(["embed", *map(str, arguments), "--checkpoint", str(place / "checkpoint"), "--faces", "full_frame"])


def test_one_file_in_both_formats(place, tmp_path):
  assert run(place, place / "a.mp4", "--out", tmp_path / "a.npz") == 0
  assert run(place, place / "a.mp4", "--out", tmp_path / "a.safetensors") == 0
  with np.load(tmp_path / "a.npz") as stored:
    tokens = dict(stored)
  assert {name: tokens[name].shape for name in tokens} == {
    "identity": (50, 32), "vocal": (50, 32), "ambient": (50, 32), "audio": (50, 32), "times": (50,),
    "face_box": (50, 4),
  }  # fmt: skip
  same = load_file(tmp_path / "a.safetensors")
  assert set(same) == set(tokens)
  for name, array in tokens.items():
    np.testing.assert_allclose(same[name], array, atol=1e-6)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "a.safetensors"]  # nothing unfinished


def test_several_files_go_into_a_folder_and_a_bad_one_is_named(place, tmp_path, capsys):
  assert run(place, place / "*.mp4", "--out", tmp_path / "tokens") == 1
  assert sorted(path.name for path in (tmp_path / "tokens").iterdir()) == ["a.npz", "b.npz"]
  assert "bad.mp4: it cannot be read" in capsys.readouterr().err


def test_a_fault_of_the_decoder_costs_one_file(place, tmp_path, monkeypatch, capsys):
  real = SyncLipMAE.embed
  faulty = lambda self, path, **kwargs: 1 // 0 if str(path).endswith("a.mp4") else real(self, path, **kwargs)
  monkeypatch.setattr(SyncLipMAE, "embed", faulty)
  assert run(place, place / "a.mp4", place / "b.mp4", "--out", tmp_path) == 1
  assert [path.name for path in tmp_path.iterdir()] == ["b.npz"]
  assert "a.mp4: unexpected ZeroDivisionError" in capsys.readouterr().err


def test_tokens_that_cannot_be_written_cost_one_file(place, tmp_path, capsys):
  (tmp_path / ".a.unfinished.safetensors").mkdir()  # where it would be written
  options = ("--out", tmp_path, "--format", "safetensors")
  assert run(place, place / "a.mp4", place / "b.mp4", *options) == 1
  assert (tmp_path / "b.safetensors").exists() and not (tmp_path / "a.safetensors").exists()
  err = capsys.readouterr().err
  assert "a.mp4: " in err and "Traceback" not in err


def test_what_is_wrong_is_one_sentence_and_exit_2(place, tmp_path, capsys):
  assert run(place, place / "a.mp4", "--out", tmp_path / "a.txt") == 2
  assert run(place, place / "bad.mp4", "--out", tmp_path / "bad.npz") == 2
  out, err = capsys.readouterr()
  assert "written as .npz or .safetensors" in err and "cannot be read as a video" in err and err.count("\n") == 2
  assert not list(tmp_path.iterdir())


def test_a_file_whose_clock_starts_again_is_embedded_whole_and_that_is_said(place, tmp_path, capsys):
  sound = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
  path = write_video(tmp_path / "a.ts", [numbered(t) for t in range(50)], sound=sound)
  path.write_bytes(path.read_bytes() * 3)
  assert run(place, path, "--out", tmp_path / "a.npz") == 0
  with np.load(tmp_path / "a.npz") as tokens:
    assert len(tokens["times"]) == pytest.approx(150, abs=6) and np.isfinite(tokens["vocal"]).all()
  assert "a.ts: its clock starts again at 2." in capsys.readouterr().err


def test_tokens_go_through_a_link(place, tmp_path):
  (tmp_path / "link.npz").symlink_to("tokens.npz")
  assert run(place, place / "a.mp4", "--out", tmp_path / "link.npz") == 0
  assert (tmp_path / "link.npz").is_symlink() and np.load(tmp_path / "tokens.npz")["times"].shape == (50,)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["link.npz", "tokens.npz"]
