"""The clock of a file: what its timestamps are worth, found in one pass over its packets, without decoding.

Most files need nothing of it. It is for those whose timestamps a reader must not take as they stand:

- A clock that starts again, in files joined end to end, or jumps far ahead: what follows is placed after what came
  before, picture and sound by the same shift, so that a lag stays what it is.
- A stretch with stray timestamps between two that fit together: it is placed where its neighbours are.
- Pictures without presentation times (AVI) or with those of decoding (MP4 without ctts): they are counted.

Gaps stay gaps, and so does a picture that stands while the sound goes on. Memory grows with the number of jumps only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction

import av

from synclipmae_jax.data.media import patched
from synclipmae_jax.data.media.containers import open_media, video_stream
from synclipmae_jax.data.media.watchdog import each, watched
from synclipmae_jax.types import FPS, InputError

MAX_HOLD = 10  # seconds a picture may stand, or sound be absent, where the other track does not say that time passed
_STEP = Fraction(1)  # seconds: a longer step ahead begins a new segment
_BACK = Fraction(1, 2)  # seconds a step back must exceed, and for pictures, which are stored out of order, ...
_REORDERED = 5  # ... so many frames more
_STRAY = 5  # seconds that a stray stretch may last
_STRAY_SEGMENTS = 4
_MAX_SEGMENTS = 20_000
_COUNTED = 100  # pictures that are decoded to see whether they come out of order


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clock:
  """How the packets of a file are to be read."""

  patches: Mapping[int, bytes]  # for `open_media`
  shifts: Mapping[int, Sequence[tuple[int, int]]]  # by stream: (packet from which on, ticks that are added)
  # Whose times pictures get in the order in which they are decoded to: None: each has its own. "shown": the k-th that
  # of the k-th packet (AVI). "decoded": the k-th that of the packet with which it comes out of the decoder.
  counted: str | None
  longest_hold: Fraction  # seconds that a picture may stand
  notes: tuple[str, ...]  # what a reader must know

  def packets(self, container, stream) -> Iterator[av.Packet]:
    """The packets of a stream with their times corrected; last the one that empties its decoder."""
    shifts, number, shift = [*self.shifts.get(stream.index, ())], 0, 0
    for packet in each(container.demux(stream)):
      if packet.size:
        while shifts and number >= shifts[0][0]:
          shift = shifts.pop(0)[1]
        number += 1
        if shift:
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
  clock, name, last = _survey(path, {})
  if name == "avi" and (patches := patched.without_bad_index(path)):
    clock, *_ = _survey(path, patches)
    return dataclasses.replace(clock, notes=("its index points to wrong places: it is read without it", *clock.notes))
  if name == "matroska,webm" and (patches := patched.joined_segments(path, after=last)):
    clock, *_ = _survey(path, patches)
  return clock


def _survey(path: str, patches: Mapping[int, bytes]) -> tuple[Clock, str, int]:
  """The clock, the name of the format, and the place of the last packet."""
  with open_media(path, patches=patches) as container:
    picture = video_stream(container)
    sounds = [stream for stream in container.streams.audio if stream.codec_context is not None]
    tracks = {picture.index: _Track(picture, name="picture")}
    for number, stream in enumerate(container.streams.audio, 1):
      if stream in sounds:
        tracks[stream.index] = _Track(stream, name=f"sound track {number}" if len(sounds) > 1 else "sound")
    last = 0
    for packet in each(container.demux([picture, *sounds])):
      if packet.size:
        last = last if packet.pos is None else packet.pos
        tracks[packet.stream_index].see(packet, last)
    name, reorders = container.format.name, picture.codec_context.has_b_frames
  pictures, *sounds = tracks.values()
  counted = _how_counted(path, patches) if name == "avi" or (reorders and pictures.in_order) else None
  shifts, longest, notes = _continue(pictures, sounds)
  clock = Clock(patches=patches, shifts=shifts, counted=counted, longest_hold=longest, notes=notes)
  return clock, name, last


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


@dataclasses.dataclass
class _Segment:
  """A run of packets without a jump."""

  packet: int  # number of the first, in its stream
  place: int  # of the first, in bytes of the file
  low: Fraction  # s, of presentation
  high: Fraction
  first: Fraction  # s, of decoding: pictures are stored out of order, and a jump comes between two stored ones
  last: Fraction

  @property
  def length(self) -> Fraction:
    return self.high - self.low


class _Track:
  """One stream, as its packets pass."""

  def __init__(self, stream, *, name: str):
    self.index, self.tick, self.name, self.is_picture = stream.index, stream.time_base, name, stream.type == "video"
    rate = (stream.average_rate or stream.guessed_rate or FPS) if self.is_picture else None
    self._step = round(min(1 / rate, 1) / self.tick) if rate else 0  # where a packet has no duration
    self._back = round(_BACK / self.tick) + (_REORDERED + 1) * self._step
    self._ahead = round(_STEP / self.tick) + self._step
    self._decoding = stream.container.format.name == "avi"  # FFmpeg makes up its presentation times
    self._runs: list[list[int]] = []  # as in _Segment, but in ticks: fractions are slow
    self._number = 0
    self._last = 0
    self.in_order = True  # no picture is presented before one that is stored before it

  def see(self, packet: av.Packet, place: int) -> None:
    """Is shown every packet that holds something; `place`: where it begins in the file."""
    number, self._number = self._number, self._number + 1
    begin = packet.dts if self._decoding or packet.pts is None else packet.pts
    if begin is None:
      return
    duration = packet.duration or self._step
    end, decoded = begin + duration, begin if packet.dts is None else packet.dts
    run = self._runs[-1] if self._runs else None
    if run is None or begin < run[3] - self._back or begin > run[3] + self._ahead:
      if len(self._runs) == _MAX_SEGMENTS:
        raise InputError(f"it is damaged: its timestamps jump more than {_MAX_SEGMENTS} times")
      self._runs.append([number, place, begin, end, decoded, decoded + duration])
    else:
      self.in_order &= begin >= self._last
      run[2], run[3], run[5] = min(run[2], begin), max(run[3], end), decoded + duration
    self._last = begin

  @functools.cached_property
  def segments(self) -> list[_Segment]:
    return [_Segment(packet, place, *(ticks * self.tick for ticks in times)) for packet, place, *times in self._runs]


@dataclasses.dataclass
class _Epoch:
  """Segments on one clock."""

  place: int
  low: Fraction
  high: Fraction
  first: Fraction
  last: Fraction
  shifts: list[tuple[int, Fraction]]  # (packet, seconds that it and what follows are moved by), for strays

  @classmethod
  def begin(cls, part: _Segment) -> _Epoch:
    return cls(part.place, part.low, part.high, part.first, part.last, [(part.packet, Fraction(0))])


def _continue(
  picture: _Track, sounds: Sequence[_Track]
) -> tuple[dict[int, list[tuple[int, int]]], Fraction, tuple[str, ...]]:
  """The shifts of every stream in its ticks, the longest time that a picture stands, and notes."""
  tracks = (picture, *sounds)
  start = min((track.segments[0].low for track in tracks if track.segments), default=Fraction(0))
  notes, longest, epochs = [], Fraction(MAX_HOLD), {}
  for track in tracks:
    others = [segment for other in tracks if other.is_picture != track.is_picture for segment in other.segments]
    covered = lambda a, b, others=others: _overlap(others, a, b) > (b - a) / 2
    epochs[track.index], hold, strays = _epochs(track.segments, covered=covered)
    longest = max(longest, hold + _STEP) if track.is_picture else longest  # with the duration of the picture itself
    if strays:
      at, jump = strays[0]
      more = f" (and {len(strays) - 1} more)" if len(strays) > 1 else ""
      notes.append(
        f"the timestamps of a stretch of its {track.name} at {float(at - start):.1f} s are {float(jump):+.1f} s off"
        f"{more}: it is placed where its neighbours are"
      )
  shifts = {}
  for track, offsets in _shared_offsets(tracks, epochs, start=start, notes=notes):
    moved = [
      (packet, round((extra + offset) / track.tick))
      for epoch, offset in zip(epochs[track.index], offsets, strict=True)
      for packet, extra in epoch.shifts
    ]
    if any(ticks for _, ticks in moved):
      shifts[track.index] = moved
  return shifts, longest, tuple(notes)


def _epochs(
  segments: Sequence[_Segment], *, covered: Callable[[Fraction, Fraction], bool]
) -> tuple[list[_Epoch], Fraction, list[tuple[Fraction, Fraction]]]:
  """Segments gathered where they are on one clock; the longest gap between two; strays, as (second, jump).

  `covered(a, b)`: whether another track goes on between these seconds, so that there really is a gap.
  """
  epochs, longest, strays, i = [], Fraction(0), [], 0
  while i < len(segments):
    segment = segments[i]
    if not epochs:
      epochs.append(_Epoch.begin(segment))
      i += 1
      continue
    epoch = epochs[-1]
    jump = segment.low - epoch.high
    count = _stray(segments[i:], epoch.high)
    if count:
      strays.append((epoch.high, jump))
      for part in segments[i : i + count]:
        epoch.shifts.append((part.packet, epoch.high - part.low))
        epoch.high += part.length
        epoch.last += part.length
      i += count
    elif -_BACK <= jump <= MAX_HOLD or (jump > 0 and covered(epoch.high, segment.low)):
      epoch.shifts.append((segment.packet, Fraction(0)))
      epoch.high, epoch.last, longest = max(epoch.high, segment.high), segment.last, max(longest, jump)
      i += 1
    else:
      epochs.append(_Epoch.begin(segment))
      i += 1
  return epochs, longest, strays


def _overlap(segments: Sequence[_Segment], a: Fraction, b: Fraction) -> Fraction:
  """Seconds between a and b in which there is something."""
  return sum((max(Fraction(0), min(part.high, b) - max(part.low, a)) for part in segments), Fraction(0))


def _stray(segments: Sequence[_Segment], line: Fraction) -> int:
  """How many of the first segments are astray: behind them the clock is where it would be without the jump."""
  total = Fraction(0)
  for count, segment in enumerate(segments[: _STRAY_SEGMENTS + 1]):
    if count and abs(segment.low - (line + total)) <= _BACK:
      return count
    total += segment.length
    if total > _STRAY:
      break
  return 0


def _shared_offsets(
  tracks: Sequence[_Track], epochs: Mapping[int, Sequence[_Epoch]], *, start: Fraction, notes: list[str]
) -> Iterator[tuple[_Track, list[Fraction]]]:
  """Every track with the seconds that are added to each of its epochs: one shift where picture and sound jump together.

  They do where they jump at one place of the file and neither is then more than MAX_HOLD away from the other.
  """
  picture, *sounds = tracks
  shown, together = epochs[picture.index], []
  offsets = {track.index: [Fraction(0)] * bool(epochs[track.index]) for track in tracks}  # a track may be empty

  def wanted(track: _Track) -> Fraction:  # what the next epoch would be shifted by if the track were alone
    number = len(offsets[track.index])
    before, after = epochs[track.index][number - 1 : number + 1]
    shown, decoded = before.high - after.low, before.last - after.first
    # Not every container holds times of decoding; those that FFmpeg infers may be wrong beside a jump.
    return offsets[track.index][-1] + (decoded if abs(decoded - shown) < _STEP else shown)

  def partner(track: _Track) -> int:  # the epoch of the picture that begins nearest to the track's next one
    number = len(offsets[track.index])
    if number >= len(epochs[track.index]):
      return len(shown)
    place = epochs[track.index][number].place
    return min(range(1, len(shown)), key=lambda k: abs(shown[k].place - place), default=len(shown))

  def alone(track: _Track) -> None:
    shift = wanted(track)
    before = epochs[track.index][len(offsets[track.index]) - 1].high
    at, jump = float(before + offsets[track.index][-1] - start), float(offsets[track.index][-1] - shift)
    if track.is_picture and jump > 0:
      raise InputError(f"its timestamps jump by {jump:.0f} s at {at:.1f} s")
    notes.append(
      f"the clock of its {track.name} alone jumps by {jump:+.1f} s at {at:.1f} s: what follows is placed after what"
      " came before, and the lag may be another from there on"
    )
    offsets[track.index].append(shift)

  for number in range(1, len(shown)):
    shifts = {picture.index: wanted(picture)}
    for track in sounds:
      while partner(track) < number:
        alone(track)
      if partner(track) == number and abs(wanted(track) - shifts[picture.index]) <= MAX_HOLD:
        shifts[track.index] = wanted(track)
    if len(shifts) == 1:
      alone(picture)
      continue
    together.append(shown[number - 1].high + offsets[picture.index][-1] - start)
    for index in shifts:
      offsets[index].append(max(shifts.values()))
  for track in sounds:
    while len(offsets[track.index]) < len(epochs[track.index]):
      alone(track)
  if together:
    more = f", and {len(together) - 1} more times after it" if len(together) > 1 else ""
    notes.insert(0, f"its clock starts again at {float(together[0]):.1f} s{more}: the parts are judged as one")
  return ((track, offsets[track.index]) for track in tracks)
