"""Corrected copies of files with unusual times, read by plain PyAV: every picture is shown once, in order, in sync."""

from __future__ import annotations

import re
import struct

import av
import numpy as np
import pytest
from recordings import Recording, cut_by_edit_list, make, read

from synclipmae_jax.data.media.remux import fix_lag
from synclipmae_jax.types import InputError

LATE = Recording(b_frames=2, early=0.2)  # the picture comes 200 ms late


def mend(source, out, **kwargs):
  return fix_lag(source, out, **{"lag_ms": 200, **kwargs}), read(out)


def assert_in_sync(content, recording=LATE, *, clicks=4):
  assert len(content.clicks) >= clicks
  assert content.lags(recording) == pytest.approx([0] * len(content.clicks), abs=0.004)


def stamped(path, out, *, add, kinds=(0xE0, 0xC0), only=None):
  """A transport stream whose timestamps of the PES packets of `kinds` move by `add` seconds; `only` some of them."""
  content = bytearray(path.read_bytes())
  seen = 0
  for packet in range(0, len(content), 188):
    start = packet + 4 + (content[packet + 4] + 1 if content[packet + 3] & 0x20 else 0)
    pes = content[start : start + 4]
    if not content[packet + 1] & 0x40 or pes[:3] != b"\0\0\1" or pes[3] & 0xF0 not in kinds:
      continue
    seen += 1
    if only is not None and seen - 1 not in only:
      continue
    for field in range(content[start + 7] >> 6 and (content[start + 7] >> 6) - 1):
      _move(content, start + 9 + 5 * field, round(add * 90_000))
  out.write_bytes(content)
  return out


def _move(content, at, ticks):
  a, b, c, d, e = content[at : at + 5]
  value = ((a >> 1 & 7) << 30 | b << 22 | (c >> 1) << 15 | d << 7 | e >> 1) + ticks
  value %= 1 << 33
  content[at : at + 5] = bytes([
    a & 0xF1 | (value >> 30 & 7) << 1, value >> 22 & 255, (value >> 15 & 127) << 1 | 1, value >> 7 & 255,
    (value & 127) << 1 | 1,
  ])  # fmt: skip


@pytest.mark.parametrize("target", ["ts", "mp4", "mkv"])
def test_a_clock_that_starts_again_is_carried_on(tmp_path, target):
  part = make(tmp_path / "a.ts", LATE).read_bytes()
  (tmp_path / "joined.ts").write_bytes(part * 3)
  report, content = mend(tmp_path / "joined.ts", tmp_path / f"b.{target}")
  assert content.numbers == 3 * list(range(1, 76))
  seconds = [second for second, _ in content.pictures]
  assert np.diff(seconds).min() > 0.03 and np.diff(seconds).max() < 0.5  # no picture is too short or too long
  assert_in_sync_in_parts(content, 3)
  assert "its clock starts again at 3." in report.notes[0] and "carried on" in report.notes[0]


@pytest.mark.parametrize("jump", [3600, 40, -2.0])
def test_a_clock_that_jumps_with_all_tracks_is_carried_on(tmp_path, jump):
  part = make(tmp_path / "a.ts", LATE)
  later = stamped(part, tmp_path / "b.ts", add=3 + jump)
  (tmp_path / "joined.ts").write_bytes(part.read_bytes() + later.read_bytes())
  report, content = mend(tmp_path / "joined.ts", tmp_path / "c.mp4")
  assert content.numbers == 2 * list(range(1, 76)) and content.length < 6.5
  assert_in_sync_in_parts(content, 2)


@pytest.mark.parametrize("pause", [8, 12])
def test_a_long_pause_of_all_tracks_is_closed_and_a_short_one_kept(tmp_path, pause):
  source = make(tmp_path / "a.mkv", Recording(early=0.2))
  with av.open(str(source)) as plain, av.open(str(tmp_path / "b.mkv"), "w") as container:
    tracks = [container.add_stream_from_template(stream, opaque=True) for stream in plain.streams]
    for packet in plain.demux():
      if packet.size:
        late = 1000 * pause if packet.pts > 1600 else 0
        packet.pts, packet.dts = packet.pts + late, None if packet.dts is None else packet.dts + late
        packet.stream = tracks[packet.stream_index]
        container.mux(packet)
  report, content = mend(tmp_path / "b.mkv", tmp_path / "c.mkv")
  if pause == 8:
    assert content.length == pytest.approx(74 / 25 + 8, abs=0.05) and report.notes == ()
  else:
    assert content.length == pytest.approx(74 / 25, abs=0.1) and content.numbers == list(range(1, 76))
    assert report.notes == ("its clock jumps ahead by 12.0 s at 1.7 s and is carried on",)


