from __future__ import annotations

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from awkward import bursts, click_times, read, talk
from footage import number_of, numbered, write_video

from synclipmae_jax.data.media import video
from synclipmae_jax.data.media.containers import CONTAINERS, SUFFIXES
from synclipmae_jax.types import InputError

FRAME = Fraction(1, 25)
WRITTEN = {
  "a.mp4": {}, "a.m4v": {}, "a.mov": {}, "a.3gp": {}, "a.3g2": {}, "a.mkv": {}, "a.ts": {}, "a.m2ts": {}, "a.flv": {},
  "a.avi": {"codec": "mpeg4", "sound_codec": "libmp3lame", "rate": 44100, "time_base": FRAME},
  "a.webm": {"codec": "libvpx", "sound_codec": "libopus", "rate": 48000},
  "a.mpg": {"codec": "mpeg1video", "sound_codec": "mp2", "rate": 44100, "time_base": FRAME},
  "a.vob": {"codec": "mpeg2video", "sound_codec": "mp2", "rate": 48000, "time_base": FRAME},
  "a.wmv": {"codec": "wmv2", "sound_codec": "libmp3lame", "rate": 44100, "time_base": FRAME},
  "a.asf": {"codec": "msmpeg4", "sound_codec": "libmp3lame", "rate": 44100, "time_base": FRAME},
  "a.ogv": {"codec": "libvpx", "sound_codec": "libopus", "rate": 48000},
  "a.mxf": {"codec": "mpeg2video", "sound_codec": "pcm_s16le", "rate": 48000, "time_base": FRAME},
}  # fmt: skip


def made(path, **kwargs):
  codec, sound = kwargs.get("codec", "libx264"), kwargs.get("sound_codec", "aac")
  missing = {codec, sound} - av.codecs_available
  if missing:
    pytest.skip(f"this build of FFmpeg has no {', '.join(missing)}")
  try:
    return talk(path, **kwargs)
  except av.error.FFmpegError as error:
    pytest.skip(f"this build of FFmpeg does not write {path.name} ({error})")


@pytest.mark.parametrize("name", WRITTEN)
def test_every_container_is_read_by_what_it_holds(tmp_path, name):
  path = made(tmp_path / name, **WRITTEN[name])
  path = path.rename(tmp_path / "no-ending")
  frames, heard, notes = read(path)
  shown = [number_of(frame.image) for frame in frames]
  assert len(shown) == pytest.approx(75, abs=2) and len(set(shown)) >= 74 and shown == sorted(shown)
  (second,) = click_times(heard)
  assert abs(shown[round(second * 25)] - 25) <= 2 and not notes


@pytest.mark.parametrize(
  ("name", "codec", "pixels"),
  [("a.gif", "gif", "rgb8"), ("a.y4m", "rawvideo", "yuv420p"), ("a.swf", "flv", "yuv420p"),
   ("a.h264", "libx264", "yuv420p"), ("a.nut", "libx264", "yuv420p"), ("a.ivf", "libvpx", "yuv420p")],
)  # fmt: skip
def test_another_format_is_refused_with_those_that_are_taken(tmp_path, name, codec, pixels):
  with av.open(str(tmp_path / name), "w") as container:
    stream = container.add_stream(codec, rate=25, width=64, height=64, pix_fmt=pixels)
    for index in range(10):
      container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(index), "rgb24").reformat(format=pixels)))
    container.mux(stream.encode())
  with pytest.raises(InputError, match="its format is not one of those accepted, MP4, MOV, .* and DV") as caught:
    video.probe(tmp_path / name)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "text",
  [
    "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{}\n#EXT-X-ENDLIST\n",
    "ffconcat version 1.0\nfile '{}'\n",
    "1\n00:00:00,000 --> 00:00:02,000\n{}\n",
    ";FFMETADATA1\ntitle={}\n",
  ],
)
def test_text_that_names_files_opens_none(tmp_path, text):
  other = talk(tmp_path / "secret.mp4")
  for name in ("a.mp4", "a.ts", "a.mpg"):
    (tmp_path / name).write_text(text.format(other))
    with pytest.raises(InputError, match="cannot be read as a video"):
      video.probe(tmp_path / name)


def test_the_list_of_endings_is_that_of_the_containers():
  for demuxer in CONTAINERS:
    av.format.ContainerFormat(demuxer, "r")  # raises if FFmpeg has none of that name
  assert set(WRITTEN) <= {f"a{suffix}" for suffix in SUFFIXES}
  assert len(set(SUFFIXES)) == len(SUFFIXES) and all(suffix == suffix.lower() for suffix in SUFFIXES)


def spoil_index(path, how):
  data = bytearray(path.read_bytes())
  at = data.rindex(b"idx1")
  count = struct.unpack_from("<I", data, at + 4)[0] // 16
  rng = np.random.default_rng(0)
  for entry in range(at + 8, at + 8 + 16 * count, 16):
    _, _, offset, size = struct.unpack_from("<4sIII", data, entry)
    offset, size = {
      "random": (int(rng.integers(2**24)), size), "shifted": (offset + 1000, size), "sizes": (offset, 7),
      "zero": (0, 0),
    }.get(how, (offset, size))  # fmt: skip
    struct.pack_into("<II", data, entry + 8, offset, size)
  if how == "none":
    del data[at:]
  path.write_bytes(data)


@pytest.mark.parametrize("how", ["random", "shifted", "sizes", "zero", "none", "whole"])
def test_an_avi_file_with_a_bad_index_is_read_along_its_chunks(tmp_path, how):
  path = write_video(tmp_path / "a.avi", map(numbered, range(75)), codec="mpeg4", sound=bursts(3, [1.0]),
                     sound_codec="pcm_s16le", time_base=FRAME)  # fmt: skip
  spoil_index(path, how)
  frames, heard, notes = read(path)
  assert [number_of(frame.image) for frame in frames] == list(range(75))
  assert click_times(heard) == pytest.approx([1.0], abs=0.002)
  assert ("its index points to wrong places: it is read without the index" in notes) == (how not in ("none", "whole"))
