"""The times of a copy: those of a file's `Clock`, complete before anything is written.

The first picture or sound that is presented begins at 0, whatever the time in the source.

Packets that an edit list hides before the first picture stay hidden in a container that has edit lists. Elsewhere
hidden sound is dropped, and hidden pictures that others are decoded from are refused.
"""

from __future__ import annotations

import array
import dataclasses
import math
from fractions import Fraction

import av
import numpy as np

from synclipmae_jax.data.media.clock import Clock
from synclipmae_jax.types import InputError

NO_TIME = np.iinfo(np.int64).min
_FINEST = 90_000  # ticks a second, at least
_TS_DISCONT = 0x200  # FFmpeg's AVFMT_TS_DISCONT
_PRIMING = Fraction(1, 10)  # seconds: the longest encoder priming


@dataclasses.dataclass(kw_only=True)
class Packets:
  """The packets of one stream in file order: int64 [n] in ticks of `time_base`, NO_TIME if unknown.

  Ticks are at most 1/90000 s, so that a shift is not rounded to the ticks of the file.
  """

  index: int  # of the stream
  kind: str  # "video", "audio", "subtitle", "cover"
  time_base: Fraction
  step: int  # ticks in one tick of the file
  pts: np.ndarray
  dts: np.ndarray
  duration: np.ndarray
  hidden: np.ndarray  # bool: decoded and not presented
  before: np.ndarray  # number of picture packets before it in the file

  @property
  def end(self) -> Fraction:
    """The second at which the last one ends."""
    known = self.pts != NO_TIME
    return int((self.pts + self.duration)[known].max(initial=0)) * self.time_base


@dataclasses.dataclass(kw_only=True)
class Times:
  """The times of decoding and presentation of each packet in the copy, and whether it is written."""

  time_base: Fraction
  pts: np.ndarray  # int64 [n], ticks
  dts: np.ndarray
  keep: np.ndarray  # bool


@dataclasses.dataclass(kw_only=True)
class Timeline:
  """The times of every stream by its index, the common shift, and notes for the user."""

  times: dict[int, Times]
  base: Fraction  # second of the source that is second 0 of the copy
  notes: list[str]


def timed(container) -> list:
  """Picture, sound and subtitle streams with a codec that FFmpeg knows."""
  return [each for each in container.streams if each.codec_context and each.type in ("video", "audio", "subtitle")]


def may_jump(container_format) -> bool:
  """Whether the clock of a format may jump, as in transport streams."""
  return bool(container_format.flags & _TS_DISCONT)


def scan(container, streams, picture, clock: Clock) -> dict[int, Packets]:
  """Reads all packets of `streams` for their times on `clock`; by the index of the stream."""
  found = {stream.index: [array.array("q") for _ in range(5)] for stream in streams}
  pictures = 0
  lead = {stream.index: clock.lead(stream) for stream in streams}
  for packet in clock.packets(container, *streams):
    if packet.size:
      pts, dts = (None if ticks is None else ticks + lead[packet.stream_index] for ticks in (packet.pts, packet.dts))
      row = (pts, dts, packet.duration or 0, clock.hides(packet), pictures)
      for column, value in zip(found[packet.stream_index], row, strict=True):
        column.append(NO_TIME if value is None else int(value))
      pictures += packet.stream_index == picture.index
  packets = {}
  for stream in streams:
    pts, dts, duration, hidden, before = (np.array(column, np.int64) for column in found[stream.index])
    cover = stream.type == "video" and stream.disposition & av.stream.Disposition.attached_pic
    kind = "cover" if cover else stream.type
    fine = max(1, math.ceil(stream.time_base * _FINEST))  # a tick of AVI is a picture
    pts, dts = (np.where(ticks == NO_TIME, NO_TIME, ticks * fine) for ticks in (pts, dts))
    packets[stream.index] = Packets(
      index=stream.index, kind=kind, time_base=stream.time_base / fine, step=fine, pts=pts, dts=dts,
      duration=duration * fine, hidden=hidden.astype(bool), before=before,
    )  # fmt: skip
  return packets


