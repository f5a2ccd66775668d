"""MP4 and MOV files with edit lists: each presented picture and click is read at its second."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from awkward import click_times, read, talk
from footage import number_of
from recordings import cut_by_edit_list

from synclipmae_jax.data.media.clock import read_clock
from synclipmae_jax.data.media.remux import fix_lag
from synclipmae_jax.types import InputError

CLICKS = (1.0, 2.0, 5.5, 6.0)


def presented(parts, second):
  """The second of the movie at which a second of the track is presented; None where it is hidden."""
  start = 0.0
  for begin, end in parts:
    if begin <= second < end:
      return start + second - begin
    start += end - begin
  return None


def assert_as_presented(path, parts):
  frames, heard, notes = read(path)
  length = sum(end - begin for begin, end in parts)
  assert len(frames) == pytest.approx(length * 25, abs=1.5) and notes == []
  shown = [number_of(frame.image) for frame in frames]
  for number in range(200):
    second = presented(parts, number / 25)
    if second is not None and presented(parts, (number + 1) / 25) is not None:
      assert shown[int(np.ceil(second * 25 - 0.01))] == number
  expected = [second for click in CLICKS if (second := presented(parts, click)) is not None]
  assert click_times(heard) == pytest.approx(expected, abs=0.002)


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize("codec", ["h264", "libx264"])  # with and without B-frames
@pytest.mark.parametrize(
  "parts",
  [((2.3, 7.0),), ((0.5, 3.1), (5.03, 6.6)), ((0.52, 2.2), (2.4, 6.03)), ((0.0, 1.5), (1.9, 2.5), (5.01, 7.0))],
)
def test_every_part_is_at_its_second(tmp_path, suffix, codec, parts):
  """FFmpeg's own times have errors of half a picture (first), 26 ms (second) and three pictures (third)."""
  whole = talk(tmp_path / f"a.{suffix}", count=200, at=CLICKS, codec=codec)
  assert_as_presented(cut_by_edit_list(whole, tmp_path / f"cut.{suffix}", *parts), parts)


def test_a_whole_file_keeps_the_reading_of_ffmpeg(tmp_path):
  assert not read_clock(talk(tmp_path / "a.mp4", codec="h264")).edits


def test_stretches_in_another_order_are_refused(tmp_path):
  whole = talk(tmp_path / "a.mp4", count=200, at=CLICKS)
  for parts in (((5.0, 6.6), (0.5, 3.1)), ((0.5, 3.1), (1.5, 4.0))):
    cut = cut_by_edit_list(whole, tmp_path / "cut.mp4", *parts)
    with pytest.raises(InputError, match=r"its edit list repeats or reorders stretches, from (1\.6|2\.6) s on"):
      read(cut)


def test_another_speed_is_refused(tmp_path):
  whole = talk(tmp_path / "a.mp4", count=200, at=CLICKS)
  cut = cut_by_edit_list(whole, tmp_path / "cut.mp4", (0.5, 3.1), (5.0, 6.6))
  data = bytearray(cut.read_bytes())
  at = data.index(b"elst") + 12 + 8  # version, count, duration and begin of the first entry
  assert data[at : at + 4] == struct.pack(">I", 1 << 16)
  data[at : at + 4] = struct.pack(">I", 1 << 15)
  cut.write_bytes(data)
  with pytest.raises(InputError, match=r"its edit list plays a stretch at 0\.5 times its speed"):
    read(cut)


@pytest.mark.parametrize("codec", ["h264", "libx264"])
def test_a_copy_of_a_cut_is_presented_alike(tmp_path, codec):
  whole = talk(tmp_path / "a.mp4", count=200, at=CLICKS, codec=codec)
  cut = cut_by_edit_list(whole, tmp_path / "cut.mp4", (2.31, 7.0))
  before = read(cut)
  fix_lag(cut, tmp_path / "b.mp4", lag_ms=120)
  after = read(tmp_path / "b.mp4")
  assert [number_of(f.image) for f in after[0]][: len(before[0])] == [number_of(f.image) for f in before[0]]
  assert click_times(after[1]) == pytest.approx([second + 0.12 for second in click_times(before[1])], abs=0.002)
