"""The clock of a file: corrections of its timestamps, found in one pass over its packets. Reading and repair share it.

Most files need no correction. It is made in four cases:

- The clock starts again (files joined end to end) or jumps far ahead. What follows is placed after what came before.
  Picture and sound get the same shift, so that the lag does not change.
- A short stretch has stray timestamps. It is placed between its neighbours.
- Pictures have no presentation times (AVI), or only those of decoding (MP4 without ctts). They are counted.
- An edit list presents stretches of an MP4 or MOV. FFmpeg does not place them exactly; they are placed here.

Gaps remain, and so does a picture that is held while the sound continues. Memory grows with the number of jumps only.
"""

from __future__ import annotations

import bisect
import collections
import contextlib
import dataclasses
import functools
import itertools
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

_REORDERED = 5  # frames by which a step back must exceed `jumps.BACK`: pictures are stored out of order
_MAX_SEGMENTS = 20_000
_WRAP = Fraction(2**33, 90_000)  # seconds: timestamps of MPEG streams have 33 bits of 1/90000 s
_MAX_EDITS = 10_000
_COUNTED = 100  # pictures that are decoded to find out whether they are stored out of order


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clock:
  """How the packets of a file are to be read."""

  patches: Mapping[int, bytes]  # for `open_media`
  # By stream, ascending: the stretches that are presented, (second of the movie, begin and end in the track) in ticks.
  # {}: FFmpeg's own presentation is exact.
  edits: Mapping[int, Sequence[tuple[int, int, int]]]
  shifts: Mapping[int, Sequence[tuple[int, int]]]  # by stream: (number of the first packet, ticks that are added)
  # The times of the pictures that the decoder returns. None: their own. "shown": picture k has the time of packet k
  # (AVI). "decoded": picture k has the time of the packet after which the decoder returns it.
  counted: str | None
  longest_hold: Fraction  # seconds for which a picture may be held
  notes: tuple[str, ...]  # what the user must know
  lone_jumps: tuple[str, ...]  # the notes that name a jump of one track alone

  def open(self, path: str | os.PathLike, **options):
    """`open_media` with the options that `packets` and `placed` require."""
    return open_media(path, patches=self.patches, ignore_edit_lists=bool(self.edits), **options)

  def placed(self, stream, begin: int | None, duration: int) -> int | None:
    """The time in ticks at which a decoded picture or sound with the time `begin` is presented; None if it is hidden.

    Where an edit begins within a picture, the picture is presented from the edit on. Sound keeps the time of its first
    sample, also where that lies before the edit.
    """
    edits = self.edits.get(stream.index)
    if not edits or begin is None:
      return begin
    number = bisect.bisect_right(edits, begin, key=lambda edit: edit[1]) - 1
    for start, first, end in edits[max(0, number) : number + 2]:
      if begin + max(duration, 1) > first and begin < end:
        return start + (max(0, begin - first) if stream.type == "video" else begin - first)
    return None

  def hides(self, packet: av.Packet) -> bool:
    """Whether nothing of a packet is presented."""
    if self.edits.get(packet.stream_index):
      return packet.pts is not None and self.placed(packet.stream, packet.pts, packet.duration or 0) is None
    return packet.is_discard

  def lead(self, stream) -> int:
    """Ticks from the times of a track to those of the movie, by the first edit of the track."""
    edits = self.edits.get(stream.index)
    return edits[0][0] - edits[0][1] if edits else 0

  def declared_end(self, stream) -> float:
    """The second at which a stream ends by the header; 0 if unknown."""
    edits = self.edits.get(stream.index)
    return _end(edits[-1]) * float(stream.time_base) if edits else declared_end(stream)

  def declared_end_of_all(self, container) -> float:
    """The second at which the file ends by the header; 0 if unknown."""
    ends = [self.declared_end(stream) for stream in container.streams if self.edits.get(stream.index)]
    return max(ends) if ends else declared_end_of_all(container)

  def packets(self, container, *streams) -> Iterator[av.Packet]:
    """The packets of streams with corrected times, in file order; the last of each stream flushes its decoder."""
    shifts = {index: [*moves] for index, moves in self.shifts.items()}
    numbers, added = collections.Counter(), collections.Counter()
    for packet in each(container.demux(streams)):
      index = packet.stream_index
      if packet.size:
        while index in shifts and shifts[index] and numbers[index] >= shifts[index][0][0]:
          added[index] = shifts[index].pop(0)[1]
        numbers[index] += 1
        if shift := added[index]:
          if packet.is_discard:  # FFmpeg hides packets whose times go back in a fragmented MP4
            packet = shown(packet)
          packet.pts = None if packet.pts is None else packet.pts + shift
          packet.dts = None if packet.dts is None else packet.dts + shift
      elif packet.pts is not None or packet.dts is not None:  # an empty chunk of AVI: no picture for this time
        continue
      yield packet


def _end(edit: tuple[int, int, int]) -> int:
  """The tick of the movie at which an edit ends."""
  start, first, end = edit
  return start + end - first


