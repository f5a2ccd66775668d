"""Takes a lag out of a file: its packets are copied as they are, only the time at which the sound is heard moves.

Where the picture comes late the sound is delayed. Where the sound comes late it must be heard earlier: MP4 and MOV say
with an edit list that it starts inside its first packets, as they do for every encoder's priming; in the other
containers a timestamp is not negative, so there the picture (with subtitles and chapters) is delayed instead. Nothing
is dropped in either case. AVI has no time of its own for sound, so there the sound is laid anew, as PCM.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from synclipmae_jax.data.media.video import check_length, declared_end, open_media, video_stream
from synclipmae_jax.types import InputError

FORMATS = {
  ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".ts": "mpegts", ".m2ts": "mpegts",
  ".mts": "mpegts", ".avi": "avi",
}  # fmt: skip
_NEGATIVE = ("mp4", "mov")  # containers in which sound may begin before second 0
# Edit lists count in ticks of the movie: the default of 1 ms would round what a lag is. The index goes to the front.
_OPTIONS = {"mp4": {"movie_timescale": "90000", "movflags": "faststart"}}
_OPTIONS["mov"] = _OPTIONS["mp4"]
_MAX_LAG_MS = 60_000
_MAX_DRIFT = Fraction(1, 100)  # seconds between a sound's timestamps and its samples, as in data.audio
_MAX_GAP = 60  # seconds; a longer jump of the sound's timestamps is damage


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemuxReport:
  """What `fix_lag` did."""

  out: str
  lag_ms: float
  copied: tuple[str, ...]  # the streams that are in `out` bit by bit: "video h264", "audio aac", ...
  reencoded: tuple[str, ...]  # those that had to be encoded anew
  notes: tuple[str, ...]  # what a reader must know: streams that were left out, what was moved and how


def fix_lag(source: str | os.PathLike, out: str | os.PathLike, *, lag_ms: float) -> RemuxReport:
  """Writes `source` to `out` with a lag taken out; streams are copied, not encoded anew (but for the sound of AVI).

  Args:
    source: a video file with sound.
    out: the file to write, whole or not at all; its suffix names the container, one of `FORMATS`.
    lag_ms: how late the picture comes; all sound is delayed by as much against the picture. Negative: heard earlier.

  Raises:
    InputError: `source` is damaged or has no sound; `out` exists, is `source`, cannot be written, or is of a container
      that cannot hold the picture or the sound.
  """
  source, out = Path(source), Path(out)
  if not (math.isfinite(lag_ms) and abs(lag_ms) <= _MAX_LAG_MS):
    raise InputError(f"a lag of {lag_ms:g} ms cannot be taken out: at most {_MAX_LAG_MS / 1000:g} s either way")
  container_format = container_of(out)
  with contextlib.suppress(OSError):
    if os.path.samefile(source, out):
      raise InputError(f"{out} is the file itself: name another file, it is never overwritten")
  refuse_existing(out)
  with contextlib.ExitStack() as stack:
    container = stack.enter_context(open_media(source))
    with _writing(out):
      folder = stack.enter_context(tempfile.TemporaryDirectory(dir=out.parent, prefix=".fix-"))
    partial = Path(folder) / f"partial{out.suffix}"
    copy = _Copy(container, partial, out=out, container_format=container_format, lag=Fraction(lag_ms) / 1000)
    copy.run()
    refuse_existing(out)  # it may have come meanwhile
    with _writing(out):
      partial.rename(out)
  return RemuxReport(
    out=str(out), lag_ms=lag_ms, copied=tuple(copy.copied), reencoded=tuple(copy.reencoded), notes=tuple(copy.notes)
  )


def container_of(out: Path) -> str:
  """FFmpeg's name of the container that the suffix of `out` names. Raises InputError."""
  if (name := FORMATS.get(out.suffix.lower())) is None:
    raise InputError(f"{out}: its suffix must name a container, one of {' '.join(FORMATS)}")
  return name


def refuse_existing(out: Path) -> None:
  """Raises InputError where there is something already."""
  if os.path.lexists(out):
    raise InputError(f"{out} exists already: remove it or name another file")


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
  """Tells what goes wrong with the destination from damage of the source (FFmpeg's errors are OSErrors here)."""
  try:
    yield
  except (OSError, ValueError, av.error.FFmpegError) as error:
    if isinstance(error, InputError):
      raise
    raise InputError(f"{out} cannot be written ({getattr(error, 'strerror', None) or error})") from error


