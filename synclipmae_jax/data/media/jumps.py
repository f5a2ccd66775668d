"""Classifies jumps of a file's timestamps: stray stretches, gaps, and places where the clock starts again.

A track is given as segments: runs of packets without a jump. A stretch is stray if the clock after it continues as if
the stretch had correct times. A jump ahead is a gap if it is short or if the other track continues through it. In all
other cases the clock starts again. Where picture and sound start again at the same place of the file, both get one
shift, so that the lag does not change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction

from synclipmae_jax.types import InputError

MAX_HOLD = 10  # seconds: the longest gap of a track through which the other track does not continue
STEP = Fraction(1)  # seconds: a longer step ahead begins a new segment
BACK = Fraction(1, 2)  # seconds: so does a longer step back
_STRAY = 5  # seconds that a stray stretch may last ...
_STRAY_SEGMENTS = 4  # ... in at most this number of segments


@dataclasses.dataclass(kw_only=True)
class Segment:
  """Packets of one stream without a jump except strays."""

  packet: int  # number of the first, in its stream
  place: int  # of the first, in bytes of the file
  stop: int  # of the last
  low: Fraction  # s, of presentation
  high: Fraction
  first: Fraction  # s, of decoding: pictures are stored in this order, and a jump lies between two stored pictures
  last: Fraction
  moved: list[tuple[int, Fraction]] = dataclasses.field(default_factory=list)  # (first packet, s that are added)

  @property
  def length(self) -> Fraction:
    return self.high - self.low


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jumps:
  """The corrections of all tracks."""

  shifts: Sequence[Sequence[tuple[int, Fraction]]]  # by track: (first packet, seconds that are added)
  longest_hold: Fraction  # seconds for which a picture may be held
  notes: Sequence[str]
  lone: Sequence[str]  # the notes that name a jump of one track alone


class _Track:
  """A track whose segments are grouped into epochs. Within an epoch its clock does not start again."""

  def __init__(self, name: str, segments: Sequence[Segment], others: Sequence[Segment]):
    self.name, self.longest_gap = name, Fraction(0)
    self.strays: list[tuple[Fraction, Fraction]] = []  # (second, error in seconds)
    self.epochs: list[Segment] = []
    self.offsets: list[Fraction] = []  # seconds that are added to each epoch; shorter than `epochs` until all are known
    left = list(segments)
    while left:
      taken = self._take(left, others)
      del left[:taken]
    self.offsets = [Fraction(0)] * bool(self.epochs)

  def _take(self, left: Sequence[Segment], others: Sequence[Segment]) -> int:
    """Adds the next segment, or several stray ones; returns their number."""
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
    if -BACK <= jump <= MAX_HOLD or (jump > 0 and through > jump / 2):  # a gap
      epoch.moved.append((segment.packet, Fraction(0)))
      epoch.high, epoch.last, epoch.stop = max(epoch.high, segment.high), segment.last, segment.stop
      self.longest_gap = max(self.longest_gap, jump)
    else:
      self.epochs.append(_copy(segment))
    return 1

  def _begin(self, left: Sequence[Segment], others: Sequence[Segment]) -> int:
    """Begins the first epoch. Its first stretch is stray if what follows fits the beginning of the other track."""
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
    """The last epoch with an offset and the first without; None if all have one."""
    number = len(self.offsets)
    return (self.epochs[number - 1], self.epochs[number]) if number < len(self.epochs) else None

  @property
  def line(self) -> Fraction:
    """The second at which the next epoch begins by this track alone."""
    return self.ahead[0].high + self.offsets[-1]

  @property
  def wanted(self) -> Fraction:
    """The offset of the next epoch by this track alone."""
    before, after = self.ahead
    shown, decoded = before.high - after.low, before.last - after.first
    # Not every container stores times of decoding. Those that FFmpeg infers may be wrong beside a jump.
    return self.offsets[-1] + (decoded if abs(decoded - shown) < STEP else shown)

  def partner(self, picture: _Track) -> int:
    """Number of the picture's epoch that begins where the next epoch of this track begins; 0 if there is none."""
    if self.ahead is None or len(picture.epochs) < 2:
      return 0
    (before, after), shown = self.ahead, picture.epochs
    if after.place <= before.stop:  # old fragmented MP4 has no usable places: the order decides
      return len(self.offsets) if len(self.offsets) < len(shown) else 0
    # All packets before a jump are stored before those after it, except for a few.
    late = lambda k: max(before.stop, shown[k - 1].stop) - min(after.place, shown[k].place)
    return min(range(1, len(shown)), key=late)

  def shifts(self) -> list[tuple[int, Fraction]]:
    pairs = zip(self.epochs, self.offsets, strict=True)
    return [(packet, extra + offset) for epoch, offset in pairs for packet, extra in epoch.moved]


def resolve(
  picture: Sequence[Segment], sounds: Sequence[tuple[str, Sequence[Segment]]], *, wrap: Fraction | None = None
) -> Jumps:
  """The corrections of the picture and of each sound track, (name, segments).

  `wrap`: seconds after which the timestamps of the format return to 0.

  Raises InputError if the picture alone jumps ahead: the place of what follows is unknown.
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
        track.offsets.append(max(offsets.values()))  # no track overlaps what came before
    elif shown.ahead[1].low > shown.ahead[0].high:
      jump = float(shown.ahead[1].low - shown.ahead[0].high)
      raise InputError(f"its timestamps jump by {jump:.0f} s at {float(shown.line - start):.1f} s")
    else:
      lone.append(_go_on_alone(shown, start))
  for track in tracks[1:]:
    while track.ahead:
      lone.append(_go_on_alone(track, start))
  if together:
    (at, ahead), *later = together
    what = "starts again" if ahead < 0 else f"jumps ahead by {float(ahead):.1f} s"
    more = f" and at {len(later)} later place{'s' * (len(later) > 1)}" if later else ""
    notes.insert(0, f"its clock {what} at {float(at):.1f} s{more} and is carried on")
  hold = max(Fraction(MAX_HOLD), shown.longest_gap + STEP)  # includes the duration of the picture
  return Jumps(shifts=[track.shifts() for track in tracks], longest_hold=hold, notes=[*notes, *lone], lone=lone)


def _copy(segment: Segment) -> Segment:
  return dataclasses.replace(segment, moved=[(segment.packet, Fraction(0))])


def _stray(segments: Sequence[Segment], line: Fraction) -> int:
  """The number of leading segments that are stray: after them the clock continues on `line`."""
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
  """Places the next epoch of the track after the one before; returns the note on it."""
  at, offset = float(track.line - start), track.wanted
  jump = float(track.offsets[-1] - offset)
  track.offsets.append(offset)
  return (
    f"the clock of its {track.name} alone jumps by {jump:+.1f} s at {at:.1f} s: what follows is placed after what came"
    " before, and the lag may change there"
  )
