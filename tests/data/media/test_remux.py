from __future__ import annotations

import os
import resource
from fractions import Fraction

import av
import numpy as np
import pytest
from footage import clicks, numbered, write_video

from synclipmae_jax.data.media import audio, video
from synclipmae_jax.data.media.remux import fix_lag
from synclipmae_jax.types import InputError

FLASH = 30


def footage(path, *, times=None, rate=16000, **kwargs):
  """3 s with a flash at picture FLASH and a click at 1.2 s, which coincide at 25 pictures/s."""
  flashes = (np.full((64, 64, 3), 230 if index == FLASH else 20, np.uint8) for index in range(75))
  return write_video(path, flashes, times=times, sound=clicks(3, [1.2], rate=rate), rate=rate, **kwargs)


def distance_ms(path):
  """Seconds from the flash to the click, by the readers of the package."""
  origin = video.probe(path).origin
  with video.open_media(path) as container:
    pictures = [(frame.to_ndarray(format="gray").mean(), frame) for frame in container.decode(video=0)]
  flash = max(pictures, key=lambda entry: entry[0])[1]
  heard = audio.Track(path, origin=origin).read(-16000, 5 * 16000)
  return float((Fraction(int(np.abs(heard).argmax()) - 16000, 16000) - (flash.pts * flash.time_base - origin)) * 1000)


def packets(path):
  with av.open(str(path)) as container:
    found = {}
    for packet in container.demux():
      if packet.size:
        found.setdefault(packet.stream.index, []).append(bytes(packet))
  return found


@pytest.mark.parametrize(
  ("name", "kwargs"),
  [
    ("a.mp4", {"rate": 48000}),
    ("a.mov", {"rate": 44100, "layout": "stereo"}),
    ("a.mkv", {"rate": 48000}),
    ("b-frames.mp4", {"codec": "h264", "rate": 44100}),  # x264's defaults
    ("b-frames.mkv", {"codec": "h264", "rate": 48000}),
    ("a.webm", {"codec": "libvpx", "sound_codec": "libopus", "rate": 48000}),
    ("a.ts", {"rate": 48000}),
    ("a.avi", {"sound_codec": "libmp3lame", "rate": 44100}),
  ],
)
def test_the_sound_moves_by_exactly_the_lag(tmp_path, name, kwargs):
  source = footage(tmp_path / name, **kwargs)
  before = distance_ms(source)
  for lag in (-400, 40, 200):
    out = tmp_path / f"{lag}{name}"
    report = fix_lag(source, out, lag_ms=lag)
    assert distance_ms(out) - before == pytest.approx(lag, abs=0.5)
    assert len(list(video.read_frames(out))) == len(list(video.read_frames(source)))
    if name != "a.avi":
      assert not report.reencoded and len(report.copied) == 2
      assert packets(source)[0] == packets(out)[0]
  if name != "a.avi":
    assert packets(source) == packets(tmp_path / f"200{name}")
  else:
    assert report.reencoded == ("audio mp3float as pcm_s16le",)


