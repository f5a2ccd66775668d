"""Recordings whose content gives its time: pictures carry numbers, sound has clicks. Made and read by plain PyAV.

The package under test is not used for reading here.
"""

from __future__ import annotations

import dataclasses
import struct
from fractions import Fraction

import av
import numpy as np
from footage import number_of, numbered

CLICKS = (0.5, 1.1, 1.9, 2.6)  # seconds of the sound


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
  """Parameters of a recording. Its picture is late by `lag` (timestamps) and `early` (content of the sound) seconds."""

  seconds: float = 3.0
  fps: Fraction = Fraction(25)
  uneven: bool = False
  codec: str = "libx264"
  b_frames: int = 0
  keyframes: int = 250
  sound_codec: str = "aac"
  rate: int = 48000
  layout: str = "mono"
  tracks: int = 1
  start: float = 0.0  # seconds of the container at which it begins
  lag: float = 0.0
  early: float = 0.0

  @property
  def times(self) -> list[Fraction]:
    """Seconds at which the pictures are taken; picture n carries the number n."""
    count = round(self.seconds * self.fps)
    if not self.uneven:
      return [Fraction(n) / self.fps for n in range(count)]
    steps = np.random.default_rng(count).integers(60, 141, count).cumsum()
    return [Fraction(int(step) * 9, 1000) / self.fps for step in steps]


def make(path, recording: Recording, *, options=None):
  """Writes a recording; its suffix names the container."""
  tick = Fraction(1, 90_000)
  with av.open(str(path), "w", options=options or {}) as container:
    picture = container.add_stream(recording.codec, rate=recording.fps)
    picture.width, picture.height = 64, 64
    picture.pix_fmt = "yuvj420p" if recording.codec == "mjpeg" else "yuv420p"
    picture.codec_context.time_base = tick if recording.uneven else 1 / recording.fps
    picture.codec_context.gop_size = recording.keyframes
    if recording.codec == "libx264":
      picture.options = {"preset": "ultrafast", "crf": "12", "threads": "1", "bf": str(recording.b_frames)}
    elif recording.codec in ("mpeg4", "mpeg2video", "mjpeg", "libvpx"):
      picture.codec_context.bit_rate = 2_000_000
      picture.codec_context.max_b_frames = recording.b_frames if recording.codec.startswith("mpeg") else 0
    sounds = [
      container.add_stream(recording.sound_codec, rate=recording.rate, layout=recording.layout)
      for _ in range(recording.tracks)
    ]
    for number, time in enumerate(recording.times):
      image = numbered(number + 1)
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
      frame.pts = round((time + Fraction(recording.start + recording.lag)) / picture.codec_context.time_base)
      frame.time_base = picture.codec_context.time_base
      container.mux(picture.encode(frame))
    container.mux(picture.encode())
    for sound in sounds:
      _encode_sound(container, sound, recording)
  return path


def _encode_sound(container, sound, recording: Recording) -> None:
  wave = np.random.default_rng(0).normal(0, 0.005, round(recording.seconds * recording.rate)).astype(np.float32)
  for click in CLICKS:
    if 0 <= click - recording.early < recording.seconds:
      wave[round((click - recording.early) * recording.rate)] = 0.9
  resampler = av.AudioResampler(sound.format, recording.layout, recording.rate)
  channels = sound.channels
  size = sound.codec_context.frame_size or 1024
  for first in range(0, len(wave), size):
    part = np.repeat(wave[None, first : first + size], channels, 0)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), format="fltp", layout=recording.layout)
    frame.sample_rate, frame.time_base = recording.rate, Fraction(1, recording.rate)
    frame.pts = round(recording.start * recording.rate) + first
    for converted in resampler.resample(frame):
      container.mux(sound.encode(converted))
  container.mux(sound.encode())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
  """What a player shows and plays: pictures and sound on one clock."""

  pictures: tuple[tuple[float, int], ...]  # (second, number) in the order of showing
  clicks: tuple[float, ...]  # seconds at which clicks are heard
  streams: tuple[str, ...]  # "video h264", "audio aac", ...
  packets: dict[int, int]  # by stream: how many are shown

  @property
  def numbers(self) -> list[int]:
    return [number for _, number in self.pictures]

  @property
  def length(self) -> float:
    return self.pictures[-1][0] - self.pictures[0][0]

  def lags(self, recording: Recording) -> list[float]:
    """Seconds by which the picture is late at each click, measured by the pictures nearest to it."""
    shown = {number: second for second, number in self.pictures}
    taken = {number + 1: float(time) for number, time in enumerate(recording.times)}
    late = {number: second - taken[number] for number, second in shown.items()}
    lags = []
    for click in self.clicks:
      number = min(shown, key=lambda number: abs(shown[number] - click))
      said = click - late[number]  # recording time of the picture at the click
      heard = min(CLICKS, key=lambda time: abs(time - said))
      lags.append(heard - said)
    return lags