def test_a_cover_picture_has_no_part_in_the_times(tmp_path):
  source = make(tmp_path / "a.mkv", Recording(early=0.2, start=5))
  with av.open(str(source)) as plain, av.open(str(tmp_path / "b.mp4"), "w") as container:
    tracks = [container.add_stream_from_template(stream, opaque=True) for stream in plain.streams]
    cover = container.add_stream("mjpeg", width=64, height=64, pix_fmt="yuvj420p")
    cover.disposition = av.stream.Disposition.attached_pic
    image = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
    container.mux(cover.encode(image))
    for packet in plain.demux():
      if packet.size:
        packet.stream = tracks[packet.stream_index]
        container.mux(packet)
  report, content = mend(tmp_path / "b.mp4", tmp_path / "c.mp4")
  assert len(report.copied) == 3 and content.pictures[0][0] < 0.5 and content.numbers == list(range(1, 76))
  assert_in_sync(content)


def assert_in_sync_in_parts(content, parts):
  """Checks every part separately: the numbers of its pictures begin again."""
  size = len(content.pictures) // parts
  for part in range(parts):
    pictures = content.pictures[part * size : (part + 1) * size]
    begin, end = pictures[0][0] - 0.1, pictures[-1][0] + 0.1
    clicks = tuple(click for click in content.clicks if begin <= click <= end)
    one = type(content)(pictures=pictures, clicks=clicks, streams=content.streams, packets=content.packets)
    assert_in_sync(one, clicks=3)


@pytest.mark.parametrize("codec, sound", [("libvpx", "libopus"), ("libx264", "aac")])
def test_joined_matroska_is_carried_on(tmp_path, codec, sound):
  suffix = "webm" if codec == "libvpx" else "mkv"
  recording = Recording(codec=codec, sound_codec=sound, b_frames=2 if codec == "libx264" else 0, early=0.2)
  part = make(tmp_path / f"a.{suffix}", recording).read_bytes()
  (tmp_path / f"joined.{suffix}").write_bytes(part + part)
  _, content = mend(tmp_path / f"joined.{suffix}", tmp_path / f"b.{suffix}")
  assert content.numbers == 2 * list(range(1, 76))
  assert_in_sync_in_parts(content, 2)


@pytest.mark.parametrize("target", ["mp4", "mkv"])
def test_fragments_whose_clock_starts_again_are_carried_on(tmp_path, target):
  fragments = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
  content = make(tmp_path / "a.mp4", LATE, options=fragments).read_bytes()
  head, rest, at = b"", b"", 0
  while at < len(content):
    size, name = struct.unpack(">I4s", content[at : at + 8])
    if name in (b"moof", b"mdat"):
      rest += content[at : at + size]
    elif name != b"mfra":
      head += content[at : at + size]
    at += size
  (tmp_path / "again.mp4").write_bytes(head + rest + rest)
  report, content = mend(tmp_path / "again.mp4", tmp_path / f"b.{target}")
  assert content.numbers == 2 * list(range(1, 76)) and content.packets[0] == 150
  assert_in_sync_in_parts(content, 2)
  assert "its clock starts again at 3." in report.notes[0]


