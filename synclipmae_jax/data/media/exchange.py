"""A copy of a file with other pictures and another sound; and a plain file of pictures and sound.

Everything else of the file is copied as `remux` does it: other sound tracks, subtitles, chapters, metadata. Pictures
are H.264, sound is AAC. Packets are written in order of time as the pictures come, in constant memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import heapq
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from synclipmae_jax.data.media import timeline
from synclipmae_jax.data.media.clock import read_clock
from synclipmae_jax.data.media.containers import open_media, video_stream
from synclipmae_jax.data.media.remux import Copy, destination
from synclipmae_jax.types import InputError

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}  # that hold H.264 and AAC
_BLOCK = 1024  # samples of a frame of AAC
_CRF = "16"  # of H.264: what a careful viewer does not tell from the source

Write = Callable[[av.VideoFrame], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sound:
  """The new sound from the first picture on: stretches float32 [channels, n] without gaps, `rate` samples a second."""

  rate: int
  channels: int
  stretches: Iterable[np.ndarray]


def format_of(out: str | os.PathLike) -> str:
  """FFmpeg's name of the container that the suffix of `out` selects. Raises InputError for another suffix."""
  if (name := FORMATS.get(Path(out).suffix.lower())) is None:
    raise InputError(f"{out}: its suffix must be one of {' '.join(FORMATS)}")
  return name


@contextlib.contextmanager
def exchanging(
  source: str | os.PathLike,
  partial: Path,
  *,
  out: Path,
  sound: Sound,
  replaced: int | None,
  end: float | None = None,
  notes: list[str],
) -> Iterator[Write]:
  """A function that writes the next picture of a copy of `source`; the copy is complete when the block ends.

  The pictures have the size, turn and time base of the source, and times in order, in seconds of the container. `sound`
  takes the place of stream `replaced` (None: it is added) and begins with the first picture. What other streams have
  from second `end` after the first picture on is left out. Written is `partial`; messages name `out`, whose suffix
  selects the container. What the copy lacks is added to `notes`.

  Raises InputError if the copy cannot be written or cannot hold a stream.
  """
  copy = _Exchange(Path(source), partial, out=out, container_format=format_of(out))
  copy.sound, copy.replaced, copy.end = sound, replaced, end
  with copy.writing() as write:
    yield write
  notes += copy.notes


@contextlib.contextmanager
def recording(partial: Path, *, out: Path, rate: Fraction, sound: Sound) -> Iterator[Write]:
  """A function that writes the next picture of a new file; `partial`, `out` and `sound` as in `exchanging`."""
  with destination(out):
    target = av.open(os.fspath(partial), "w", format=format_of(out), options={"movflags": "faststart"})
  try:
    picture = target.add_stream("libx264", rate=rate, options={"crf": _CRF})
    tracks = _Tracks(target, picture, out=out)
    tracks.hear(_add_sound(target, sound), sound, since=Fraction(0))
    yield tracks.write
    tracks.finish()
    with destination(out):
      target.close()
  except BaseException:
    with contextlib.suppress(Exception):
      target.close()
    raise


def _add_sound(target, sound: Sound):
  stream = target.add_stream("aac", rate=sound.rate, layout="stereo" if sound.channels == 2 else "mono")
  stream.codec_context.bit_rate = 96_000 * sound.channels
  return stream


class _Tracks:
  """The picture track under way, and what is written beside it in order of time."""

  def __init__(self, target, picture, *, out: Path, since: Fraction = Fraction(0)):
    self._target, self._picture, self._out, self._since = target, picture, out, since
    self._beside: list[Iterator[tuple[float, Callable[[], None]]]] = []  # second and what to write
    self._merged: Iterator[tuple[float, Callable[[], None]]] | None = None
    self._next: tuple[float, Callable[[], None]] | None = None

  def add(self, entries: Iterator[tuple[float, Callable[[], None]]]) -> None:
    self._beside.append(entries)

  def hear(self, stream, sound: Sound, *, since: Fraction) -> None:
    """Adds a sound that begins at second `since` of the copy."""

    def encode(frame: av.AudioFrame | None) -> None:
      self.mux(stream.encode(frame))

    def entries() -> Iterator[tuple[float, Callable[[], None]]]:
      place = round(since * sound.rate)
      for block in _blocks(sound):
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo" if sound.channels == 2 else "mono")
        frame.sample_rate, frame.time_base, frame.pts = sound.rate, Fraction(1, sound.rate), place
        yield place / sound.rate, functools.partial(encode, frame)
        place += block.shape[1]
      yield place / sound.rate, functools.partial(encode, None)

    self.add(entries())

  def write(self, frame: av.VideoFrame) -> None:
    second = frame.pts * frame.time_base - self._since
    if not self._picture.codec_context.is_open:
      self._describe(frame)
    self._up_to(float(second))
    time_base = self._picture.codec_context.time_base
    frame.pts, frame.time_base = round(second / time_base), time_base
    frame.pict_type = av.video.frame.PictureType.NONE  # as the encoder sees fit, not as it was in the source
    with destination(self._out):
      packets = self._picture.encode(frame)
    self.mux(packets)

  def _describe(self, frame: av.VideoFrame) -> None:
    context = self._picture.codec_context
    context.width, context.height, context.pix_fmt = frame.width, frame.height, frame.format.name
    if context.time_base is None:
      context.time_base = frame.time_base

  def finish(self) -> None:
    self.mux(self._picture.encode())
    self._up_to(float("inf"))

  def mux(self, packets) -> None:
    with destination(self._out):
      self._target.mux(packets)

  def _up_to(self, second: float) -> None:
    if self._merged is None:
      self._merged = heapq.merge(*self._beside, key=lambda entry: entry[0])
      self._next = next(self._merged, None)
    while self._next is not None and self._next[0] <= second:
      self._next[1]()
      self._next = next(self._merged, None)


