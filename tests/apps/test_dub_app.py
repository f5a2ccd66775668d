"""`synclipmae dub`: what it prints and writes; the work itself is tested in dub/test_dubber.py."""

from __future__ import annotations

import json

import numpy as np
import pytest
from data.footage import write_video
from dub.dubbing_checkpoint import write_dubber
from PIL import Image

from synclipmae_jax.apps.cli import main as cli
from synclipmae_jax.data.media.audio import encode_flac


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  place = tmp_path_factory.mktemp("dub_app")
  write_dubber(place)
  y, x = np.mgrid[:64, :64]
  images = [np.stack([128 + 80 * np.sin(x / 9 + t / 5), 2 * y + 60, x + 90], -1).astype(np.uint8) for t in range(36)]
  sound = 0.3 * np.sin(np.arange(640 * 36) * 0.1).astype(np.float32)
  write_video(place / "a.mp4", images, sound=sound)
  (place / "speech.flac").write_bytes(encode_flac(sound[: 640 * 30]))
  return place


def run(place, *arguments, video="a.mp4"):
  return cli(["dub", str(place / video), "--checkpoint", str(place / "dubber"), "--encoder",
              str(place / "encoder" / "0"), "--faces", "full_frame", *map(str, arguments)])  # fmt: skip


@pytest.mark.slow
def test_one_object_says_what_was_done_and_how_well_it_is_in_sync(place, tmp_path, capsys):
  assert run(place, "--audio", place / "speech.flac", "--out", tmp_path / "x.mp4", "--json", "--steps", 1) == 0
  told = json.loads(capsys.readouterr().out)
  assert told["frames"] == told["dubbed"] == 36 and told["driven_by"] == "audio" and told["seconds"] == 1.44
  assert "silence follows the 1.20 s" in told["notes"][-1]
  assert told["sync"].keys() == {"source", "result"} and all(score["told"] for score in told["sync"].values())
  assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]


def test_the_preview_shows_the_mask_and_generates_nothing(place, tmp_path, capsys):
  assert run(place, "--preview", tmp_path / "first.png") == 0
  picture = np.asarray(Image.open(tmp_path / "first.png")).astype(int)
  redness = picture[..., 0] - picture[..., 1:].mean(axis=-1)
  assert picture.shape == (64, 64, 3) and redness[40, 32] > redness[5, 32] + 40
  assert "nothing was generated" in capsys.readouterr().out


def test_what_is_wrong_is_one_sentence_and_nothing_is_written(place, tmp_path, capsys):
  speech = ("--audio", place / "speech.flac")
  assert run(place, *speech) == 2
  assert run(place, *speech, "--drive-video", place / "a.mp4", "--out", tmp_path / "x.mp4") == 2
  assert run(place, *speech, "--out", place / "a.mp4") == 2
  assert run(place, *speech, "--out", tmp_path / "x.avi") == 2
  assert run(place, *speech, "--out", tmp_path / "x.mp4", video="nowhere.mp4") == 2
  assert run(place, "--audio", place / "encoder" / "0", "--out", tmp_path / "x.mp4") == 2
  err = capsys.readouterr().err.splitlines()
  assert len(err) == 6 and all(line.startswith("synclipmae dub: ") for line in err)
  parts = "--out", "either --audio or", "never overwritten", "suffix", "nowhere.mp4: the file is missing", "regular"
  assert all(part in line for line, part in zip(err, parts, strict=True)), err
  assert not list(tmp_path.iterdir())
