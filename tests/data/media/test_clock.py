from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from awkward import bursts, click_times, read, restamp_ts, talk
from footage import number_of, numbered, write_video

from synclipmae_jax.data.media import audio, video
from synclipmae_jax.data.media.clock import read_clock
from synclipmae_jax.types import InputError


def part(path):
  """A file of 3 s in the given container, for joining end to end."""
  if path.suffix == ".webm":
    return talk(path, codec="libvpx", sound_codec="libopus", rate=48000)
  if path.suffix == ".mp4":
    return talk(path, codec="h264", options={"movflags": "frag_keyframe+empty_moov+default_base_moof"})
  return talk(path, codec="h264")


@pytest.mark.parametrize("name", ["a.ts", "a.mp4", "a.webm", "a.mkv"])
@pytest.mark.parametrize("times", [2, 5])
def test_a_clock_that_starts_again_goes_on(tmp_path, name, times):
  """Every picture of joined files is shown, and every click has the same distance from its picture."""
  path = part(tmp_path / name)
  path.write_bytes(path.read_bytes() * times)
  frames, heard, notes = read(path)
  shown = [number_of(frame.image) for frame in frames]
  assert sorted(set(shown)) == list(range(75))
  assert abs(len(frames) - 75 * times) <= 3 * times
  assert [frame.source for frame in frames][-1] == 75 * times - 1
  clicked = click_times(heard)
  assert len(clicked) == times
  for second in clicked:
    assert abs(number_of(frames[round(second * 25)].image) - number_of(frames[round(clicked[0] * 25)].image)) <= 1
  assert sum("starts again at 3." in note for note in notes) == 1 and len(notes) == 1


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.flv", "a.wmv"])
def test_a_file_behind_the_end_is_named(tmp_path, name):
  """Players do not read it."""
  kinds = dict(codec="wmv2", sound_codec="libmp3lame", rate=44100, time_base=Fraction(1, 25))
  path = talk(tmp_path / name, **(kinds if name == "a.wmv" else {}))
  assert not read(path)[2]
  path.write_bytes(path.read_bytes() * 2)
  frames, _, notes = read(path)
  assert len(frames) == pytest.approx(75, abs=1)
  assert len(notes) == 1 and "another file is joined to it at 3." in notes[0]


def test_a_clock_that_jumps_far_ahead_for_both_tracks_goes_on(tmp_path):
  path = talk(tmp_path / "a.ts", codec="h264")
  data = path.read_bytes()
  later = lambda number: 90_000 * 5000
  path.write_bytes(data + restamp_ts(restamp_ts(data, kind="video", ticks=later), kind="audio", ticks=later))
  frames, heard, _ = read(path)
  assert abs(len(frames) - 150) <= 4 and len(click_times(heard)) == 2


def test_both_clocks_go_back_in_the_middle(tmp_path):
  """The jump lies between two pictures stored out of order. No picture is lost, and the sound keeps its place."""
  path = talk(tmp_path / "a.ts", codec="h264", count=150, at=(1.0, 5.0))
  _, before, _ = read(path)
  data = path.read_bytes()
  half = len(data) // 2 // 188 * 188
  back = lambda number: -90_000 * 2
  end = restamp_ts(restamp_ts(data[half:], kind="video", ticks=back), kind="audio", ticks=back)
  path.write_bytes(data[:half] + end)
  frames, heard, notes = read(path)
  assert abs(len(frames) - 150) <= 1 and len({number_of(frame.image) for frame in frames}) == 150
  assert click_times(heard) == pytest.approx(click_times(before), abs=0.1)
  assert any("starts again" in note for note in notes)


@pytest.mark.parametrize("seconds", [1000, -1000, 3, -3])
@pytest.mark.parametrize(
  ("kind", "stray"), [("audio", [20]), ("audio", [0]), ("audio", [60, 61, 110]), ("video", range(100, 110))]
)
def test_a_stray_stretch_stays_where_its_neighbours_are(tmp_path, kind, stray, seconds):
  path = talk(tmp_path / "a.ts", count=250, at=(2.0, 5.0, 8.0))
  whole, before, _ = read(path)
  moved = restamp_ts(path.read_bytes(), kind=kind, ticks=lambda number: 90_000 * seconds * (number in stray))
  path.write_bytes(moved)
  frames, heard, notes = read(path)
  assert click_times(heard) == pytest.approx(click_times(before), abs=0.001)
  np.testing.assert_allclose(heard[:140_000], before[:140_000], atol=1e-6)
  assert [number_of(frame.image) for frame in frames] == [number_of(frame.image) for frame in whole]
  assert len(notes) == 1 and ("sound" if kind == "audio" else "picture") in notes[0] and "neighbours" in notes[0]
  assert f"are {seconds:+d}." in notes[0] or f"are {seconds + (-1 if seconds > 0 else 1):+d}.9 s" in notes[0]


