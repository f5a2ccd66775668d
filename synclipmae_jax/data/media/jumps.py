"""Jumps of a file's timestamps: which are strays, which are gaps, and where the clock starts again.

A track comes as segments, runs of packets without a jump. A stray stretch is one behind which the clock is where it
would be without it. A gap is short, or the other track goes on through it. Elsewhere the clock starts again: for
picture and sound by one shift where they do so at one place of the file, so that a lag stays what it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction

from synclipmae_jax.types import InputError

MAX_HOLD = 10  # seconds a picture may stand, or sound be absent, where the other track does not say that time passed
STEP = Fraction(1)  # seconds: a longer step ahead begins a new segment
BACK = Fraction(1, 2)  # seconds: so does a longer step back
_STRAY = 5  # seconds that a stray stretch may last ...
_STRAY_SEGMENTS = 4  # ... in so many segments


@dataclasses.dataclass(kw_only=True)
class Segment:
  """Packets of one stream without a jump, or with strays only."""

  packet: int  # number of the first, in its stream
  place: int  # of the first, in bytes of the file
  stop: int  # of the last
  low: Fraction  # s, of presentation
  high: Fraction
  first: Fraction  # s, of decoding: pictures are stored out of order, and a jump comes between two stored ones
  last: Fraction
  moved: list[tuple[int, Fraction]] = dataclasses.field(default_factory=list)  # (packet from which on, s): strays

  @property
  def length(self) -> Fraction:
    return self.high - self.low


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jumps:
  """What becomes of the tracks."""

  shifts: Sequence[Sequence[tuple[int, Fraction]]]  # by track: (packet from which on, seconds that are added)
  longest_hold: Fraction  # seconds that a picture may stand
  notes: Sequence[str]
  lone: Sequence[str]  # those of them that name a jump of one track alone


class _Track:
  """A track whose segments are gathered to epochs, within which its clock does not start again."""

  def __init__(self, name: str, segments: Sequence[Segment], others: Sequence[Segment]):
    self.name, self.longest_gap = name, Fraction(0)
    self.strays: list[tuple[Fraction, Fraction]] = []  # second, and by how much it is off
    self.epochs: list[Segment] = []
    self.offsets: list[Fraction] = []  # of the epochs that have got theirs: seconds that are added
    left = list(segments)
    while left:
      taken = self._take(left, others)
      del left[:taken]
    self.offsets = [Fraction(0)] * bool(self.epochs)

  def _take(self, left: Sequence[Segment], others: Sequence[Segment]) -> int:
    """Adds the next segment, or several that are astray; returns their number."""
    segment = left[0]
    if not self.epochs:
      return self._begin(left, others)
    epoch = self.epochs[-1]
    jump = segment.low - epoch.high
    if count := _stray(left, epoch.high):
      self.strays.append((epoch.high, jump))
      for part in left[:count]:
        epoch.moved.append((part.packet, epoch.high - part.low))
        epoch.high, epoch.last = epoch.high + part.length, epoch.last + part.length
        epoch.stop = max(epoch.stop, part.stop)
      return count
    nothing = Fraction(0)
    through = sum((max(nothing, min(p.high, segment.low) - max(p.low, epoch.high)) for p in others), nothing)
    if -BACK <= jump <= MAX_HOLD or (jump > 0 and through > jump / 2):  # it goes on, after a gap
      epoch.moved.append((segment.packet, Fraction(0)))
      epoch.high, epoch.last, epoch.stop = max(epoch.high, segment.high), segment.last, segment.stop
      self.longest_gap = max(self.longest_gap, jump)
    else:
      self.epochs.append(_copy(segment))
    return 1

  def _begin(self, left: Sequence[Segment], others: Sequence[Segment]) -> int:
    """The first epoch. Its first stretch is astray where what follows fits the beginning of the other track."""
    epoch = _copy(left[0])
    self.epochs.append(epoch)
    if len(left) > 1 and others and epoch.length <= _STRAY:
      line = left[1].low - epoch.length
      off = epoch.low - line
      if not -STEP <= off <= BACK and abs(line - min(part.low for part in others)) <= STEP:
        self.strays.append((line, off))
        epoch.moved = [(epoch.packet, -off)]
        epoch.low, epoch.high, epoch.first, epoch.last = (
          time - off for time in (epoch.low, epoch.high, epoch.first, epoch.last)
        )
    return 1

  @property
  def ahead(self) -> tuple[Segment, Segment] | None:
    """The last epoch with an offset, and the first without; None at the end."""
    number = len(self.offsets)
    return (self.epochs[number - 1], self.epochs[number]) if number < len(self.epochs) else None

  @property
  def line(self) -> Fraction:
    """The second at which the next epoch would begin were the track alone."""
    return self.ahead[0].high + self.offsets[-1]

  @property
  def wanted(self) -> Fraction:
    """The offset of the next epoch were the track alone."""
    before, after = self.ahead
    shown, decoded = before.high - after.low, before.last - after.first
    # Not every container holds times of decoding; those that FFmpeg infers may be wrong beside a jump.
    return self.offsets[-1] + (decoded if abs(decoded - shown) < STEP else shown)

  def partner(self, picture: _Track) -> int:
    """Number of the picture's epoch that begins where the next one here does; 0 where there is none."""
    if self.ahead is None or len(picture.epochs) < 2:
      return 0
    (before, after), shown = self.ahead, picture.epochs
    if after.place <= before.stop:  # old fragmented MP4 gives places in its first part: the order must do
      return len(self.offsets) if len(self.offsets) < len(shown) else 0
    # Everything before a jump stands before everything after it, give or take a packet.
    late = lambda k: max(before.stop, shown[k - 1].stop) - min(after.place, shown[k].place)
    return min(range(1, len(shown)), key=late)

  def shifts(self) -> list[tuple[int, Fraction]]:
    pairs = zip(self.epochs, self.offsets, strict=True)
    return [(packet, extra + offset) for epoch, offset in pairs for packet, extra in epoch.moved]


