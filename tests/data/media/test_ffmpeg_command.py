"""The ffmpeg line that `sync` prints: its form, and, if ffmpeg is installed, its effect."""

from __future__ import annotations

import shlex
import shutil
import subprocess

import numpy as np
import pytest
from recordings import Recording, cut_by_edit_list, make, read

from synclipmae_jax.data.media.ffmpeg_command import ffmpeg_command
from synclipmae_jax.types import InputError

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def test_it_names_the_file_and_an_output_for_a_shell(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  line = "ffmpeg -i talk.mp4 -itsoffset 0.200 -i talk.mp4 -map 0:v -map 1:a -c copy talk_in_sync.mp4"
  assert ffmpeg_command("talk.mp4", 200.0) == line
  assert "-itsoffset 0.080 -i a.mkv -map 0:a -map 1:v -c copy a_in_sync.mkv" in ffmpeg_command("a.mkv", -80.0)
  assert ffmpeg_command("a.ts", 40.0).startswith("ffmpeg -copyts -i a.ts ")
  assert ffmpeg_command("a.avi", 40.0).endswith(" a_in_sync.mkv")
  odd = shlex.split(ffmpeg_command("it's  a $(rm) 12:30.mp4", 40.0))
  assert odd[2] == "./it's  a $(rm) 12:30.mp4" and odd[-1] == "./it's  a $(rm) 12:30_in_sync.mp4"
  assert shlex.split(ffmpeg_command("-y.mp4", 40.0))[2] == "./-y.mp4"
  (tmp_path / "talk_in_sync.mp4").touch()
  assert ffmpeg_command("talk.mp4", 200.0).endswith(" talk_in_sync_2.mp4")
  assert ffmpeg_command("two\nlines.mp4", 40.0) is None


@needs_ffmpeg
@pytest.mark.parametrize("lag", [0.2, -0.12])
@pytest.mark.parametrize(
  "name, changes",
  [
    ("a b.mp4", {}), ("a.mov", {}), ("a.mkv", {}), ("a.ts", {"start": 3.0}), ("a.m2ts", {"start": 40_000.0}),
    ("a.webm", {"codec": "libvpx", "sound_codec": "libopus"}),
    ("a.avi", {"codec": "mpeg4", "sound_codec": "pcm_s16le"}),
    ("b-frames.avi", {"b_frames": 3, "sound_codec": "pcm_s16le"}), ("b-frames.ts", {"b_frames": 3}),
  ],
)  # fmt: skip
def test_followed_it_leaves_no_lag(tmp_path, monkeypatch, name, changes, lag):
  monkeypatch.chdir(tmp_path)
  recording = Recording(early=lag, **changes)
  before = read(make(tmp_path / name, recording))
  line = ffmpeg_command(name, lag * 1000)
  done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60)
  assert done.returncode == 0, done.stderr[-500:]
  after = read(tmp_path / shlex.split(line)[-1])
  assert after.numbers == list(range(1, 76))
  left = np.median(before.lags(recording)) - lag
  assert after.lags(recording) == pytest.approx([left] * len(after.clicks), abs=0.01)  # the pre-skip of Opus


def test_where_ffmpeg_would_not_keep_the_times_none_is_given(tmp_path):
  part = make(tmp_path / "a.ts", Recording()).read_bytes()
  (tmp_path / "joined.ts").write_bytes(part + part)
  assert ffmpeg_command(tmp_path / "joined.ts", 200.0) is None
  cut_by_edit_list(make(tmp_path / "a.mp4", Recording()), tmp_path / "cut.mp4", (1.01, 3.0))
  assert ffmpeg_command(tmp_path / "cut.mp4", 200.0) is None
  (tmp_path / "a.mp4").write_bytes((tmp_path / "a.mp4").read_bytes().replace(b"ctts", b"free"))
  assert ffmpeg_command(tmp_path / "a.mp4", 200.0) is not None  # without B-frames
  source = make(tmp_path / "b.mp4", Recording(b_frames=2))
  source.write_bytes(source.read_bytes().replace(b"ctts", b"free"))
  assert ffmpeg_command(source, 200.0) is None


def test_a_file_that_no_copy_keeps_is_refused(tmp_path):
  cut_by_edit_list(make(tmp_path / "a.mp4", Recording()), tmp_path / "cut.mp4", (0.5, 1.3), (2.0, 3.0))
  with pytest.raises(InputError, match="several parts"):
    ffmpeg_command(tmp_path / "cut.mp4", 200.0)