def plan(packets: dict[int, Packets], *, picture: int, clock: Clock, hides: bool) -> Timeline:
  """The timeline of a copy of a file.

  Args:
    packets: of `scan`.
    picture: index of the picture track.
    clock: of the source.
    hides: whether the container of the copy has edit lists.

  Raises:
    InputError: the clock of one track jumps alone, or hidden pictures cannot stay hidden.
  """
  if clock.lone_jumps:
    jump = clock.lone_jumps[0].partition(": ")[0]
    raise InputError(f"{jump}: it is not known which picture belongs to which sound after it")
  main = {index: each for index, each in packets.items() if each.kind in ("video", "audio") and len(each.pts)}
  for each in main.values():
    _fill(each)
  begin = _first_shown(main[picture])
  for each in main.values():
    _refuse_inner_cuts(each, begin)
  base = min(_first_shown(each) for each in main.values())
  if base > -_PRIMING or any(each.hidden.any() for each in main.values()):
    base = max(base, Fraction(0))  # packets hidden by an edit list, and priming, lie before 0
  notes, times = list(clock.notes), {}
  for index, each in packets.items():
    shift = np.zeros(len(each.pts), np.int64)
    if each.kind == "subtitle":
      shift = _beside_pictures(each, main[picture], [*clock.shifts.get(picture, ())])
    if each.kind != "cover":  # a cover picture has no time
      shift -= round(base / each.time_base)
    pts, dts = (np.where(ticks == NO_TIME, NO_TIME, ticks + shift) for ticks in (each.pts, each.dts))
    keep = np.ones(len(pts), bool)
    if index in main:
      keep = _kept(each, hides=hides)
      anew = each.kind == "video" and (index in clock.shifts or (pts < dts).any())
      dts = _increasing(decoding_times(pts) if anew else dts, each.step)
      pts = np.maximum(pts, dts)
      late = int((keep & each.hidden & (each.pts > each.pts[_shown(each)].max())).sum())
      if late:
        pictures = "1 picture" if late == 1 else f"{late} pictures"
        notes.append(f"{pictures} at its end, hidden by an edit list, will be shown: others are decoded from them")
    times[index] = Times(time_base=each.time_base, pts=pts, dts=dts, keep=keep)
  return Timeline(times=times, base=base, notes=notes)


def _beside_pictures(each: Packets, picture: Packets, shifts: list[tuple[int, int]]) -> np.ndarray:
  """int64 [n] ticks: of the shifts of the pictures the one that brings a packet nearest to those stored around it."""
  known = {round(ticks * picture.step * picture.time_base / each.time_base) for _, ticks in shifts} | {0}
  choices = np.array(sorted(known), np.int64)
  around = picture.pts[np.maximum(each.before - 1, 0)] * float(picture.time_base / each.time_base)
  return choices[np.abs(each.pts[:, None] + choices - around[:, None]).argmin(axis=1)]


def _what(each: Packets) -> str:
  return "picture" if each.kind == "video" else "sound"


def _shown(each: Packets) -> np.ndarray:
  """bool [n]: packets that are not hidden; all packets if all are hidden."""
  return ~each.hidden if not each.hidden.all() else np.ones(len(each.pts), bool)


def _first_shown(each: Packets) -> Fraction:
  return int(each.pts[_shown(each)].min()) * each.time_base


def decoding_times(pts: np.ndarray) -> np.ndarray:
  """int64 [n], not decreasing, none later than its `pts`: times of decoding for pictures in decoding order."""
  ordered = np.sort(pts)
  delay = 0
  while delay < len(pts) and (ordered[: len(pts) - delay] > pts[delay:]).any():
    delay += 1
  step = int(np.median(np.diff(ordered))) if len(pts) > 1 else 1
  ahead = ordered[0] - max(step, 1) * np.arange(delay, 0, -1)
  return np.concatenate([ahead, ordered[: len(pts) - delay]])


def _increasing(dts: np.ndarray, step: int) -> np.ndarray:
  """`dts` raised where it does not increase by `step`: a muxer refuses such times of decoding."""
  count = step * np.arange(len(dts))
  return np.maximum.accumulate(dts - count) + count


def _fill(each: Packets) -> None:
  """Fills in missing times: by the other time of the packet, or by the end of the packet before it."""
  pts = np.where(each.pts == NO_TIME, each.dts, each.pts)
  dts = np.where(each.dts == NO_TIME, each.pts, each.dts)
  for i in np.flatnonzero(pts == NO_TIME):
    pts[i] = dts[i] = pts[i - 1] + each.duration[i - 1] if i else 0
  each.pts, each.dts = pts, dts


def _second(each: Packets, at: int, begin: Fraction) -> float:
  """Seconds from `begin` to the last packet that is presented before packet `at`."""
  before = each.pts[:at][~each.hidden[:at]]
  return max(0.0, float(int(before.max(initial=NO_TIME)) * each.time_base - begin))


def _refuse_inner_cuts(each: Packets, begin: Fraction) -> None:
  """Raises InputError if packets are hidden between presented ones: no muxer of FFmpeg writes such an edit list."""
  if not each.hidden.any() or each.hidden.all():
    return
  shown = each.pts[~each.hidden]
  cuts = np.flatnonzero(each.hidden & (each.pts > shown.min()) & (each.pts < shown.max())).tolist()
  if cuts:
    what = "pictures are" if each.kind == "video" else "sound is"
    raise InputError(
      f"after second {_second(each, cuts[0], begin):.1f} its {what} hidden in part by an edit list of several"
      " parts, which a copy without encoding cannot keep"
    )


def _kept(each: Packets, *, hides: bool) -> np.ndarray:
  if not each.hidden.any() or each.hidden.all():
    return np.ones(len(each.pts), bool)
  shown = np.flatnonzero(~each.hidden)
  keep = np.arange(len(each.pts)) <= shown[-1]  # presented packets do not need later ones
  if not hides:
    before = each.hidden & (each.pts < each.pts[shown].min())
    if each.kind == "audio":
      return keep & ~before
    if before.any():
      seconds = float((each.pts[shown].min() - each.pts[before].min()) * each.time_base)
      raise InputError(
        f"{seconds:.1f} s of pictures before its first one are hidden by an edit list and would be shown again in this"
        " container: choose .mp4 or .mov"
      )
  return keep