class _Copy:
  """One run from an open container to a file; what it did is in `copied`, `reencoded` and `notes`."""

  def __init__(self, source, partial: Path, *, out: Path, container_format: str, lag: Fraction):
    self.copied, self.reencoded, self.notes = [], [], []
    self._source, self._partial, self._out, self._format = source, partial, out, container_format
    # Either the sound moves, or all the rest.
    backward = lag < 0 and container_format not in (*_NEGATIVE, "avi")
    self._sound_shift, self._rest_shift = (Fraction(0), -lag) if backward else (lag, Fraction(0))
    if backward:
      self.notes.append(f"the picture begins {float(-lag) * 1000:g} ms later, so that no sound is lost")
    self._same_container = container_format in source.format.name.split(",")

  def run(self) -> None:
    picture = video_stream(self._source)
    if not self._source.streams.audio:
      raise InputError("it has no sound track")
    if self._format == "avi" and not self._same_container:
      raise InputError(f"{self._out}: only an AVI file can be written as AVI: choose another suffix")
    with _writing(self._out):
      target = av.open(os.fspath(self._partial), "w", format=self._format, options=_OPTIONS.get(self._format, {}))
    try:
      target.metadata.update(self._source.metadata)
      target.set_chapters([self._shifted(chapter) for chapter in self._source.chapters()])
      write = {}  # by the index of the stream in the source
      for stream in self._source.streams:
        if (writer := self._writer(stream, target)) is not None:
          write[stream.index] = writer
      ends = {picture.index: Fraction(0)}
      for packet in self._source.demux([self._source.streams[index] for index in write]):
        if packet.size:
          if packet.stream_index in ends and packet.pts is not None:
            end = (packet.pts + (packet.duration or 0)) * packet.time_base
            ends[packet.stream_index] = max(ends[packet.stream_index], end)
          write[packet.stream_index](packet)
      check_length("picture", end=float(ends[picture.index]), declared=declared_end(picture))
      with _writing(self._out):
        target.close()
    except BaseException:
      with contextlib.suppress(Exception):
        target.close()
      raise

  def _shifted(self, chapter: dict) -> dict:
    ticks = round(self._rest_shift / chapter["time_base"])
    return chapter | {"start": chapter["start"] + ticks, "end": chapter["end"] + ticks}

  def _writer(self, stream, target) -> Callable[[av.Packet], None] | None:
    """What to do with the packets of a stream; None where it is left out."""
    name = f"{stream.type} {stream.codec_context.name if stream.codec_context else stream.name or ''}".strip()
    if stream.type == "data" or stream.codec_context is None and stream.type != "attachment":
      # The titles of MP4's chapters are read as a stream of data; `set_chapters` has them.
      if not (self._source.chapters() and stream.type == "data" and stream.name == "bin_data"):
        self.notes.append(f"left out: stream {stream.index} ({name})")
      return None
    if stream.type == "audio" and self._format == "avi":
      self.reencoded.append(f"{name} as pcm_s16le")
      return _PcmTrack(stream, target, out=self._out, shift=self._sound_shift)
    cover = stream.type == "video" and bool(stream.disposition & av.stream.Disposition.attached_pic)
    try:
      # What FFmpeg would accept, and then write no header or a second picture track.
      if (stream.type == "attachment" and self._format != "matroska") or (cover and self._format not in _NEGATIVE):
        raise ValueError(name)
      copy = target.add_stream_from_template(stream, opaque=True)
    except ValueError as error:
      if stream.type in ("video", "audio") and not cover:
        raise InputError(f"{self._out}: a {self._format} file cannot hold its {name}: choose another suffix") from error
      self.notes.append(f"left out: stream {stream.index} ({name}), which a {self._format} file cannot hold")
      return None
    copy.metadata.update(stream.metadata)
    copy.disposition = stream.disposition
    if self._same_container and stream.type in ("video", "audio"):
      copy.codec_context.codec_tag = stream.codec_context.codec_tag  # Apple's players want hvc1, not hev1
    self.copied.append(name)
    if stream.type == "attachment":
      return None
    shift = round((self._sound_shift if stream.type == "audio" else self._rest_shift) / stream.time_base)
    last = None

    def write(packet: av.Packet) -> None:
      nonlocal last
      if packet.pts is not None:
        packet.pts += shift
      if packet.dts is not None:
        packet.dts += shift
        if last is not None and packet.dts <= last:  # a clock that goes back would be refused
          packet.dts = last + 1
          packet.pts = packet.pts if packet.pts is None else max(packet.pts, packet.dts)
        last = packet.dts
      packet.stream = copy
      with _writing(self._out):
        target.mux(packet)

    return write


class _PcmTrack:
  """Lays a sound track anew from second 0: silence where it begins late or has a gap, cut where it begins early."""

  def __init__(self, stream, target, *, out: Path, shift: Fraction):
    self._target, self._out, self._shift, self._rate = target, out, shift, stream.rate
    self._layout, self._channels = stream.layout, stream.channels
    self._resampler = av.AudioResampler("s16", stream.layout, stream.rate)
    self._track = target.add_stream("pcm_s16le", rate=stream.rate, layout=stream.layout)
    self._track.metadata.update(stream.metadata)
    self._position = 0  # samples written

  def __call__(self, packet: av.Packet) -> None:
    for frame in packet.decode():
      begin = self._position if frame.pts is None else round((frame.pts * frame.time_base + self._shift) * self._rate)
      frame.pts = None
      try:
        parts = [part.to_ndarray().reshape(-1, self._channels) for part in self._resampler.resample(frame)]
      except ValueError as error:
        raise InputError("its sound changes its sample rate or its channels on the way") from error
      samples = np.concatenate([np.zeros((0, self._channels), np.int16), *parts])
      if abs(begin - self._position) <= _MAX_DRIFT * self._rate and self._position:
        begin = self._position
      if begin - self._position > _MAX_GAP * self._rate:
        raise InputError(f"its sound's timestamps jump by {(begin - self._position) / self._rate:.0f} s")
      while self._position < begin:
        self._write(np.zeros((min(begin - self._position, self._rate), self._channels), np.int16))
      self._write(samples[self._position - begin :])

  def _write(self, samples: np.ndarray) -> None:
    if not len(samples):
      return
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples).reshape(1, -1), format="s16", layout=self._layout)
    frame.sample_rate, frame.time_base, frame.pts = self._rate, Fraction(1, self._rate), self._position
    self._position += len(samples)
    with _writing(self._out):
      self._target.mux(self._track.encode(frame))
