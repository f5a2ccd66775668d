"""Decodes the pictures of a file in order of presentation, each with its time; damaged pictures are reported."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import NamedTuple

import av
from av.video.frame import PictureType

from synclipmae_jax.data.media.clock import Clock, shown
from synclipmae_jax.data.media.watchdog import watched
from synclipmae_jax.types import FPS, InputError

_MAX_LATE = 0.02  # share of the pictures whose times may go back


class Picture(NamedTuple):
  """A decoded picture. `frame` is None where it is damaged; it then has no time of its own."""

  frame: av.VideoFrame | None
  begin: int | None  # ticks of the stream, on the corrected clock; None if unknown


def pictures(container, stream, clock: Clock) -> Iterator[Picture]:
  """Decodes a stream, one picture in memory at a time.

  A picture that cannot be decoded is yielded as damaged. A picture whose time goes back is left out.
  Raises InputError if too many go back.
  """
  counter = _Counter(stream, decoded=clock.counted == "decoded") if clock.counted else None
  last, count, late = None, 0, 0
  for packet in clock.packets(container, stream):
    if counter and packet.size:
      packet = counter.sent(packet)
    try:
      with watched():
        frames = packet.decode()
    except av.error.InvalidDataError:
      yield Picture(None, None)
      continue
    for frame in frames:
      begin = counter.begin(frame) if counter else frame.pts
      shown_at = clock.placed(stream, begin, frame.duration or 0)
      if shown_at is None and (begin is not None or counter):  # an edit list hides it
        continue
      begin = shown_at
      if begin is not None and last is not None and begin <= last:
        late += 1
        if late > 10 and late > _MAX_LATE * count:
          raise InputError(f"the times of its pictures go back {late} times by {float(begin * stream.time_base):.1f} s")
        continue
      count += 1
      last = last if begin is None else begin
      yield Picture(None if frame.is_corrupt else frame, begin)


class _Counter:
  """Times for pictures that have none: picture k in order of presentation gets the time of packet k in file order.

  Each packet is sent with its number as its time. An I or P picture is presented no earlier than its number: after lost
  pictures this corrects the count.
  """

  def __init__(self, stream, *, decoded: bool):
    self._codec, self._decoded = stream.codec_context, decoded
    self._times: collections.deque[tuple[int, bool]] = collections.deque()  # and whether it is hidden
    self._sent = self._dropped = self._next = 0
    self._delay: int | None = None  # pictures that the decoder holds back; known after its first one
    rate = stream.average_rate or stream.guessed_rate or FPS
    self._step = max(1, round(1 / rate / stream.time_base))  # ticks from one packet to the next

  def sent(self, packet: av.Packet) -> av.Packet:
    """The packet to be decoded in place of `packet`."""
    begin = packet.pts if self._decoded else packet.dts
    if begin is None:
      begin = self._times[-1][0] + self._step if self._times else 0
    if self._times and begin > self._times[-1][0]:
      self._step = begin - self._times[-1][0]
    self._times.append((begin, packet.is_discard))
    if packet.is_discard:  # the decoder would hide another picture
      packet = shown(packet)
    packet.pts = self._sent
    self._sent += 1
    return packet

  def begin(self, frame: av.VideoFrame) -> int | None:
    """The time of the next picture in ticks; None if it is hidden."""
    if self._delay is None:
      self._delay = min(self._sent - 1, self._codec.reorder_depth) if self._decoded else 0
    number = self._next
    if frame.pts is not None and frame.pict_type in (PictureType.I, PictureType.P):
      number = max(number, frame.pts)
    self._next = number + 1
    place = number + self._delay
    while self._dropped < place and len(self._times) > 1:
      self._times.popleft()
      self._dropped += 1
    begin, hidden = self._times[0]
    return None if hidden else begin + (place - self._dropped) * self._step
