from __future__ import annotations

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from footage import number_of, numbered, write_video

from synclipmae_jax.data.media import video
from synclipmae_jax.types import InputError

NTSC = Fraction(30000, 1001)


def covering(times, end):
  """The source frame that covers t / 25, for every t, in exact arithmetic."""
  times = [Fraction(time) - Fraction(times[0]) for time in times]
  out, t = [], 0
  while Fraction(t, 25) < end:
    out.append(max(k for k, time in enumerate(times) if time <= Fraction(t, 25)))
    t += 1
  return out


@pytest.mark.parametrize(
  ("name", "fps", "codec", "tick"),
  [
    ("film.mp4", Fraction(24000, 1001), "libx264", 0),
    ("ours.mp4", 25, "libx264", 0),
    ("ntsc.mp4", NTSC, "libx264", 0),
    ("fast.mov", 50, "libx264", 0),
    ("slow.mp4", 12, "libx264", 0),
    ("ntsc.mkv", NTSC, "libx264", Fraction(1, 1000)),  # Matroska rounds timestamps to milliseconds
    ("web.webm", 30, "libvpx", Fraction(1, 1000)),
  ],
)
def test_frame_t_is_the_source_frame_that_covers_it(tmp_path, name, fps, codec, tick):
  count, fps = 90, Fraction(fps)
  path = write_video(tmp_path / name, map(numbered, range(count)), fps=fps, codec=codec)
  frames = list(video.read_frames(path))
  shown = [number_of(frame.image) for frame in frames]
  assert [frame.index for frame in frames] == list(range(len(frames)))
  assert [frame.source for frame in frames] == shown
  if not tick:
    assert shown == covering([k / fps for k in range(count)], count / fps)
  assert len(shown) == pytest.approx(count / fps * 25, abs=1)
  for t, k in enumerate(shown):
    assert k / fps - tick <= Fraction(t, 25) < (k + 1) / fps + tick


def test_variable_frame_rate_and_a_late_start(tmp_path):
  rng = np.random.default_rng(1)
  times = [Fraction(int(t), 90_000) for t in 27_000 + np.cumsum(rng.integers(900, 9000, 60))]
  path = write_video(tmp_path / "vfr.mp4", map(numbered, range(60)), times=times)
  shown = [number_of(frame.image) for frame in video.read_frames(path)]
  expected = covering(times, times[-1] - times[0])
  assert shown[: len(expected)] == expected
  assert set(shown[len(expected) :]) <= {59}
  assert video.probe(write_video(tmp_path / "v.mkv", map(numbered, range(9)), times=times[:9], sound=np.zeros(16000),
                                 sound_codec="flac")).origin == pytest.approx(float(times[0]), abs=1e-3)  # fmt: skip


def test_five_minutes_do_not_drift(tmp_path):
  count = round(NTSC * 300)
  blank = [np.full((16, 16, 3), value, np.uint8) for value in (20, 200)]
  path = write_video(tmp_path / "long.mp4", (blank[k % 2] for k in range(count)), fps=NTSC)
  for frame in video.read_frames(path):
    assert frame.source == Fraction(frame.index, 25) * NTSC // 1
  assert frame.index + 1 == 7_500


def test_turned_pictures_are_shown_upright(tmp_path):
  image = np.zeros((64, 32, 3), np.uint8)
  image[:16] = 255  # white on top
  path = tmp_path / "turned.mp4"
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=25, width=64, height=32, pix_fmt="yuv420p")
    stream.set_display_rotation(90)
    for _ in range(30):
      container.mux(stream.encode(av.VideoFrame.from_ndarray(np.rot90(image, 3).copy(), "rgb24")))
    container.mux(stream.encode())
  shown = next(video.read_frames(path)).image
  assert shown.shape == image.shape
  np.testing.assert_allclose(shown.astype(int), image, atol=24)


def test_short_side_only_shrinks(tmp_path):
  path = write_video(tmp_path / "a.mp4", (np.zeros((64, 96, 3), np.uint8) for _ in range(3)))
  assert next(video.read_frames(path, short_side=32)).image.shape == (32, 48, 3)
  assert next(video.read_frames(path, short_side=256)).image.shape == (64, 96, 3)


def test_written_clips_come_back_by_window(tmp_path):
  path = tmp_path / "clip.mp4"
  with video.ClipWriter(path, size=64) as writer:
    for number in range(100):
      writer.write(numbered(number, size=128))
  windows = video.read_windows(path.read_bytes(), [3, 50], count=16, size=64)
  assert [[number_of(image) for image in window] for window in windows] == [list(range(3, 19)), list(range(50, 66))]
  assert video.read_windows(path.read_bytes(), [0], count=100, size=32).shape == (1, 100, 32, 32, 3)
  with pytest.raises(ValueError, match="ends 6 frames before"):
    video.read_windows(path.read_bytes(), [90], count=16, size=64)


def test_colours_survive(tmp_path):
  colours = np.array([[200, 40, 40], [40, 180, 60], [50, 60, 200], [128, 128, 128]], np.uint8)
  image = np.repeat(np.repeat(colours.reshape(2, 2, 3), 32, 0), 32, 1)
  with video.ClipWriter(tmp_path / "c.mp4", size=64) as writer:
    for _ in range(3):
      writer.write(image)
  shown = video.read_windows((tmp_path / "c.mp4").read_bytes(), [1], count=1, size=64)[0, 0]
  np.testing.assert_allclose(shown[8::16, 8::16].astype(int), image[8::16, 8::16], atol=6)


def test_a_file_that_ends_early_or_jumps_is_refused(tmp_path):
  whole = write_video(tmp_path / "w.mp4", map(numbered, range(200)), options={"movflags": "faststart"})
  data = whole.read_bytes()
  cut = tmp_path / "cut.mp4"
  cut.write_bytes(data[: int(len(data) * 0.6)])
  with pytest.raises(InputError, match="truncated|damaged"):
    list(video.read_frames(cut))
  times = [Fraction(k, 25) for k in range(50)] + [Fraction(10**7)]
  jump = write_video(tmp_path / "jump.mkv", map(numbered, range(51)), times=times, time_base=Fraction(1, 25))
  with pytest.raises(InputError, match="jump"):
    list(video.read_frames(jump))


def test_a_last_picture_that_claims_to_stand_for_hours_is_refused(tmp_path):
  times = [Fraction(t * t, 500) for t in range(1, 31)]  # uneven: an entry of the table a picture
  data = bytearray(write_video(tmp_path / "a.mp4", map(numbered, range(30)), times=times).read_bytes())
  table = data.index(b"stts") + 8
  (entries,) = struct.unpack_from(">I", data, table)
  struct.pack_into(">II", data, table + 8 * entries - 4, 1, 2**31 - 1)
  (tmp_path / "b.mp4").write_bytes(data)
  with pytest.raises(InputError, match="its last picture has a duration of"):
    for frame in video.read_frames(tmp_path / "b.mp4"):
      assert frame.index < 100


def test_a_name_with_a_colon_is_a_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write_video(tmp_path / "12:30.mp4", map(numbered, range(3)), sound=np.zeros(2000, np.float32))
  assert video.probe("12:30.mp4").width == 64


@pytest.mark.parametrize("error", [IndexError("list index out of range"), OverflowError("too large")])
def test_what_pyav_raises_of_its_own_is_damage(tmp_path, error):
  write_video(tmp_path / "a.mp4", map(numbered, range(3)))
  with pytest.raises(InputError, match="damaged"), video.open_media(tmp_path / "a.mp4"):
    raise error
