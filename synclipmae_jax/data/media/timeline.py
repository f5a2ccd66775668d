"""The times of a copy: read off the packets of a file, mended, and known whole before anything is written.

What is mended. A clock that starts again (joined recordings) is carried on: all tracks of the new part move by the same
number of seconds, so that the lag within it stays. Timestamps that stray from their neighbours and come back are
counted from those neighbours. The first thing that is shown or heard begins at 0, whatever the source's clock says.

What is hidden. An edit list hides packets that FFmpeg marks to be decoded and not shown. Before the first picture they
stay hidden in a container that has edit lists. Elsewhere hidden sound is dropped. What cannot be kept so is refused.
"""

from __future__ import annotations

import array
import dataclasses
import math
from fractions import Fraction

import av
import numpy as np

from synclipmae_jax.types import InputError

NO_TIME = np.iinfo(np.int64).min
_FINEST = 90_000  # ticks a second, at least
_TS_DISCONT = 0x200  # FFmpeg's AVFMT_TS_DISCONT
_BACK = 0.2  # seconds a decoding clock may go back without having started again
_BACK_SHOWN = 1.0  # ... where there is only the order of showing, in which pictures go back anyway
_STRAY = 0.5  # seconds a timestamp must be off its neighbours to be doubted
_STRAY_RUN = 5.0  # seconds at most that strays last
_FORWARD, _FORWARD_TS = 60.0, 10.0  # seconds of a gap that all tracks have, from which on it is a jump of the clock
_PRIMING = Fraction(1, 10)  # seconds of an encoder's first sound that are not heard, at most
_SAME_JUMP = 2.0  # seconds by which the jumps of two tracks may differ


@dataclasses.dataclass(kw_only=True)
class Packets:
  """The packets of one stream in the order of the file: int64 [n] in ticks of `time_base`, NO_TIME where
  unknown. Ticks are at most 1/90000 s, so that a shift is not rounded to those of the file."""

  index: int  # of the stream
  kind: str  # "video", "audio", "subtitle", "cover"
  time_base: Fraction
  step: int  # ticks in one of the file's
  pts: np.ndarray
  dts: np.ndarray
  duration: np.ndarray
  hidden: np.ndarray  # bool: to be decoded and not shown
  before: np.ndarray  # how many packets of the picture came before

  @property
  def end(self) -> Fraction:
    """The second at which the last one ends."""
    known = self.pts != NO_TIME
    return int((self.pts + self.duration)[known].max(initial=0)) * self.time_base


@dataclasses.dataclass(kw_only=True)
class Times:
  """When each packet of a stream is decoded and shown in the copy, and whether it is in it."""

  time_base: Fraction
  pts: np.ndarray  # int64 [n], ticks
  dts: np.ndarray
  keep: np.ndarray  # bool


@dataclasses.dataclass(kw_only=True)
class Timeline:
  """The times of every stream by its index, how far all of them moved, and what a reader must know."""

  times: dict[int, Times]
  base: Fraction  # second of the source that is second 0 of the copy
  notes: list[str]


@dataclasses.dataclass(frozen=True)
class _Break:
  at: int  # the first packet of the new part
  jump: float  # seconds; negative: the clock went back


def timed(container) -> list:
  """The streams whose packets have a place in time, and a codec that FFmpeg knows."""
  return [each for each in container.streams if each.codec_context and each.type in ("video", "audio", "subtitle")]


def may_jump(container_format) -> bool:
  """Whether the clock of a format may jump, as that of a transport stream."""
  return bool(container_format.flags & _TS_DISCONT)


