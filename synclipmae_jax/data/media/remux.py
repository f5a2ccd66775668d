"""Removes a lag from a file: packets are copied unchanged, and only the time of the sound moves.

If the picture is late, the sound is delayed. If the sound is late, it must begin earlier. In MP4 and MOV an edit list
begins it within its first packets, as for encoder priming. In other containers timestamps are not negative, so the
picture, subtitles and chapters are delayed instead. Nothing is dropped in either case. In AVI sound has no timestamps;
it is re-encoded as PCM.

The source is read twice: for its times (`data.media.timeline`), which are those of its `Clock`, and for the copy.
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

from synclipmae_jax.data.media import timeline
from synclipmae_jax.data.media.clock import read_clock
from synclipmae_jax.data.media.containers import check_length, open_media, video_stream
from synclipmae_jax.data.media.pcm_track import PcmTrack
from synclipmae_jax.data.media.picture_order import lacks_order, order_by_decoding
from synclipmae_jax.data.media.stream_names import described, lost_keys, stream_name
from synclipmae_jax.types import InputError

FORMATS = {
  ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".3gp": "3gp", ".mkv": "matroska", ".webm": "webm", ".ts": "mpegts",
  ".m2ts": "mpegts", ".mts": "mpegts", ".avi": "avi", ".wmv": "asf", ".asf": "asf", ".flv": "flv",
}  # fmt: skip
_EDIT_LISTS = ("mp4", "mov", "3gp")  # containers in which sound may begin before second 0
# Edit lists count in ticks of the movie: the default of 1 ms would round the lag. The index is written at the front.
_OPTIONS = {"movie_timescale": "90000", "movflags": "faststart"}
# FFmpeg's muxer writes other codecs as private data that no player can read.
_TRANSPORT_STREAM = frozenset(
  "mpeg1video mpeg2video mpeg4 h264 hevc vvc vc1 cavs dirac mp1float mp1 mp2float mp2 mp3float mp3 aac"
  " aac_latm ac3 eac3 dca truehd opus libopus s302m dvbsub dvb_teletext pgssub".split()
)
_MAX_LAG_MS = 60_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemuxReport:
  """Result of `fix_lag`."""

  out: str
  lag_ms: float
  copied: tuple[str, ...]  # streams copied bit by bit: "video h264", "audio aac", ...
  reencoded: tuple[str, ...]  # streams that were re-encoded
  notes: tuple[str, ...]  # for the user: streams that were left out, and what was moved


def fix_lag(source: str | os.PathLike, out: str | os.PathLike, *, lag_ms: float) -> RemuxReport:
  """Writes `source` to `out` without a lag. Streams are copied, not encoded (except the sound of AVI).

  Args:
    source: a video file with sound.
    out: the file to write, completely or not at all; its suffix selects the container, one of `FORMATS`.
    lag_ms: delay of the picture against the sound. All sound tracks are delayed by it; negative: they begin earlier.

  Raises:
    InputError: `source` is damaged, has no sound, or has times that a copy cannot keep; `out` exists, is `source`,
      cannot be written, or has a container that cannot hold the picture or the sound.
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
    with destination(out):
      folder = stack.enter_context(tempfile.TemporaryDirectory(dir=out.parent, prefix=".fix-"))
    partial = Path(folder) / f"partial{out.suffix}"
    copy = Copy(source, partial, out=out, container_format=container_format, lag=Fraction(lag_ms) / 1000)
    copy.run()
    refuse_existing(out)  # it may have been created meanwhile
    with destination(out):
      partial.rename(out)
  return RemuxReport(
    out=str(out), lag_ms=lag_ms, copied=tuple(copy.copied), reencoded=tuple(copy.reencoded), notes=tuple(copy.notes)
  )


def container_of(out: Path) -> str:
  """FFmpeg's name of the container that the suffix of `out` selects. Raises InputError if there is none."""
  if (name := FORMATS.get(out.suffix.lower())) is None:
    raise InputError(f"{out}: its suffix must name a container, one of {' '.join(FORMATS)}")
  return name


def refuse_existing(out: Path) -> None:
  """Raises InputError if `out` exists."""
  if os.path.lexists(out):
    raise InputError(f"{out} exists already: remove it or name another file")


@contextlib.contextmanager
def destination(out: Path) -> Iterator[None]:
  """Distinguishes errors of the destination from damage of the source (both are OSErrors of FFmpeg)."""
  try:
    yield
  except (OSError, ValueError, av.error.FFmpegError) as error:
    if isinstance(error, InputError):
      raise
    raise InputError(f"{out} cannot be written ({getattr(error, 'strerror', None) or error})") from error