def test_there_and_back(tmp_path):
  source = footage(tmp_path / "a.mp4")
  fix_lag(source, tmp_path / "b.mp4", lag_ms=200)
  fix_lag(tmp_path / "b.mp4", tmp_path / "c.mp4", lag_ms=-200)
  assert distance_ms(tmp_path / "c.mp4") == pytest.approx(distance_ms(source), abs=0.5)
  origin = video.probe(source).origin
  whole, back = (audio.Track(path, origin=origin).read(0, 40_000) for path in (source, tmp_path / "c.mp4"))
  np.testing.assert_allclose(back[3000:], whole[3000:], atol=1e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("lag", [-200, 200])
def test_uneven_pictures_that_begin_late(tmp_path, suffix, lag):
  steps = np.random.default_rng(3).integers(1800, 5400, 75)
  times = [Fraction(27_000 + int(t), 90_000) for t in np.cumsum(steps)]
  source = footage(tmp_path / f"a{suffix}", times=times, rate=48000)
  fix_lag(source, tmp_path / f"b{suffix}", lag_ms=lag)
  assert distance_ms(tmp_path / f"b{suffix}") - distance_ms(source) == pytest.approx(lag, abs=1.1)
  shown = [[frame.source for frame in video.read_frames(tmp_path / f"{name}{suffix}")] for name in "ab"]
  assert len(shown[0]) == len(shown[1])
  assert np.abs(np.subtract(*shown)).max() <= (suffix == ".mkv")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_everything_else_is_carried_over(tmp_path, suffix):
  source = tmp_path / f"a{suffix}"
  with av.open(str(source), "w") as container:
    container.metadata["title"] = "Two tongues"
    container.set_chapters(
      [{"id": 1, "start": 0, "end": 1000, "time_base": Fraction(1, 1000), "metadata": {"title": "Opening"}}]
    )
    picture = container.add_stream("libx264", rate=25, width=64, height=32, pix_fmt="yuv420p")
    picture.set_display_rotation(90)
    tracks = [container.add_stream("aac", rate=rate) for rate in (48000, 44100)]
    tracks[1].metadata["language"] = "fra"
    subtitles = container.add_stream("mov_text" if suffix == ".mp4" else "subrip")
    subtitles.codec_context.subtitle_header = b"[Script Info]\n"
    for index in range(50):
      container.mux(picture.encode(av.VideoFrame.from_ndarray(numbered(index)[:32], format="rgb24")))
    container.mux(picture.encode())
    for track in tracks:
      for first in range(0, 2 * track.rate, 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = track.rate, first
        container.mux(track.encode(frame))
      container.mux(track.encode())
    line = av.Packet(b"\0\5hello" if suffix == ".mp4" else b"hello")
    line.stream, line.time_base, line.pts, line.dts, line.duration = subtitles, Fraction(1, 1000), 500, 500, 700
    container.mux(line)
  out = tmp_path / f"b{suffix}"
  report = fix_lag(source, out, lag_ms=-200)
  assert len(report.copied) == 4 and not [note for note in report.notes if "left out" in note]
  later = 0.2 if suffix == ".mkv" else 0
  with av.open(str(out)) as container:
    assert container.metadata["title"] == "Two tongues"
    chapter = container.chapters()[0]
    assert chapter["metadata"]["title"] == "Opening"
    assert float(chapter["end"] * chapter["time_base"]) == pytest.approx(1 + later)
    assert [track.language for track in container.streams.audio][1] == "fra"
    assert len(container.streams.audio) == 2
    (said,) = [packet for packet in container.demux(container.streams.subtitles[0]) if b"hello" in bytes(packet)]
    assert float(said.pts * said.time_base) == pytest.approx(0.5 + later, abs=0.01)
  assert next(video.read_frames(out)).image.shape == (64, 32, 3)


def test_what_another_container_cannot_hold_is_left_out_and_said(tmp_path):
  source = footage(tmp_path / "plain.mkv")
  with av.open(str(source)) as footage_in, av.open(str(tmp_path / "a.mkv"), "w") as container:
    container.add_attachment("face.ttf", "application/x-truetype-font", b"123")
    tracks = [container.add_stream_from_template(stream, opaque=True) for stream in footage_in.streams]
    for packet in footage_in.demux():
      if packet.size:
        packet.stream = tracks[packet.stream.index]
        container.mux(packet)
  assert fix_lag(tmp_path / "a.mkv", tmp_path / "b.mkv", lag_ms=40).notes == ()
  with av.open(str(tmp_path / "b.mkv")) as container:
    assert [stream.data for stream in container.streams if stream.type == "attachment"] == [b"123"]
  report = fix_lag(tmp_path / "a.mkv", tmp_path / "b.mp4", lag_ms=-40)
  assert "left out" in report.notes[0] and "attachment" in report.notes[0]
  assert distance_ms(tmp_path / "b.mp4") - distance_ms(source) == pytest.approx(-40, abs=1.1)


def test_a_container_that_cannot_hold_the_sound_is_refused_by_name(tmp_path):
  source = footage(tmp_path / "a.mp4")
  with pytest.raises(InputError, match=r"webm file cannot hold its video h264"):
    fix_lag(source, tmp_path / "b.webm", lag_ms=40)
  with pytest.raises(InputError, match="only an AVI"):
    fix_lag(source, tmp_path / "b.avi", lag_ms=40)
  assert os.listdir(tmp_path) == ["a.mp4"]


def test_nothing_is_overwritten(tmp_path):
  source = footage(tmp_path / "a.mp4")
  content = source.read_bytes()
  os.link(source, tmp_path / "hard.mp4")
  (tmp_path / "soft.mp4").symlink_to(source)
  (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nowhere")
  (tmp_path / "there.mp4").write_text("mine")
  for name, reason in [
    ("a.mp4", "the file itself"), ("hard.mp4", "the file itself"), ("soft.mp4", "the file itself"),
    ("there.mp4", "exists already"), ("dangling.mp4", "exists already"), ("no/folder.mp4", "cannot be written"),
    ("a.txt", "suffix"),
  ]:  # fmt: skip
    with pytest.raises(InputError, match=reason):
      fix_lag(source, tmp_path / name, lag_ms=40)
  for lag in (float("nan"), float("inf"), 1e9):
    with pytest.raises(InputError, match="lag of"):
      fix_lag(source, tmp_path / "b.mp4", lag_ms=lag)
  assert source.read_bytes() == content and (tmp_path / "there.mp4").read_text() == "mine"
  assert sorted(os.listdir(tmp_path)) == ["a.mp4", "dangling.mp4", "hard.mp4", "soft.mp4", "there.mp4"]


def test_damage_and_a_full_disk_leave_nothing_behind(tmp_path):
  source = footage(tmp_path / "a.mkv")
  (tmp_path / "cut.ts").write_text("no video")
  with pytest.raises(InputError):
    fix_lag(tmp_path / "cut.ts", tmp_path / "b.mp4", lag_ms=40)
  whole = fix_lag(source, tmp_path / "front.mp4", lag_ms=0).out  # its index is at the front: a cut end is found late
  (tmp_path / "cut.mp4").write_bytes(open(whole, "rb").read()[: os.path.getsize(whole) // 2])
  with pytest.raises(InputError, match="truncated|damaged"):
    fix_lag(tmp_path / "cut.mp4", tmp_path / "b.mp4", lag_ms=40)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
  try:
    with pytest.raises(InputError, match=r"b\.mp4 cannot be written"):
      fix_lag(source, tmp_path / "b.mp4", lag_ms=40)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert sorted(os.listdir(tmp_path)) == ["a.mkv", "cut.mp4", "cut.ts", "front.mp4"]


def test_pictures_without_sound_are_refused(tmp_path):
  source = write_video(tmp_path / "mute.mp4", map(numbered, range(10)))
  with pytest.raises(InputError, match="no sound"):
    fix_lag(source, tmp_path / "b.mp4", lag_ms=40)