def test_one_clock_that_starts_again_alone_is_refused_with_the_second(tmp_path):
  source = make(tmp_path / "a.ts", LATE)
  pieces = read(source).packets[0]
  stamped(source, tmp_path / "b.ts", add=-1.5, kinds=(0xE0,), only=range(pieces * 2 // 3, pieces))
  with pytest.raises(InputError, match=r"the clock of its picture alone jumps by -1.5 s at [12]\.\d s: it is not"):
    fix_lag(tmp_path / "b.ts", tmp_path / "c.ts", lag_ms=200)


@pytest.mark.parametrize("add", [1000, -1000, 4, -1])
@pytest.mark.parametrize("kind", [0xC0, 0xE0])
def test_a_stray_timestamp_is_counted_from_its_neighbours(tmp_path, add, kind):
  source = make(tmp_path / "a.ts", LATE)
  strayed = stamped(source, tmp_path / "b.ts", add=add, kinds=(kind,), only=(5,))
  report, content = mend(strayed, tmp_path / "c.mp4")
  assert content.numbers == list(range(1, 76)) and content.length == pytest.approx(74 / 25, abs=0.05)
  assert_in_sync(content)
  what = "picture" if kind == 0xE0 else "sound"
  (said,) = re.fullmatch(
    rf"the timestamps of a stretch of its {what} at [0-2]\.\d s are (.*) s off: it is placed where its neighbours are",
    report.notes[0],
  ).groups()
  assert float(said) == pytest.approx(add, abs=0.11)


@pytest.mark.parametrize("target", ["mp4", "mov", "mkv", "ts"])
@pytest.mark.parametrize("at", [40_000, 2**33 / 90_000 - 2, 2**33 / 90_000 - 0.5])
def test_a_far_start_and_a_clock_that_runs_over_begin_near_zero(tmp_path, target, at):
  source = stamped(make(tmp_path / "a.ts", LATE), tmp_path / "far.ts", add=at)
  _, content = mend(source, tmp_path / f"b.{target}")
  assert content.numbers == list(range(1, 76)) and 0 <= content.pictures[0][0] < 0.5
  assert content.packets[0] == 75
  assert_in_sync(content)


@pytest.mark.parametrize("target", ["mp4", "mov"])
def test_what_an_edit_list_hides_at_the_start_stays_hidden(tmp_path, target):
  source = cut_by_edit_list(make(tmp_path / "a.mp4", LATE), tmp_path / "cut.mp4", (1.0, 3.0))
  before = read(source)
  _, after = mend(source, tmp_path / f"b.{target}")
  assert after.numbers == before.numbers and before.numbers[0] in (26, 27)
  assert after.length == pytest.approx(before.length, abs=0.001)
  lag = np.median(before.lags(LATE)) - 0.2
  assert after.lags(LATE) == pytest.approx([lag] * len(after.clicks), abs=0.002)


@pytest.mark.parametrize("target", ["mkv", "ts"])
def test_hidden_pictures_are_never_shown_again_elsewhere(tmp_path, target):
  source = cut_by_edit_list(make(tmp_path / "a.mp4", LATE), tmp_path / "cut.mp4", (1.0, 3.0))
  with pytest.raises(InputError, match=r"1\.0 s of pictures before its first one are hidden by an edit list .* \.mp4"):
    fix_lag(source, tmp_path / f"b.{target}", lag_ms=200)
  apart = Recording(keyframes=1, early=0.2)  # no hidden picture is needed to decode a presented one
  source = cut_by_edit_list(make(tmp_path / "c.mp4", apart), tmp_path / "apart.mp4", (1.0, 3.0))
  before = read(source)
  _, after = mend(source, tmp_path / f"d.{target}")
  assert after.numbers == before.numbers and min(after.clicks) > 0
  assert len(after.clicks) == len(before.clicks)


@pytest.mark.parametrize("keyframes", [12, 250])
def test_several_cuts_are_refused_with_the_second(tmp_path, keyframes):
  recording = Recording(b_frames=2, keyframes=keyframes)
  source = cut_by_edit_list(make(tmp_path / "a.mp4", recording), tmp_path / "cut.mp4", (0.5, 1.3), (2.0, 3.0))
  with pytest.raises(InputError, match=r"after second 0\.\d its (pictures are|sound is) hidden in part by"):
    fix_lag(source, tmp_path / "b.mp4", lag_ms=200)
  assert not (tmp_path / "b.mp4").exists()


def test_what_an_edit_list_hides_at_the_end_stays_hidden(tmp_path):
  source = cut_by_edit_list(make(tmp_path / "a.mp4", Recording(early=0.2)), tmp_path / "cut.mp4", (0.0, 2.0))
  for name in ("b.mp4", "b.mkv"):
    _, content = mend(source, tmp_path / name)
    assert content.numbers == read(source).numbers and len(content.numbers) in (50, 51)


@pytest.mark.parametrize("target", ["mkv", "mp4", "mov"])
@pytest.mark.parametrize("b_frames", [0, 1, 3])
def test_h264_of_avi_is_shown_in_the_order_of_its_decoder(tmp_path, target, b_frames):
  recording = Recording(b_frames=b_frames, sound_codec="pcm_s16le", early=0.2)
  source = make(tmp_path / "a.avi", recording)
  _, content = mend(source, tmp_path / f"b.{target}")
  assert content.numbers == list(range(1, 76))
  steps = np.diff([second for second, _ in content.pictures])
  assert steps == pytest.approx(1 / 25, abs=0.002)
  lag = np.median(read(source).lags(recording)) - 0.2
  assert content.lags(recording) == pytest.approx([lag] * len(content.clicks), abs=0.003)


@pytest.mark.parametrize("target", ["mp4", "mkv"])
def test_mp4_without_times_of_showing_is_shown_in_order(tmp_path, target):
  source = make(tmp_path / "a.mp4", LATE)
  content = source.read_bytes()
  assert content.count(b"ctts") == 1
  source.write_bytes(content.replace(b"ctts", b"free"))
  _, content = mend(source, tmp_path / f"b.{target}")
  assert content.numbers == list(range(1, 76)) and content.packets[0] == 75
  assert_in_sync(content)


def test_sound_and_rotation_that_a_container_cannot_keep_are_said(tmp_path):
  source = make(tmp_path / "a.mov", Recording(sound_codec="pcm_s16le"))
  with pytest.raises(InputError, match="mpegts file cannot hold its audio pcm_s16le"):
    fix_lag(source, tmp_path / "b.ts", lag_ms=40)
  with av.open(str(tmp_path / "turned.mp4"), "w") as turned, av.open(str(make(tmp_path / "c.mp4", LATE))) as plain:
    tracks = [turned.add_stream_from_template(stream, opaque=True) for stream in plain.streams]
    tracks[0].set_display_rotation(90)
    for packet in plain.demux():
      if packet.size:
        packet.stream = tracks[packet.stream_index]
        turned.mux(packet)
  assert fix_lag(tmp_path / "turned.mp4", tmp_path / "d.mp4", lag_ms=40).notes == ()
  (note,) = fix_lag(tmp_path / "turned.mp4", tmp_path / "d.ts", lag_ms=40).notes
  assert "lost, as a mpegts file does not take it: the rotation of its picture by" in note