def read(path, *, sound: int = 0) -> Content:
  """Decodes a file with PyAV as it is."""
  with av.open(str(path)) as container:
    streams = tuple(f"{each.type} {each.codec_context and each.codec_context.name}" for each in container.streams)
    packets: dict[int, int] = {}
    for packet in container.demux():
      if packet.size and not packet.is_discard:
        packets[packet.stream_index] = packets.get(packet.stream_index, 0) + 1
  pictures = []
  with av.open(str(path)) as container:
    step = 1 / container.streams.video[0].average_rate if container.format.name == "avi" else None
    for frame in container.decode(video=0):  # AVI has no times of presentation: pictures are counted
      second = len(pictures) * step if step else frame.pts * frame.time_base
      pictures.append((float(second), number_of(frame.to_ndarray(format="rgb24"))))
  return Content(pictures=tuple(pictures), clicks=_clicks(path, sound), streams=streams, packets=packets)


def _clicks(path, sound: int) -> tuple[float, ...]:
  times, levels = [], []
  with av.open(str(path)) as container:
    if not container.streams.audio:
      return ()
    count = None
    for frame in container.decode(audio=sound):
      samples = np.abs(frame.to_ndarray().astype(np.float64))
      if frame.format.name.startswith("s16"):
        samples /= 32768
      elif frame.format.name.startswith("s32"):
        samples /= 2**31
      level = samples.max(0) if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels).max(1)
      begin = float(frame.pts * frame.time_base) if frame.pts is not None else count
      times.append(begin + np.arange(len(level)) / frame.sample_rate)
      levels.append(level)
      count = begin + len(level) / frame.sample_rate
  times, level = np.concatenate(times), np.concatenate(levels)
  loud = np.flatnonzero(level > 0.2 * level.max())
  groups = np.split(loud, np.flatnonzero(np.diff(times[loud]) > 0.2) + 1)
  return tuple(float(times[group[level[group].argmax()]]) for group in groups)


# -- edit lists --

_FOLDERS = (b"moov", b"trak", b"edts", b"mdia")


def cut_by_edit_list(source, out, *parts: tuple[float, float]):
  """Copies an MP4 or MOV whose index is at its end, with an edit list that presents `parts`, in seconds."""
  content = source.read_bytes()
  *rest, (name, begin, body, end) = list(_boxes(content, 0, len(content)))
  assert name == b"moov" and rest
  scales = [struct.unpack(">I", content[at + 12 : at + 16])[0] for at in _find(content, body, end, b"mdhd")]
  (movie,) = (struct.unpack(">I", content[at + 12 : at + 16])[0] for at in _find(content, body, end, b"mvhd"))
  moov = _rewritten(content, body, end, parts, iter(scales), movie)
  out.write_bytes(content[:begin] + struct.pack(">I4s", 8 + len(moov), b"moov") + moov)
  return out


def _boxes(content, begin, end):
  while begin + 8 <= end:
    size, name = struct.unpack(">I4s", content[begin : begin + 8])
    yield name, begin, begin + 8, begin + size
    begin += size


def _find(content, begin, end, wanted):
  for name, _, body, stop in _boxes(content, begin, end):
    if name == wanted:
      yield body
    elif name in _FOLDERS:
      yield from _find(content, body, stop, wanted)


def _rewritten(content, begin, end, parts, scales, movie) -> bytes:
  out = b""
  for name, start, body, stop in _boxes(content, begin, end):
    if name == b"elst":
      scale, last = next(scales), stop - 12
      media = max(0, struct.unpack(">i", content[last + 4 : last + 8])[0])
      rows = [(round((b - a) * movie), media + round(a * scale), 1 << 16) for a, b in parts]
      rows = b"".join(struct.pack(">Iii", *row) for row in rows)
      out += struct.pack(">I4sII", 16 + len(rows), b"elst", 0, len(parts)) + rows
    elif name in _FOLDERS:
      inner = _rewritten(content, body, stop, parts, scales, movie)
      out += struct.pack(">I4s", 8 + len(inner), name) + inner
    else:
      out += content[start:stop]
  return out
