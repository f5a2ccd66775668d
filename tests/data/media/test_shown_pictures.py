from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from awkward import bursts, click_times, read, spoil_packet, talk
from footage import number_of, numbered, write_video

from synclipmae_jax.data.media import video
from synclipmae_jax.data.media.clock import read_clock
from synclipmae_jax.types import InputError


def b_frames(path, *, count=75, fps=25, codec="libx264", options=None, container="avi"):
  """Pictures stored out of order without times of presentation, as x264 and MPEG-4 encoders write them into AVI."""
  with av.open(str(path), "w", format=container) as out:
    stream = out.add_stream(codec, rate=Fraction(fps), width=64, height=64, pix_fmt="yuv420p")
    stream.options = options or {"bf": "3", "preset": "veryfast", "crf": "12"}
    if codec == "mpeg4":
      stream.codec_context.max_b_frames, stream.options = 2, {}
      stream.codec_context.bit_rate = 2_000_000
    sound = out.add_stream("pcm_s16le", rate=16000, layout="mono")
    for index in range(count):
      out.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(index), format="rgb24")))
    out.mux(stream.encode())
    samples = (bursts(count / fps, [1.0]) * 32767).astype(np.int16)
    for first in range(0, len(samples), 640):
      frame = av.AudioFrame.from_ndarray(samples[None, first : first + 640], format="s16", layout="mono")
      frame.sample_rate, frame.pts = 16000, first
      out.mux(sound.encode(frame))
  return path


def out_of_order(path):
  """Whether the packets are not in the order of the pictures: the precondition of these tests."""
  with av.open(str(path)) as container:
    return any(frame.pict_type == PictureType.B for frame in container.decode(video=0))


@pytest.mark.parametrize("fps", [25, 15, Fraction(30000, 1001), 50])
@pytest.mark.parametrize(
  ("codec", "options"),
  [("libx264", None), ("libx264", {"bf": "3", "x264-params": "b-pyramid=none"}), ("libx264", {"bf": "0"}),
   ("mpeg4", None)],
)  # fmt: skip
def test_avi_has_no_times_its_pictures_are_counted(tmp_path, fps, codec, options):
  path = b_frames(tmp_path / "a.avi", fps=fps, codec=codec, options=options)
  assert out_of_order(path) == (options != {"bf": "0"})
  frames, heard, notes = read(path)
  nearest = [int(Fraction(t, 25) * fps + Fraction(1, 2)) for t in range(len(frames))]  # a tick of AVI is a picture
  assert [number_of(frame.image) for frame in frames] == nearest
  assert len(frames) == pytest.approx(75 / fps * 25, abs=1) and not notes
  assert click_times(heard) == pytest.approx([1.0], abs=0.002)


def test_a_time_without_a_picture_stays_one_in_avi(tmp_path):
  """A recorder that drops pictures stores empty chunks for them."""
  times = [Fraction(k, 25) if k < 30 else Fraction(k + 10, 25) for k in range(75)]
  path = write_video(
    tmp_path / "a.avi", map(numbered, range(75)), times=times, time_base=Fraction(1, 25), codec="mjpeg",
    sound=bursts(4, [2.0]), sound_codec="pcm_s16le",
  )  # fmt: skip
  frames, heard, _ = read(path)
  assert [number_of(frame.image) for frame in frames] == [*range(30), *[29] * 10, *range(30, 75)]
  assert click_times(heard) == pytest.approx([2.0], abs=0.002)


def test_after_a_lost_picture_the_count_is_right_again(tmp_path):
  path = b_frames(tmp_path / "a.avi", options={"bf": "3", "g": "15", "crf": "12"})
  with av.open(str(path)) as container:
    packets = [packet for packet in container.demux(video=0) if packet.size]
    number = next(k for k in range(20, 75) if len(bytes(packets[k])) < len(bytes(packets[k - 1])) / 2)  # a B picture
  spoil_packet(path, number=number)
  shown = [number_of(frame.image) for frame in read(path)[0]]
  assert len(shown) == 75 and shown[60:] == list(range(60, 75))


def without_ctts(path):
  data = path.read_bytes()
  assert data.count(b"ctts") == 1
  path.write_bytes(data.replace(b"ctts", b"free"))
  return path


@pytest.mark.parametrize("fps", [25, Fraction(24000, 1001)])
def test_mp4_that_lost_its_presentation_times(tmp_path, fps):
  path = talk(tmp_path / "a.mp4", codec="h264", fps=fps)
  whole, before, _ = read(path)
  assert out_of_order(without_ctts(path)) and read_clock(path).counted == "decoded"
  frames, heard, _ = read(path)
  assert [number_of(frame.image) for frame in frames] == [number_of(frame.image) for frame in whole]
  np.testing.assert_array_equal(heard, before)


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".flv", ".mov"])
def test_so_are_those_that_were_copied_from_it(tmp_path, suffix):
  path, copy = without_ctts(talk(tmp_path / "a.mp4", codec="h264")), tmp_path / f"b{suffix}"
  with av.open(str(path)) as source, av.open(str(copy), "w") as target:
    tracks = {stream.index: target.add_stream_from_template(stream, opaque=True) for stream in source.streams}
    for packet in source.demux():
      if packet.size:
        packet.stream = tracks[packet.stream_index]
        target.mux(packet)
  frames, heard, _ = read(copy)
  assert [number_of(frame.image) for frame in frames] == list(range(75))
  assert click_times(heard) == pytest.approx([1.0], abs=0.001)