def resolve(
  picture: Sequence[Segment], sounds: Sequence[tuple[str, Sequence[Segment]]], *, wrap: Fraction | None = None
) -> Jumps:
  """What is added to the times of the picture and of each sound, given as name and segments.

  `wrap`: seconds after which the timestamps of the format begin anew at 0.

  Raises InputError where the picture alone jumps ahead: nobody knows what stands there.
  """
  heard = [part for _, segments in sounds for part in segments]
  shown = _Track("picture", picture, heard)
  tracks = [shown, *(_Track(name, segments, picture) for name, segments in sounds)]
  start = min((track.epochs[0].low for track in tracks if track.epochs), default=Fraction(0))
  notes = [_of_strays(track, start, wrap) for track in tracks if track.strays]
  together, lone = [], []
  while shown.ahead:
    number, offsets = len(shown.offsets), {shown: shown.wanted}
    for track in tracks[1:]:
      while track.ahead and track.partner(shown) < number:
        lone.append(_go_on_alone(track, start))
      if track.partner(shown) == number and abs(track.wanted - offsets[shown]) <= MAX_HOLD:
        offsets[track] = track.wanted
    if len(offsets) > 1:
      together.append((shown.line - start, shown.ahead[1].low - shown.ahead[0].high))
      for track in offsets:
        track.offsets.append(max(offsets.values()))  # neither overlaps what came before
    elif shown.ahead[1].low > shown.ahead[0].high:
      jump = float(shown.ahead[1].low - shown.ahead[0].high)
      raise InputError(f"its timestamps jump by {jump:.0f} s at {float(shown.line - start):.1f} s")
    else:
      lone.append(_go_on_alone(shown, start))
  for track in tracks[1:]:
    while track.ahead:
      lone.append(_go_on_alone(track, start))
  if together:
    (at, jump), *later = together
    what = "starts again" if jump < 0 else f"jumps ahead by {float(jump):.1f} s"
    more = f" and at {len(later)} later place{'s' * (len(later) > 1)}" if later else ""
    notes.insert(0, f"its clock {what} at {float(at):.1f} s{more} and is carried on")
  hold = max(Fraction(MAX_HOLD), shown.longest_gap + STEP)  # with the duration of the picture itself
  return Jumps(shifts=[track.shifts() for track in tracks], longest_hold=hold, notes=[*notes, *lone], lone=lone)


def _copy(segment: Segment) -> Segment:
  return dataclasses.replace(segment, moved=[(segment.packet, Fraction(0))])


def _stray(segments: Sequence[Segment], line: Fraction) -> int:
  """How many of the first segments are astray: behind them the clock is where it would be without the jump."""
  total = Fraction(0)
  for count, segment in enumerate(segments[: _STRAY_SEGMENTS + 1]):
    if count and abs(segment.low - (line + total)) <= BACK:
      return count
    total += segment.length
    if total > _STRAY:
      break
  return 0


def _of_strays(track: _Track, start: Fraction, wrap: Fraction | None) -> str:
  at, off = track.strays[0]
  off = (off + wrap / 2) % wrap - wrap / 2 if wrap else off
  more = f" (and those of {len(track.strays) - 1} more)" if len(track.strays) > 1 else ""
  return (
    f"the timestamps of a stretch of its {track.name} at {float(at - start):.1f} s are {float(off):+.1f} s off{more}:"
    " it is placed where its neighbours are"
  )


def _go_on_alone(track: _Track, start: Fraction) -> str:
  """The track's next epoch is placed after the one before; the note that says so."""
  at, offset = float(track.line - start), track.wanted
  jump = float(track.offsets[-1] - offset)
  track.offsets.append(offset)
  return (
    f"the clock of its {track.name} alone jumps by {jump:+.1f} s at {at:.1f} s: what follows is placed after what came"
    " before, and the lag may be another from there on"
  )