def scan(container, streams, picture) -> dict[int, Packets]:
  """Reads all packets of `streams` for their times; by the index of the stream."""
  found = {stream.index: [array.array("q") for _ in range(5)] for stream in streams}
  pictures = 0
  for packet in container.demux(streams):
    if packet.size:
      row = (packet.pts, packet.dts, packet.duration or 0, packet.is_discard, pictures)
      for column, value in zip(found[packet.stream_index], row, strict=True):
        column.append(NO_TIME if value is None else int(value))
      pictures += packet.stream_index == picture.index
  packets = {}
  for stream in streams:
    pts, dts, duration, hidden, before = (np.array(column, np.int64) for column in found[stream.index])
    cover = stream.type == "video" and stream.disposition & av.stream.Disposition.attached_pic
    kind = "cover" if cover else stream.type
    fine = max(1, math.ceil(stream.time_base * _FINEST))  # a tick of AVI is a whole picture
    pts, dts = (np.where(ticks == NO_TIME, NO_TIME, ticks * fine) for ticks in (pts, dts))
    packets[stream.index] = Packets(
      index=stream.index, kind=kind, time_base=stream.time_base / fine, step=fine, pts=pts, dts=dts,
      duration=duration * fine, hidden=hidden.astype(bool), before=before,
    )  # fmt: skip
  return packets


def plan(packets: dict[int, Packets], *, picture: int, source_format, fragmented: bool, hides: bool) -> Timeline:
  """The timeline of a copy of a file.

  Args:
    packets: of `scan`.
    picture: index of the picture track.
    source_format: PyAV's format of the source.
    fragmented: it is an mp4 in fragments, of which FFmpeg hides all that goes back.
    hides: the container of the copy has edit lists.

  Raises:
    InputError: the clocks of two tracks do not jump together, or hidden pictures cannot stay hidden.
  """
  main = {index: each for index, each in packets.items() if each.kind in ("video", "audio") and len(each.pts)}
  for each in main.values():
    _fill(each)
  begin = _first_shown(main[picture])
  notes, mended = [], set()
  for index, each in main.items():
    if strays := _mend_strays(each):
      mended.add(index)
      places = _seconds([second - float(begin) for second in strays])
      notes.append(f"timestamps of its {_what(each)} were wrong at {places} and are counted anew")
  forward = _FORWARD_TS if may_jump(source_format) else _FORWARD
  by_pts = "matroska" in source_format.name
  breaks = {
    index: _breaks(each, by_pts=by_pts and each.kind == "video", forward=forward) for index, each in main.items()
  }
  for each in main.values():
    if fragmented and breaks[each.index]:
      each.hidden[breaks[each.index][0].at :] = False
    _refuse_inner_cuts(each, breaks[each.index], begin)
  breaks = _common(main, breaks, picture, begin)
  spans = {index: _span(each, breaks[index]) for index, each in main.items()}
  offsets = _offsets(list(spans.values()))
  base = min(_first_shown(each) for each in main.values())
  if base > -_PRIMING or any(each.hidden.any() for each in main.values()):
    base = max(base, Fraction(0))  # what an edit list hides lies before 0, and so does an encoder's priming
  if len(offsets) > 1:
    starts = [float(span[0] + offset - base) for span, offset in zip(spans[picture], offsets, strict=True)]
    notes.append(f"its clock starts again at {_seconds(starts[1:])} and is carried on")
  times = {}
  for index, each in packets.items():
    shift = np.zeros(len(each.pts), np.int64)
    if each.kind != "cover":  # which belongs to no time
      part = _parts(each, breaks, picture)
      shift = np.array([round((offset - base) / each.time_base) for offset in offsets], np.int64)[part]
    pts, dts = (np.where(ticks == NO_TIME, NO_TIME, ticks + shift) for ticks in (each.pts, each.dts))
    keep = np.ones(len(pts), bool)
    if index in main:
      keep = _kept(each, hides=hides)
      anew = each.kind == "video" and (len(offsets) > 1 or index in mended or (pts < dts).any())
      dts = _increasing(decoding_times(pts) if anew else dts, each.step)
      pts = np.maximum(pts, dts)
      late = int((keep & each.hidden & (each.pts > each.pts[_shown(each)].max())).sum())
      if late:
        pictures = "1 picture" if late == 1 else f"{late} pictures"
        notes.append(f"{pictures} at its end, hidden by an edit list, will be shown: others are decoded from them")
    times[index] = Times(time_base=each.time_base, pts=pts, dts=dts, keep=keep)
  return Timeline(times=times, base=base, notes=notes)


def _what(each: Packets) -> str:
  return "picture" if each.kind == "video" else "sound"