def test_pictures_in_order_keep_their_own_times(tmp_path):
  """Times of presentation and decoding are equal here as well, and correct."""
  times = [Fraction(k * k, 900) for k in range(1, 60)]
  path = write_video(tmp_path / "a.mp4", map(numbered, range(59)), times=times, sound=bursts(4, [1.0]))
  assert read_clock(path).counted is None
  for frame in read(path)[0]:
    k = number_of(frame.image) + 1
    assert times[k - 1] - times[0] <= Fraction(frame.index, 25)
    assert k == 59 or Fraction(frame.index, 25) < times[k] - times[0]


def test_a_codec_that_might_reorder_and_does_not_keeps_its_times(tmp_path):
  path = tmp_path / "a.mp4"
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=25, width=64, height=64, pix_fmt="yuv420p")
    stream.options = {"bf": "3"}
    for index in range(50):
      frame = av.VideoFrame.from_ndarray(numbered(index), format="rgb24")
      frame.pict_type = PictureType.P
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  with av.open(str(path)) as container:
    assert container.streams.video[0].codec_context.has_b_frames
  assert not out_of_order(path) and read_clock(path).counted is None


@pytest.mark.parametrize("lost", [1, 10])
def test_damaged_pictures_are_a_gap_of_known_length(tmp_path, lost):
  path = talk(tmp_path / "a.mkv", count=300, codec="mjpeg")
  for number in range(100, 100 + lost):
    spoil_packet(path, number=number)
  frames, heard, notes = read(path)
  assert [number_of(frame.image) for frame in frames] == [*range(100), *[99] * lost, *range(100 + lost, 300)]
  assert [frame.index for frame in frames if frame.damaged] == list(range(100, 100 + lost))
  assert [frame.source for frame in frames][-1] == 299
  assert notes == [f"its picture is damaged at 4.00 s, for {40 * lost} ms in all: the one before it is held"]
  assert click_times(heard) == pytest.approx([1.0], abs=0.002)


def test_longer_damage_is_a_damaged_file(tmp_path):
  path = talk(tmp_path / "a.mkv", count=300, codec="mjpeg")
  for number in range(100, 114):
    spoil_packet(path, number=number)
  with pytest.raises(InputError, match=r"its picture is broken from 4.0 s to 4.6 s"):
    read(path)
  path = talk(tmp_path / "b.mkv", count=300, codec="mjpeg")
  for number in range(100, 200, 5):
    spoil_packet(path, number=number)
  with pytest.raises(InputError, match=r"0.8 s of its picture are broken, in 20 places"):
    read(path)


@pytest.mark.parametrize(("sizes", "rows"), [((64, 128), (0, 64)), ((64, 32), (0, 64))])
def test_another_size_on_the_way_is_fitted_into_the_first(tmp_path, sizes, rows):
  path = tmp_path / "a.mkv"
  with av.open(str(path), "w") as container:
    stream = container.add_stream("mjpeg", rate=25, width=64, height=64, pix_fmt="yuvj420p")
    for start, size in zip((0, 25), sizes, strict=True):
      encoder = av.CodecContext.create("mjpeg", "w")
      encoder.width = encoder.height = size
      encoder.pix_fmt, encoder.time_base = "yuvj420p", Fraction(1, 25)
      for index in range(start, start + 25):
        frame = av.VideoFrame.from_ndarray(numbered(index, size=size), format="rgb24").reformat(format="yuvj420p")
        frame.pts, frame.time_base = index, Fraction(1, 25)
        for packet in encoder.encode(frame):
          packet.stream = stream
          container.mux(packet)
  frames = list(video.read_frames(path))
  assert {frame.image.shape for frame in frames} == {(64, 64, 3)}
  assert [number_of(frame.image) for frame in frames] == list(range(50))


def test_another_shape_is_shown_between_bars():
  wide = av.VideoFrame.from_ndarray(np.full((32, 64, 3), 200, np.uint8), format="rgb24")
  shown = video.Scaler().display(wide, aspect=None, into=(64, 64, 3))
  assert shown.shape == (64, 64, 3)
  assert not shown[:15].any() and not shown[49:].any() and (shown[17:47] > 190).all()


def test_a_picture_larger_than_any_footage_is_refused(tmp_path):
  path = talk(tmp_path / "a.mp4", count=30)
  data = bytearray(path.read_bytes())
  at = data.index(b"avc1") + 28  # width and height of the sample entry
  data[at : at + 4] = (40_000).to_bytes(2, "big") * 2
  path.write_bytes(data)
  try:
    info = video.probe(path)  # FFmpeg uses the size in the stream, not in the container
    assert (info.width, info.height) == (64, 64)
  except InputError as error:
    assert "more than any footage" in str(error)