class Copy:
  """One copy of a file; its results are in `copied`, `reencoded` and `notes`.

  `partial` is written; messages name `out`.
  """

  needs_sound = True

  def __init__(self, path: Path, partial: Path, *, out: Path, container_format: str, lag: Fraction = Fraction(0)):
    self.copied, self.reencoded, self.notes = [], [], []
    self._tracks = []  # streams of the source whose packets are copied
    self._path, self._partial, self._out, self._format, self._lag = path, partial, out, container_format, lag
    # Either the sound moves, or everything else.
    backward = lag < 0 and container_format not in (*_EDIT_LISTS, "avi")
    self._sound_shift, self._rest_shift = (Fraction(0), -lag) if backward else (lag, Fraction(0))
    if backward:
      self.notes.append(f"the picture begins {float(-lag) * 1000:g} ms later, so that no sound is lost")

  def run(self) -> None:
    with self._opened() as (source, write):
      for packet in self._clock.packets(source, *timeline.timed(source)):
        if packet.size and packet.stream_index in write:
          write[packet.stream_index](packet)

  @contextlib.contextmanager
  def _opened(self) -> Iterator[tuple[av.container.InputContainer, dict[int, Callable[..., None]]]]:
    """The source and, by the index of a stream, a function that writes its packets. The copy is closed at the end."""
    self._clock = read_clock(self._path)
    with self._clock.open(self._path) as source:
      plan = self._plan(source)
    with self._clock.open(self._path) as source:
      self._name_sound(source)
      options = dict(_OPTIONS) if self._format in _EDIT_LISTS else {}
      if options and any("." in key for key in source.metadata):  # com.apple.quicktime.make, ...
        options["movflags"] += "+use_metadata_tags"
      with destination(self._out):
        target = av.open(os.fspath(self._partial), "w", format=self._format, options=options)
      try:
        yield source, self._begin(source, target, plan)
        with destination(self._out):
          target.close()
      except BaseException:
        with contextlib.suppress(Exception):
          target.close()
        raise
      self._name_losses(source)

  def _plan(self, source) -> timeline.Timeline:
    """The times of all streams. Reads the file to its end."""
    picture = video_stream(source)
    if self.needs_sound and not source.streams.audio:
      raise InputError("it has no sound track")
    self._same_container = self._format in source.format.name.split(",")
    if self._format == "avi" and not self._same_container:
      raise InputError(f"{self._out}: only an AVI file can be written as AVI: choose another suffix")
    packets = timeline.scan(source, timeline.timed(source), picture, self._clock)
    end, declared = float(packets[picture.index].end), self._clock.declared_end(picture)
    check_length("picture", end=end, declared=declared)
    if self._format != "avi" and lacks_order(self._clock, picture):
      order_by_decoding(self._path, packets[picture.index], self._clock)
    hides = self._format in _EDIT_LISTS
    plan = timeline.plan(packets, picture=picture.index, clock=self._clock, hides=hides)
    self.notes += plan.notes
    return plan

  def _begin(self, source, target, plan: timeline.Timeline) -> dict[int, Callable[..., None]]:
    """Adds the streams and writes the header."""
    target.metadata.update(described(source.metadata))
    if not any("timecode" in stream.metadata for stream in source.streams.video):  # else the copied stream has it
      target.metadata.update({key: value for key, value in source.metadata.items() if key == "timecode"})
    target.set_chapters([self._moved(chapter, plan.base) for chapter in source.chapters()])
    write = {}  # by the index of the stream in the source
    for stream in source.streams:
      if (writer := self._writer(stream, source, target, plan)) is not None:
        write[stream.index] = writer
    self._add_streams(target)
    try:
      with destination(self._out):
        target.start_encoding()
    except InputError as error:
      if isinstance(error.__cause__, (av.error.ArgumentError, av.error.InvalidDataError, av.error.PatchWelcomeError)):
        held = ", ".join(self.copied)
        raise InputError(f"{self._out}: a {self._format} file cannot hold {held}: choose another suffix") from error
      raise
    return write

  def _add_streams(self, target) -> None:
    """Streams that are not in the source."""

  def _moved(self, chapter: dict, base: Fraction) -> dict:
    ticks = round((self._rest_shift - base) / chapter["time_base"])
    return chapter | {name: max(0, chapter[name] + ticks) for name in ("start", "end")}

  def _writer(self, stream, source, target, plan: timeline.Timeline) -> Callable[..., None] | None:
    """A function that writes the packets of a stream; None if it is left out or has none."""
    name = stream_name(stream, self._path)
    if stream.codec_context is None and stream.type != "attachment" or stream.type == "data":
      # The titles of MP4 chapters appear as a data stream; `set_chapters` writes them. The value of a timecode is in
      # the metadata of the picture, from which the muxers of MP4 and MOV create the track.
      chapters = source.chapters() and stream.type == "data" and getattr(stream, "name", None) == "bin_data"
      if not chapters and "timecode" not in stream.metadata:
        self.notes.append(f"left out: stream {stream.index} ({name})")
      return None
    mux = self._muxing(target)
    if stream.type == "audio" and self._format == "avi":
      self.reencoded.append(f"{name} as pcm_s16le")
      return PcmTrack(stream, target, shift=self._sound_shift, mux=mux)
    cover = stream.type == "video" and bool(stream.disposition & av.stream.Disposition.attached_pic)
    try:
      # FFmpeg would accept these, and then write no header or a second picture track.
      if (stream.type == "attachment" and self._format != "matroska") or (cover and self._format not in _EDIT_LISTS):
        raise ValueError(name)
      if self._format == "mpegts" and stream.codec_context.name not in _TRANSPORT_STREAM:
        raise ValueError(name)
      copy = target.add_stream_from_template(stream, opaque=True)
    except ValueError as error:
      if stream.type in ("video", "audio") and not cover:
        raise InputError(f"{self._out}: a {self._format} file cannot hold its {name}: choose another suffix") from error
      self.notes.append(f"left out: stream {stream.index} ({name}), which a {self._format} file cannot hold")
      return None
    copy.metadata.update(stream.metadata)
    copy.disposition = stream.disposition
    if self._same_container and name in ("video hevc", "video h264"):
      copy.codec_context.codec_tag = stream.codec_context.codec_tag  # Apple's players want hvc1, not hev1
    self.copied.append(name)
    if stream.type == "attachment":
      return None
    self._tracks.append(stream)
    times = plan.times[stream.index]
    shift = round((self._sound_shift if stream.type == "audio" else self._rest_shift) / times.time_base)
    fine = round(stream.time_base / times.time_base)
    rows = zip(*(np.asarray(column).tolist() for column in (times.pts, times.dts, times.keep)), strict=True)

    def write(packet: av.Packet, wanted: bool = True) -> None:
      pts, dts, keep = next(rows)
      if keep and wanted:
        packet.pts = None if pts == timeline.NO_TIME else pts + shift
        packet.dts = None if dts == timeline.NO_TIME else dts + shift
        packet.duration, packet.time_base = (packet.duration or 0) * fine, times.time_base
        packet.stream = copy
        mux(packet)

    return write

  def _muxing(self, target) -> Callable[..., None]:
    def mux(packets) -> None:
      with destination(self._out):
        target.mux(packets)

    return mux

  def _name_sound(self, source) -> None:
    """Adds a note that several sound tracks move together, if they move."""
    tracks = [f"{each.index} ({stream_name(each, self._path)})" for each in source.streams.audio if each.codec_context]
    if self._lag and len(tracks) > 1:
      names = f"{', '.join(tracks[:-1])} and {tracks[-1]}"
      self.notes.append(f"all its sound tracks are moved by {float(self._lag) * 1000:+g} ms: streams {names}")

  def _name_losses(self, source) -> None:
    """Reads the copy and names what it has lost. Raises InputError if that is a track."""
    with open_media(self._partial) as copy:
      for kind in ("video", "audio"):
        wanted = [each for each in self._tracks if each.type == kind and _decodes(self._path, each)]
        if sum(_decodes(self._partial, each) for each in copy.streams if each.type == kind) < len(wanted):
          name = stream_name(wanted[-1], self._path)
          raise InputError(f"{self._out}: a {self._format} file cannot hold its {name}: choose another suffix")
      lost = [f"metadata {key}" for key in lost_keys(source.metadata, copy.metadata)]
      before, after = _timecodes(source), _timecodes(copy)
      lost += [f"timecode {value}" for value in sorted(before - after)]
      if (angle := _rotation(self._path)) != _rotation(self._partial):
        lost.append(f"the rotation of its picture by {angle} degrees")
    if lost:
      self.notes.append(f"lost, as a {self._format} file does not take it: {', '.join(lost)}")


def _decodes(path: Path, stream) -> bool:
  """Whether anything of a stream can be decoded."""
  if stream.codec_context is None:
    return False
  try:
    with open_media(path) as container:
      return next(container.decode(container.streams[stream.index]), None) is not None
  except InputError:
    return False


def _timecodes(container) -> set[str]:
  tags = [(key.lower(), value) for each in (container, *container.streams) for key, value in each.metadata.items()]
  return {value for key, value in tags if key == "timecode"}


def _rotation(path: Path) -> int:
  """Rotation of the first picture in degrees."""
  with open_media(path) as container:
    return next((round(frame.rotation) for frame in container.decode(video_stream(container))), 0)
