"""Streams and metadata that a copy keeps beside picture and sound, and its notes on the rest."""

from __future__ import annotations

import re
from fractions import Fraction

import av
import pytest
from recordings import Recording, make, read

from synclipmae_jax.data.media.remux import fix_lag
from synclipmae_jax.data.media.stream_names import stream_name
from synclipmae_jax.types import InputError

KEYS = {"com.apple.quicktime.make": "Maker", "com.apple.quicktime.location.ISO6709": "+48.1+011.5/", "title": "A"}


def phone(path, *, tracks=2, apac=None, metadata=KEYS, timecode="01:02:03:04"):
  """A QuickTime recording with keys, a timecode and chapters; FFmpeg cannot decode its sound track `apac`."""
  plain = make(path.with_name(f"plain{path.suffix}"), Recording(early=0.2, tracks=tracks))
  options = {"movflags": "use_metadata_tags"}
  with av.open(str(plain)) as source, av.open(str(path), "w", options=options) as container:
    container.metadata.update(metadata)
    chapter = {"id": 1, "start": 0, "end": 1000, "time_base": Fraction(1, 1000), "metadata": {"title": "One"}}
    container.set_chapters([chapter])
    copies = [container.add_stream_from_template(stream, opaque=True) for stream in source.streams]
    if timecode:
      copies[0].metadata["timecode"] = timecode
    for packet in source.demux():
      if packet.size:
        packet.stream = copies[packet.stream_index]
        container.mux(packet)
  if apac is not None:
    content = path.read_bytes()
    entries = [match.end() for match in re.finditer(rb"stsd.{12}(?=mp4a)", content, re.DOTALL)]
    head, rest = content[: entries[apac]], content[entries[apac] :]
    path.write_bytes(head + rest.replace(b"mp4a", b"apac", 1).replace(b"wave", b"free", 1).replace(b"esds", b"free", 1))
  return path


@pytest.mark.parametrize("apac, judged", [(1, 0), (0, 0)])
@pytest.mark.parametrize("target", ["mov", "mp4", "mkv"])
def test_a_track_that_nobody_decodes_is_left_out_by_name(tmp_path, apac, judged, target):
  source = phone(tmp_path / "a.mov", apac=apac)
  with av.open(str(source)) as container:
    assert container.streams[apac + 1].codec_context is None
    assert stream_name(container.streams[apac + 1], source) == "audio apac"
  report = fix_lag(source, tmp_path / f"b.{target}", lag_ms=200)
  assert f"left out: stream {apac + 1} (audio apac)" in report.notes
  assert report.copied == ("video h264", "audio aac")
  content = read(tmp_path / f"b.{target}", sound=judged)
  assert content.numbers == list(range(1, 76)) and content.streams[:2] == ("video h264", "audio aac")
  assert content.lags(Recording(early=0.2)) == pytest.approx([0] * 4, abs=0.004)


@pytest.mark.parametrize("target", ["mov", "mp4"])
def test_quicktime_keys_timecode_and_chapters_are_kept(tmp_path, target):
  report = fix_lag(phone(tmp_path / "a.mov", tracks=1), tmp_path / f"b.{target}", lag_ms=200)
  assert report.notes == ()
  with av.open(str(tmp_path / f"b.{target}")) as copy:
    assert KEYS.items() <= copy.metadata.items()
    assert copy.streams.video[0].metadata["timecode"] == "01:02:03:04"
    assert [chapter["metadata"]["title"] for chapter in copy.chapters()] == ["One"]


def test_what_is_lost_is_named(tmp_path):
  report = fix_lag(phone(tmp_path / "a.mov", tracks=1), tmp_path / "b.ts", lag_ms=200)
  (note,) = [note for note in report.notes if "lost" in note]
  assert all(key in note for key in (*KEYS, "timecode 01:02:03:04")) and "left out" not in note
  (tmp_path / "c.mov").write_bytes((tmp_path / "plain.mov").read_bytes())
  assert fix_lag(tmp_path / "c.mov", tmp_path / "d.mov", lag_ms=200).notes == ()


def test_a_file_without_quicktime_keys_keeps_the_usual_tags(tmp_path):
  source = phone(tmp_path / "a.mp4", tracks=1, metadata={"title": "A", "artist": "B"}, timecode=None)
  fix_lag(source, tmp_path / "b.mp4", lag_ms=200)
  assert b"\xa9nam" in (tmp_path / "b.mp4").read_bytes()  # keys that other players read
  with av.open(str(tmp_path / "b.mp4")) as copy:
    assert copy.metadata["title"] == "A" and copy.metadata["artist"] == "B"


def test_all_sound_tracks_move_and_it_is_said(tmp_path):
  source = make(tmp_path / "a.mp4", Recording(early=0.2, tracks=3))
  report = fix_lag(source, tmp_path / "b.mp4", lag_ms=200)
  (note,) = report.notes
  assert "all its sound tracks are moved by +200 ms: streams 1 (audio aac), 2 (audio aac) and 3 (audio aac)" in note
  for track in range(3):
    lags = read(tmp_path / "b.mp4", sound=track).lags(Recording(early=0.2))
    assert lags == pytest.approx([0] * 4, abs=0.004)
  assert fix_lag(source, tmp_path / "c.mp4", lag_ms=0).notes == ()


def test_a_codec_that_the_header_cannot_name_is_refused_by_name(tmp_path):
  source = make(tmp_path / "a.mkv", Recording(sound_codec="libopus"))
  with pytest.raises(InputError, match=r"a mov file cannot hold video h264, audio opus: choose another suffix"):
    fix_lag(source, tmp_path / "b.mov", lag_ms=200)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mkv"]