def _shown(each: Packets) -> np.ndarray:
  """bool [n]: what is not hidden; all where everything is."""
  return ~each.hidden if not each.hidden.all() else np.ones(len(each.pts), bool)


def _first_shown(each: Packets) -> Fraction:
  return int(each.pts[_shown(each)].min()) * each.time_base


def decoding_times(pts: np.ndarray) -> np.ndarray:
  """int64 [n] never decreasing, none after its `pts`: for pictures in decoding order with known times of showing."""
  ordered = np.sort(pts)
  delay = 0
  while delay < len(pts) and (ordered[: len(pts) - delay] > pts[delay:]).any():
    delay += 1
  step = int(np.median(np.diff(ordered))) if len(pts) > 1 else 1
  ahead = ordered[0] - max(step, 1) * np.arange(delay, 0, -1)
  return np.concatenate([ahead, ordered[: len(pts) - delay]])


def _increasing(dts: np.ndarray, step: int) -> np.ndarray:
  """The same where it increases by `step` already; a muxer refuses decoding times that do not."""
  count = step * np.arange(len(dts))
  return np.maximum.accumulate(dts - count) + count


def _fill(each: Packets) -> None:
  """Gives a time to every packet: the other one of its two, or the end of the packet before it."""
  pts = np.where(each.pts == NO_TIME, each.dts, each.pts)
  dts = np.where(each.dts == NO_TIME, each.pts, each.dts)
  for i in np.flatnonzero(pts == NO_TIME):
    pts[i] = dts[i] = pts[i - 1] + each.duration[i - 1] if i else 0
  each.pts, each.dts = pts, dts


def _lengths(each: Packets) -> np.ndarray:
  """Seconds of each packet; the usual step where its duration is unknown."""
  steps = np.diff(each.dts)
  usual = np.median(steps[steps > 0]) if (steps > 0).any() else 0
  return np.where(each.duration > 0, each.duration, usual) * float(each.time_base)


def _mend_strays(each: Packets) -> list[float]:
  """Counts anew what strays from its neighbours and comes back; the seconds at which that was."""
  tick, length = float(each.time_base), _lengths(each)
  clock, run = each.dts * tick, np.concatenate([[0.0], np.cumsum(length)])
  off = np.diff(clock) - length[:-1]
  found, mended = [], 0
  for i in (np.flatnonzero((off > _STRAY) | (off < -_BACK)) + 1).tolist():
    if i <= mended:  # where it comes back is a jump, too
      continue
    stop = int(np.searchsorted(run, run[i] + _STRAY_RUN, side="right"))
    line = clock[i - 1] + run[i : stop + 1] - run[i - 1]  # where packets i, i + 1, ... would be
    later = clock[i + 1 : stop + 1]
    back = np.flatnonzero(np.abs(later - line[1 : 1 + len(later)]) <= _BACK)
    if len(back):
      mended = i + 1 + int(back[0])
      counted = np.rint(line[: mended - i] / tick).astype(np.int64)
      ahead = each.pts[i:mended] - each.dts[i:mended]
      each.pts[i:mended] = counted + np.where(np.abs(ahead) * tick < _STRAY_RUN, ahead, 0)
      each.dts[i:mended], clock[i:mended] = counted, counted * tick
      found.append(float(line[0]))
  return found


def _breaks(each: Packets, *, by_pts: bool, forward: float) -> list[_Break]:
  """Where the clock of a stream jumps and does not come back."""
  tick, length = float(each.time_base), _lengths(each)
  if by_pts:  # the decoding times are FFmpeg's, made of those of showing, and wrong after a jump
    clock, found, start = each.pts * tick, [], 0
    while True:
      jump = clock[start + 1 :] - np.maximum.accumulate(clock[start:])[:-1]
      far = np.flatnonzero((jump < -_BACK_SHOWN) | (jump > forward))
      if not len(far):
        return found
      start += 1 + int(far[0])
      found.append(_Break(at=start, jump=float(jump[far[0]])))
  jump = each.dts[1:] * tick - each.dts[:-1] * tick - length[:-1]
  return [_Break(at=int(i) + 1, jump=float(jump[i])) for i in np.flatnonzero((jump < -_BACK) | (jump > forward))]


