"""The clock of a file: what its timestamps are worth, found in one pass over its packets, without decoding.

Most files need nothing of it. It is for those whose timestamps a reader must not take as they stand:

- A clock that starts again, in files joined end to end, or jumps far ahead: what follows is placed after what came
  before, picture and sound by the same shift, so that a lag stays what it is.
- A stretch with stray timestamps between two that fit together: it is placed where its neighbours are.
- Pictures without presentation times (AVI) or with those of decoding (MP4 without ctts): they are counted.

Gaps stay gaps, and so does a picture that stands while the sound goes on. Memory grows with the number of jumps only.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import av

from synclipmae_jax.data.media import patched
from synclipmae_jax.data.media.containers import declared_end, declared_end_of_all, open_media, video_stream
from synclipmae_jax.data.media.jumps import BACK, STEP, Segment, resolve
from synclipmae_jax.data.media.mp4_boxes import Edit, edit_lists, fragmented
from synclipmae_jax.data.media.watchdog import each, watched
from synclipmae_jax.types import FPS, InputError

_REORDERED = 5  # frames that a step back must exceed beside `jumps.BACK`: pictures are stored out of order
_MAX_SEGMENTS = 20_000
_WRAP = Fraction(2**33, 90_000)  # seconds: timestamps of MPEG streams have 33 bits of 1/90000 s
_COUNTED = 100  # pictures that are decoded to see whether they come out of order


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clock:
  """How the packets of a file are to be read."""

  patches: Mapping[int, bytes]  # for `open_media`
  edits: Mapping[int, Sequence[Edit]]  # by stream: what is presented, in ascending order; {}: as FFmpeg presents it
  shifts: Mapping[int, Sequence[tuple[int, int]]]  # by stream: (packet from which on, ticks that are added)
  # Whose times pictures get in the order in which they are decoded to: None: each has its own. "shown": the k-th that
  # of the k-th packet (AVI). "decoded": the k-th that of the packet with which it comes out of the decoder.
  counted: str | None
  longest_hold: Fraction  # seconds that a picture may stand
  notes: tuple[str, ...]  # what a reader must know
  lone_jumps: tuple[str, ...]  # those of the notes that name a jump of one track alone

  def open(self, path: str | os.PathLike, **options):
    """`open_media` as `packets` and `placed` need it."""
    return open_media(path, patches=self.patches, ignore_edit_lists=bool(self.edits), **options)

  def placed(self, stream, begin: int | None, duration: int) -> int | None:
    """When a decoded picture or sound that has the time `begin` is presented, in ticks; None where it is hidden.

    A picture that an edit begins within is presented from there on; sound keeps the time of its first sample.
    """
    edits = self.edits.get(stream.index)
    if not edits or begin is None:
      return begin
    tick = stream.time_base
    for edit in edits:
      media, length = (round(seconds / tick) for seconds in (edit.media, edit.length))
      if begin + max(duration, 1) > media and begin < media + length:
        start = round(edit.start / tick)
        return start + (max(0, begin - media) if stream.type == "video" else begin - media)
    return None

  def hides(self, packet: av.Packet) -> bool:
    """Whether nothing of a packet is presented."""
    if self.edits.get(packet.stream_index):
      return packet.pts is not None and self.placed(packet.stream, packet.pts, packet.duration or 0) is None
    return packet.is_discard

  def lead(self, stream) -> int:
    """Ticks that are added to the times of a track, where it has one edit, to get those of the movie."""
    edits = self.edits.get(stream.index)
    return round((edits[0].start - edits[0].media) / stream.time_base) if edits else 0

  def declared_end(self, stream) -> float:
    """The second at which the header says that a stream ends; 0 where it does not say."""
    edits = self.edits.get(stream.index)
    return float(edits[-1].end) if edits else declared_end(stream)

  def declared_end_of_all(self, container) -> float:
    """The second at which the header says that everything ends; 0 where it does not say."""
    ends = [float(edits[-1].end) for edits in self.edits.values() if edits]
    return max(ends) if ends else declared_end_of_all(container)

  def packets(self, container, *streams) -> Iterator[av.Packet]:
    """The packets of streams with their times corrected; last of each the one that empties its decoder."""
    shifts = {index: [*moves] for index, moves in self.shifts.items()}
    numbers, added = collections.Counter(), collections.Counter()
    for packet in each(container.demux(streams)):
      index = packet.stream_index
      if packet.size:
        while index in shifts and shifts[index] and numbers[index] >= shifts[index][0][0]:
          added[index] = shifts[index].pop(0)[1]
        numbers[index] += 1
        if shift := added[index]:
          if packet.is_discard:  # FFmpeg hides what goes back in a fragmented MP4
            packet = shown(packet)
          packet.pts = None if packet.pts is None else packet.pts + shift
          packet.dts = None if packet.dts is None else packet.dts + shift
      elif packet.pts is not None or packet.dts is not None:  # an empty chunk of AVI: no picture for this time
        continue
      yield packet


def shown(packet: av.Packet) -> av.Packet:
  """A packet that its decoder does not hide, in place of one that an edit list hides."""
  plain = av.Packet(bytes(packet))
  plain.stream, plain.time_base = packet.stream, packet.time_base
  plain.pts, plain.dts, plain.duration = packet.pts, packet.dts, packet.duration
  return plain


def read_clock(path: str | os.PathLike) -> Clock:
  """The clock of a file; the last few are remembered, by their size and time.

  Raises InputError where the file cannot be read, or its clock jumps so that nobody knows what belongs together.
  """
  try:
    stat = os.stat(path)
  except OSError:
    with open_media(path):  # says why
      raise InputError("the file is missing") from None
  return _read_clock(os.path.abspath(path), (stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_dev))


@functools.lru_cache(maxsize=4)
def _read_clock(path: str, state: tuple[int, ...]) -> Clock:
  clock, name, last, length = _survey(path, {})
  if name == "matroska,webm" and (patches := patched.joined_segments(path, after=last)):
    clock, *_ = _survey(path, patches)
  if not clock.shifts and patched.joined_behind(path, name=name, after=last):
    note = f"another file is joined to it at {length:.1f} s and is not read: players stop there, too"
    return dataclasses.replace(clock, notes=(*clock.notes, note))
  return clock


def _survey(
  path: str, patches: Mapping[int, bytes], edits: Mapping[int, Sequence[Edit]] | None = None
) -> tuple[Clock, str, int, float]:
  """The clock, the name of the format, the place where the last packet stands, and the seconds that there are."""
  with open_media(path, patches=patches, ignore_edit_lists=bool(edits)) as container:
    name = container.format.name
    if name == "avi" and not patches and (patches := patched.without_bad_index(path)):
      clock, _, last, length = _survey(path, patches)
      note = "its index points to wrong places: it is read without it"
      return dataclasses.replace(clock, notes=(note, *clock.notes)), name, last, length
    picture = video_stream(container)
    sounds = [stream for stream in container.streams.audio if stream.codec_context is not None]
    tracks = {picture.index: _Stream(picture, name="picture")}
    for number, stream in enumerate(container.streams.audio, 1):
      if stream in sounds:
        tracks[stream.index] = _Stream(stream, name=f"sound track {number}" if len(sounds) > 1 else "sound")
    place = last = 0
    for packet in each(container.demux([picture, *sounds])):
      if packet.size:
        place = place if packet.pos is None else packet.pos
        last = max(last, place)
        tracks[packet.stream_index].see(packet, place)
    reorders = picture.codec_context.has_b_frames
  pictures, *sounds = tracks.values()
  if pictures.segments and patched.joined_at(path, name=name) is not None:
    at = float(pictures.segments[0].length)
    raise InputError(f"another file is joined to it at {at:.1f} s, which is not read in this format: split it there")
  counted = _how_counted(path, patches) if name == "avi" or (reorders and pictures.in_order) else None
  if name.startswith("mov") and edits is None and (edits := _edits(path, tracks, cut=pictures.hides and not counted)):
    return _survey(path, patches, edits)
  wrap = _WRAP if name in ("mpegts", "mpeg") else None
  jumps = resolve(pictures.segments, [(sound.name, sound.segments) for sound in sounds], wrap=wrap)
  if edits and any(seconds for moved in jumps.shifts for _, seconds in moved):
    raise InputError("its timestamps jump within a stretch that its edit list presents")
  clock = Clock(
    patches=patches,
    edits=edits or {},
    shifts={
      track.index: [(packet, round(seconds / track.tick)) for packet, seconds in moved]
      for track, moved in zip(tracks.values(), jumps.shifts, strict=True)
      if any(seconds for _, seconds in moved)
    },
    counted=counted,
    longest_hold=jumps.longest_hold,
    notes=tuple(jumps.notes),
    lone_jumps=tuple(jumps.lone),
  )
  ends = [segment.high - track.segments[0].low for track in tracks.values() for segment in track.segments]
  return clock, name, last, float(max(ends, default=0))


def _edits(path: str, tracks: Mapping[int, _Stream], *, cut: bool) -> dict[int, Sequence[Edit]]:
  """By stream the edit lists of a file that FFmpeg does not present exactly; {} for another.

  FFmpeg begins an edit at its first whole picture, and later ones at the first whole packet of sound (measured: up to
  three pictures off with B-frames). It hides all that goes back between fragments, edit list or not.
  `cut`: pictures are hidden, and not because their times are those of decoding.

  Raises InputError for a list that repeats or reorders stretches, or plays one at another speed.
  """
  lists = {index: edits for index, edits in enumerate(edit_lists(path)) if index in tracks}
  several = any(len(edits) > 1 for edits in lists.values())
  if not (several or cut) or fragmented(path):
    return {}
  for edits in lists.values():
    for edit, after in zip(edits, edits[1:]):  # noqa: B905
      if after.media < edit.media + edit.length - STEP / 10:
        raise InputError(f"its edit list repeats or reorders stretches, from {float(after.start):.1f} s on")
    for edit in edits:
      if edit.rate != 1:
        raise InputError(f"its edit list plays a stretch at {edit.rate:g} times its speed")
  return lists


def _how_counted(path: str, patches: Mapping[int, bytes]) -> str | None:
  """`Clock.counted` of a file whose packets have no presentation times, or ones that never go back."""
  stored = reordered = False
  with open_media(path, patches=patches, stored_times_only=True) as container:
    stream, last = video_stream(container), -1
    for number, packet in enumerate(each(container.demux(stream))):
      stored |= packet.pts is not None
      if number > _COUNTED or reordered:
        break
      if packet.size:
        packet.pts = number
      with contextlib.suppress(av.error.FFmpegError), watched():
        for frame in packet.decode():
          reordered |= frame.pts is not None and frame.pts < last
          last = frame.pts if frame.pts is not None else last
  return "shown" if not stored else "decoded" if reordered else None


class _Stream:
  """One stream, as its packets pass."""

  def __init__(self, stream, *, name: str):
    self.index, self.tick, self.name = stream.index, stream.time_base, name
    rate = (stream.average_rate or stream.guessed_rate or FPS) if stream.type == "video" else None
    self._step = round(min(1 / rate, 1) / self.tick) if rate else 0  # where a packet has no duration
    self._back = round(BACK / self.tick) + (_REORDERED + 1) * self._step
    self._ahead = round(STEP / self.tick) + self._step
    self._decoding = stream.container.format.name == "avi"  # FFmpeg makes up its presentation times
    self._runs: list[list[int]] = []  # as in Segment, but in ticks: fractions are slow
    self._number = 0
    self._last = 0
    self.hides = False  # an edit list hides some of it
    self.in_order = True  # no picture is presented before one that is stored before it

  def see(self, packet: av.Packet, place: int) -> None:
    """Is given every packet with content. `place`: its first byte in the file."""
    number, self._number = self._number, self._number + 1
    self.hides |= packet.is_discard
    begin = packet.dts if self._decoding or packet.pts is None else packet.pts
    if begin is None:
      return
    duration = packet.duration or self._step
    end, decoded = begin + duration, begin if packet.dts is None else packet.dts
    run = self._runs[-1] if self._runs else None
    if run is None or begin < run[4] - self._back or begin > run[4] + self._ahead:
      if len(self._runs) == _MAX_SEGMENTS:
        raise InputError(f"it is damaged: its timestamps jump more than {_MAX_SEGMENTS} times")
      self._runs.append([number, place, place, begin, end, decoded, decoded + duration])
    else:
      self.in_order &= begin >= self._last
      run[2:5] = max(run[2], place), min(run[3], begin), max(run[4], end)
      run[6] = decoded + duration
    self._last = begin

  @property
  def segments(self) -> list[Segment]:
    names = "low", "high", "first", "last"
    times = ({name: ticks * self.tick for name, ticks in zip(names, run[3:], strict=True)} for run in self._runs)
    return [
      Segment(packet=run[0], place=run[1], stop=run[2], **time) for run, time in zip(self._runs, times, strict=True)
    ]
