from __future__ import annotations

import numpy as np
import pytest
from footage import clicks, numbered, write_video

from synclipmae_jax.data.media import audio, video
from synclipmae_jax.types import InputError

MILLISECOND = 16  # samples


def read(path, seconds):
  return audio.Track(path, origin=video.probe(path).origin).read(0, round(seconds * 16000))


def flashes(count, at):
  return (np.full((64, 64, 3), 230 if index == at else 20, np.uint8) for index in range(count))


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv"])
@pytest.mark.parametrize(("rate", "layout"), [(16000, "mono"), (44100, "stereo"), (48000, "mono")])
def test_click_and_flash_stay_together(tmp_path, name, rate, layout):
  sound = clicks(4, [2.0], rate=rate)
  path = write_video(tmp_path / name, flashes(120, 60), fps=30, sound=sound, rate=rate, layout=layout)
  heard = read(path, 4)
  seen = [frame.image.mean() for frame in video.read_frames(path)]
  assert abs(np.abs(heard).argmax() - 2.0 * 16000) <= MILLISECOND
  assert np.argmax(seen) == 50


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_start_offsets_are_honoured(tmp_path, suffix):
  late_sound = write_video(
    tmp_path / f"s{suffix}", map(numbered, range(100)), sound_times=[(0.5, clicks(3, [1.0], rate=48000))], rate=48000
  )
  assert abs(np.abs(read(late_sound, 4)).argmax() - 1.5 * 16000) <= MILLISECOND
  assert not read(late_sound, 4)[: int(0.45 * 16000)].any()
  late_picture = write_video(
    tmp_path / f"p{suffix}", map(numbered, range(100)), times=[0.6 + k / 25 for k in range(100)],
    sound=clicks(4, [1.0], rate=48000), rate=48000,
  )  # fmt: skip
  assert abs(np.abs(read(late_picture, 3)).argmax() - 0.4 * 16000) <= MILLISECOND


def test_a_gap_in_the_sound_does_not_pull_what_follows_forward(tmp_path):
  stretches = [(0, clicks(1, [0.5])), (2.5, clicks(1, [0.5]))]
  path = write_video(tmp_path / "gap.mkv", map(numbered, range(100)), sound_times=stretches, sound_codec="flac")
  heard = read(path, 3.5)
  assert abs(np.abs(heard[:16000]).argmax() - 8000) <= MILLISECOND
  assert abs(np.abs(heard[40000:]).argmax() - 8000) <= MILLISECOND
  assert not heard[17_000:39_000].any()


def test_stretches_equal_the_whole(tmp_path):
  path = write_video(tmp_path / "a.mp4", map(numbered, range(75)), sound=clicks(3, [1.0], noise=0.2))
  whole, track = read(path, 3), audio.Track(path, origin=video.probe(path).origin)
  parts = [track.read(first, first + 5000) for first in range(0, 45_000, 5000)]
  np.testing.assert_array_equal(np.concatenate(parts), whole[:45_000])
  assert audio.Track(path, origin=video.probe(path).origin).read(10_000_000, 10_000_100).shape == (100,)


def test_flac_is_exact_to_16_bits():
  sound = np.random.default_rng(0).normal(0, 0.2, 100_001).astype(np.float32)
  back = audio.decode_flac(audio.encode_flac(sound))
  assert back.dtype == np.float32 and back.shape == sound.shape
  np.testing.assert_array_equal(back, np.rint(sound * 32768).clip(-32768, 32767) / 32768)


def test_no_sound_is_said(tmp_path):
  path = write_video(tmp_path / "mute.mp4", map(numbered, range(30)))
  with pytest.raises(InputError, match="no sound track"):
    list(audio.read_chunks(path, origin=0))
  with pytest.raises(InputError, match="no sound track"):
    video.probe(path)