def _blocks(sound: Sound) -> Iterator[np.ndarray]:
  """The sound in blocks of `_BLOCK` samples; the last is shorter."""
  held = np.zeros((sound.channels, 0), np.float32)
  for stretch in sound.stretches:
    held = np.concatenate([held, stretch.astype(np.float32)], axis=1)
    whole = held.shape[1] // _BLOCK * _BLOCK
    for start in range(0, whole, _BLOCK):
      yield np.ascontiguousarray(held[:, start : start + _BLOCK])
    held = held[:, whole:]
  if held.shape[1]:
    yield np.ascontiguousarray(held)


class _Exchange(Copy):
  """See `exchanging`."""

  needs_sound = False
  sound: Sound
  replaced: int | None
  end: float | None

  @contextlib.contextmanager
  def writing(self) -> Iterator[Write]:
    first = _first_picture(self._path)
    self._like, self._heard = first, None
    with self._opened() as (source, write):
      since = first.second - self._base
      tracks = _Tracks(self._target, self._drawn, out=self._out, since=self._base)
      tracks.hear(self._heard, self.sound, since=since)
      tracks.add(self._copied(source, write, since=since))
      yield tracks.write
      tracks.finish()

  def _copied(self, source, write, *, since: Fraction) -> Iterator[tuple[float, Callable[[], None]]]:
    """The packets of the other streams."""
    end = None if self.end is None else float(since + self._base) + self.end
    streams = [stream for stream in timeline.timed(source) if stream.index in write]
    for packet in self._clock.packets(source, *streams) if streams else ():
      if packet.size:
        time = packet.dts if packet.dts is not None else packet.pts
        second = 0.0 if time is None else float(time * packet.time_base)
        kept = end is None or packet.pts is None or packet.pts * packet.time_base < end
        # Called even for a packet that is left out: it takes the times of the packets one by one.
        yield second - float(self._base), functools.partial(write[packet.stream_index], packet, kept)

  def _begin(self, source, target, plan: timeline.Timeline):
    self._target, self._base = target, plan.base
    return super()._begin(source, target, plan)

  def _writer(self, stream, source, target, plan: timeline.Timeline):
    if stream.index == video_stream(source).index:
      self._drawn = self._add_picture(stream, target)
      return None
    if stream.index == self.replaced:
      self._heard = _add_sound(target, self.sound)
      self._heard.metadata.update({key: value for key, value in stream.metadata.items() if key == "language"})
      self._heard.disposition = stream.disposition
      return None
    return super()._writer(stream, source, target, plan)

  def _add_streams(self, target) -> None:
    if self._heard is None:
      self._heard = _add_sound(target, self.sound)

  def _add_picture(self, stream, target):
    first, rate = self._like.frame, stream.average_rate or stream.guessed_rate or 25
    drawn = target.add_stream("libx264", rate=rate, options={"crf": _CRF})
    context = drawn.codec_context
    context.width, context.height, context.pix_fmt = first.width, first.height, first.format.name
    context.time_base = stream.time_base if stream.time_base <= Fraction(1, 1000) else Fraction(1, 90_000)
    if stream.sample_aspect_ratio:
      context.sample_aspect_ratio = stream.sample_aspect_ratio
    for name in ("color_range", "color_primaries", "color_trc", "colorspace"):
      setattr(context, name, getattr(first, name))
    if angle := round(first.rotation):
      drawn.set_display_rotation(angle)
    drawn.metadata.update({key: value for key, value in stream.metadata.items() if key in ("language", "timecode")})
    drawn.disposition = stream.disposition
    return drawn


@dataclasses.dataclass(frozen=True)
class _First:
  frame: av.VideoFrame  # encodable
  second: Fraction  # of the container


def _first_picture(path: Path) -> _First:
  from synclipmae_jax.data.media.pictures import pictures
  from synclipmae_jax.data.media.planes import encodable

  clock = read_clock(path)
  with clock.open(path) as container:
    stream = video_stream(container)
    for picture in itertools.islice(pictures(container, stream, clock), 1000):
      if picture.frame is not None:
        return _First(encodable(picture.frame), (picture.begin or 0) * stream.time_base)
  raise InputError("it holds no picture that can be decoded")


def sound_streams(path: str | os.PathLike) -> list[int]:
  """The indices of the sound tracks of a file."""
  with open_media(path) as container:
    return [stream.index for stream in container.streams.audio]