def _second(each: Packets, at: int, begin: Fraction) -> float:
  """Seconds from `begin` to the last that is shown before packet `at`."""
  before = each.pts[:at][~each.hidden[:at]]
  return max(0.0, float(int(before.max(initial=NO_TIME)) * each.time_base - begin))


def _refuse_inner_cuts(each: Packets, breaks: list[_Break], begin: Fraction) -> None:
  """Raises InputError where something is hidden between what is shown: no muxer of FFmpeg writes that."""
  if not each.hidden.any() or each.hidden.all():
    return
  shown = each.pts[~each.hidden]
  cuts = [each_break.at for each_break in breaks if each.hidden[each_break.at :].any()]
  cuts += np.flatnonzero(each.hidden & (each.pts > shown.min()) & (each.pts < shown.max())).tolist()
  if cuts:
    what = "pictures are" if each.kind == "video" else "sound is"
    raise InputError(
      f"after second {_second(each, cuts[0], begin):.1f} its {what} hidden in part by an edit list of several"
      " parts, which a copy without encoding cannot keep"
    )


def _common(
  main: dict[int, Packets], breaks: dict[int, list[_Break]], picture: int, begin: Fraction
) -> dict[int, list[_Break]]:
  """The breaks that all tracks have. A gap of one track alone stays a gap."""
  for only_back in (False, True):
    chosen = {i: [each for each in found if each.jump < 0 or not only_back] for i, found in breaks.items()}
    wrong = [index for index, found in chosen.items() if not _agree(found, chosen[picture])]
    if not wrong:
      return chosen
  index = picture if chosen[picture] else wrong[0]
  second = _second(main[index], chosen[index][0].at, begin)
  raise InputError(
    f"the clocks of its picture and of its stream {wrong[0]} ({_what(main[wrong[0]])}) do not go back together: at"
    f" second {second:.1f} one of them starts again"
  )


def _agree(left: list[_Break], right: list[_Break]) -> bool:
  return len(left) == len(right) and all(abs(a.jump - b.jump) <= _SAME_JUMP for a, b in zip(left, right, strict=True))


def _span(each: Packets, breaks: list[_Break]) -> list[tuple[Fraction, Fraction]]:
  """Begin and end of every part in seconds."""
  edges = [0, *(each_break.at for each_break in breaks), len(each.pts)]
  spans = []
  for a, b in zip(edges, edges[1:]):  # noqa: B905
    end = (each.pts[a:b] + np.rint(_lengths(each)[a:b] / float(each.time_base)).astype(np.int64)).max()
    spans.append((int(each.pts[a:b].min()) * each.time_base, int(end) * each.time_base))
  return spans


def _offsets(spans: list[list[tuple[Fraction, Fraction]]]) -> list[Fraction]:
  """Seconds by which each part moves, so that it begins where all tracks of the one before have ended."""
  offsets = [Fraction(0)]
  for part in range(1, len(spans[0])):
    offsets.append(max(span[part - 1][1] + offsets[-1] - span[part][0] for span in spans))
  return offsets


def _parts(each: Packets, breaks: dict[int, list[_Break]], picture: int) -> np.ndarray:
  """int [n]: the part of every packet; that of subtitles is told by the pictures around them."""
  if each.index in breaks:
    return np.searchsorted([b.at for b in breaks[each.index]], np.arange(len(each.pts)), side="right")
  return np.searchsorted([b.at for b in breaks[picture]], each.before - 1, side="right")


def _kept(each: Packets, *, hides: bool) -> np.ndarray:
  if not each.hidden.any() or each.hidden.all():
    return np.ones(len(each.pts), bool)
  shown = np.flatnonzero(~each.hidden)
  keep = np.arange(len(each.pts)) <= shown[-1]  # nothing that is shown needs what comes after it
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


def _seconds(values: list[float]) -> str:
  shown = ", ".join(f"{value:.1f} s" for value in values[:3])
  return f"{shown} and {len(values) - 3} more places" if len(values) > 3 else shown