def test_a_track_that_alone_jumps_is_named(tmp_path):
  path = talk(tmp_path / "a.ts", count=250)
  path.write_bytes(restamp_ts(path.read_bytes(), kind="audio", ticks=lambda number: -90_000 * 5 * (number >= 100)))
  frames, heard, notes = read(path)
  assert len(frames) == 250 and "clock of its sound alone jumps by -5.0 s at 6" in notes[0]


@pytest.mark.parametrize("start", [0, 12, 500])
def test_a_late_first_timestamp_is_no_missing_end(tmp_path, start):
  times = [start + Fraction(k, 25) for k in range(75)]
  for name in ("a.mkv", "a.webm"):
    codecs = dict(codec="libvpx", sound_codec="libopus") if name == "a.webm" else {}
    path = write_video(
      tmp_path / name, map(numbered, range(75)), times=times, rate=48000,
      sound_times=[(start, bursts(3, [1.0], rate=48000))], **codecs,
    )  # fmt: skip
    info = video.probe(path)
    assert float(info.origin) == pytest.approx(start, abs=0.001) and info.end == pytest.approx(start + 3, abs=0.1)
    frames, heard, notes = read(path)
    assert len(frames) == 75 and not notes
    assert click_times(heard)[0] == pytest.approx(1.0, abs=0.03)


def test_a_picture_may_stand_while_the_sound_goes_on(tmp_path):
  times = [Fraction(k, 25) if k < 25 else Fraction(k, 25) + 12 for k in range(75)]
  kwargs = dict(times=times, sound_codec="flac")
  path = write_video(tmp_path / "a.mkv", map(numbered, range(75)), sound=bursts(15, [14.0]), **kwargs)
  frames, heard, notes = read(path)
  assert len(frames) == 375 and not notes
  assert {number_of(frame.image) for frame in frames[25:324]} == {24} and number_of(frames[326].image) == 26
  assert click_times(heard)[0] == pytest.approx(14.0, abs=0.01)
  # Without sound it is not known whether the time passed.
  path = write_video(tmp_path / "b.mkv", map(numbered, range(75)), sound=bursts(1, [0.5]), **kwargs)
  with pytest.raises(InputError, match="timestamps jump by 12 s at 1"):
    read(path)


def test_gaps_stay_gaps(tmp_path):
  times = [Fraction(k, 25) + (4 if k >= 50 else 0) for k in range(75)]
  stretches = [(0, bursts(2, [1.0])), (6, bursts(1, [0.5]))]
  path = write_video(tmp_path / "a.mkv", map(numbered, range(75)), times=times, sound_times=stretches,
                     sound_codec="flac")  # fmt: skip
  frames, heard, notes = read(path)
  assert len(frames) == 175 and not notes and not read_clock(path).shifts
  assert click_times(heard) == pytest.approx([1.0, 6.5], abs=0.01)


def test_clean_files_are_read_as_they_are(tmp_path):
  for name, kwargs in {
    "a.mp4": {}, "b.mp4": {"codec": "h264"}, "a.mkv": {"codec": "h264"}, "a.ts": {"codec": "h264"},
    "a.mov": {"fps": Fraction(30000, 1001)},
  }.items():  # fmt: skip
    clock = read_clock(talk(tmp_path / name, **kwargs))
    assert not clock.shifts and not clock.notes and clock.counted is None and not clock.patches


def test_a_file_that_changed_is_read_anew(tmp_path):
  path = talk(tmp_path / "a.ts", codec="h264")
  assert not read_clock(path).shifts
  path.write_bytes(path.read_bytes() * 2)
  assert read_clock(path).shifts
  (end,) = [first + len(samples) for first, samples in audio.read_chunks(path, origin=0)][-1:]
  assert end > 5 * 16000


@pytest.mark.parametrize("suffix", ["ogv", "mxf"])
def test_another_file_joined_to_one_of_ogg_or_mxf_is_named(tmp_path, suffix):
  ogg = dict(codec="libvpx", sound_codec="libopus", rate=48000, time_base=Fraction(1, 25))
  mxf = dict(codec="mpeg2video", sound_codec="pcm_s16le", rate=48000, time_base=Fraction(1, 25))
  path = talk(tmp_path / f"a.{suffix}", **(ogg if suffix == "ogv" else mxf))
  assert len(read(path)[0]) == pytest.approx(75, abs=1)
  path.write_bytes(path.read_bytes() * 2)
  with pytest.raises(InputError, match=r"another file is joined to it at 3\.. s, which is not read in this format"):
    read(path)