def shown(packet: av.Packet) -> av.Packet:
  """A copy of a packet without the mark by which the decoder hides it."""
  plain = av.Packet(bytes(packet))
  plain.stream, plain.time_base = packet.stream, packet.time_base
  plain.pts, plain.dts, plain.duration = packet.pts, packet.dts, packet.duration
  return plain


def read_clock(path: str | os.PathLike) -> Clock:
  """The clock of a file. The last few are cached by path, size and time of change.

  Raises InputError if the file cannot be read, or if its clock jumps and the place of what follows is unknown.
  """
  try:
    stat = os.stat(path)
  except OSError:
    with open_media(path):  # raises the reason
      raise InputError("the file is missing") from None
  return _read_clock(os.path.abspath(path), (stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_dev))


@functools.lru_cache(maxsize=4)
def _read_clock(path: str, state: tuple[int, ...]) -> Clock:
  clock, name, last, length = _survey(path, {})
  if name == "matroska,webm" and (patches := patched.joined_segments(path, after=last)):
    clock, *_ = _survey(path, patches)
  if not clock.shifts and patched.joined_behind(path, name=name, after=last):
    note = f"another file is joined to it at {length:.1f} s and is not read: players stop there as well"
    return dataclasses.replace(clock, notes=(*clock.notes, note))
  return clock


def _survey(
  path: str, patches: Mapping[int, bytes], edits: Mapping[int, Sequence[Edit]] | None = None
) -> tuple[Clock, str, int, float]:
  """(clock, name of the format, place of the last packet in bytes, length in seconds)."""
  with open_media(path, patches=patches, ignore_edit_lists=bool(edits)) as container:
    name = container.format.name
    if name == "avi" and not patches and (patches := patched.without_bad_index(path)):
      clock, _, last, length = _survey(path, patches)
      note = "its index points to wrong places: it is read without the index"
      return dataclasses.replace(clock, notes=(note, *clock.notes)), name, last, length
    in_ticks = _in_ticks(edits or {}, container)
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
    edits=in_ticks,
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
  """By stream the edit lists of a file that FFmpeg does not present exactly; {} for other files.

  FFmpeg begins an edit at its first whole picture, and a later edit at its first whole packet of sound (measured: up to
  three pictures late with B-frames). Fragments are excluded: FFmpeg hides all packets whose times go back there.
  `cut`: an edit list hides pictures that have presentation times.

  Raises InputError for a list that repeats or reorders stretches, or that plays one at another speed.
  """
  lists = dict(enumerate(edit_lists(path)))  # with those of subtitles
  read = [lists.get(index, ()) for index in tracks]
  if not (cut or any(len(edits) > 1 for edits in read)) or fragmented(path):
    return {}
  if any(edit.length == 0 for edits in read for edit in edits):  # to the end, which only FFmpeg knows
    return {}
  for edits in read:
    if len(edits) > _MAX_EDITS:
      raise InputError(f"its edit list has {len(edits)} entries, more than {_MAX_EDITS}")
    for edit, after in itertools.pairwise(edits):
      if after.media < edit.media + edit.length - STEP / 10:
        raise InputError(f"its edit list repeats or reorders stretches, from {float(after.start):.1f} s on")
    for edit in edits:
      if edit.rate != 1:
        raise InputError(f"its edit list plays a stretch at {edit.rate:g} times its speed")
  return lists


def _in_ticks(edits: Mapping[int, Sequence[Edit]], container) -> dict[int, Sequence[tuple[int, int, int]]]:
  """`Clock.edits`, of edits in seconds."""
  found = {}
  for stream in container.streams:
    ticks = lambda seconds, tick=stream.time_base: round(seconds / tick)
    found[stream.index] = [
      (ticks(edit.start), ticks(edit.media), ticks(edit.media + edit.length)) for edit in edits.get(stream.index, ())
    ]
  return {index: rows for index, rows in found.items() if rows}


def _how_counted(path: str, patches: Mapping[int, bytes]) -> str | None:
  """`Clock.counted` of a file whose packets have no presentation times, or times that never go back."""
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
  """Gathers the times of one stream, packet by packet."""

  def __init__(self, stream, *, name: str):
    self.index, self.tick, self.name = stream.index, stream.time_base, name
    rate = (stream.average_rate or stream.guessed_rate or FPS) if stream.type == "video" else None
    self._step = round(min(1 / rate, 1) / self.tick) if rate else 0  # of a packet without duration
    self._back = round(BACK / self.tick) + (_REORDERED + 1) * self._step
    self._ahead = round(STEP / self.tick) + self._step
    self._decoding = stream.container.format.name == "avi"  # its presentation times are inferred by FFmpeg
    self._runs: list[list[int]] = []  # as Segment, in ticks: fractions are slow
    self._number = 0
    self._last = 0
    self.hides = False  # an edit list hides packets
    self.in_order = True  # no picture is presented before one that is stored before it

  def see(self, packet: av.Packet, place: int) -> None:
    """Adds a packet with content. `place`: its first byte in the file."""
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
