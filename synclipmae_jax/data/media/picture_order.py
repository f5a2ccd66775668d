"""Times of presentation for pictures whose file has none: those that reading gives them, by the order of decoding."""

from __future__ import annotations

import os

import numpy as np

from synclipmae_jax.data.media.clock import Clock
from synclipmae_jax.data.media.containers import video_stream
from synclipmae_jax.data.media.timeline import Packets


def lacks_order(clock: Clock, stream) -> bool:
  """Whether pictures may be stored out of order, and the file has no times of presentation."""
  return clock.counted is not None and bool(stream.codec_context.codec.reorder)


def order_by_decoding(path: str | os.PathLike, packets: Packets, clock: Clock) -> None:
  """Gives the pictures of `packets` their times of presentation, as `data.media.pictures` counts them."""
  rank, delay = _ranks(path, len(packets.dts), clock)
  for i in np.flatnonzero(rank < 0):  # an undecodable picture follows its neighbour
    rank[i] = rank[i - 1] + 1e-6 if i else -0.5
  place = np.empty(len(rank), np.int64)
  place[np.argsort(rank, kind="stable")] = np.arange(len(rank))
  times = np.sort(packets.dts)
  step = int(np.median(np.diff(times))) if len(times) > 1 else packets.step
  times = np.concatenate([times, times[-1:] + step * np.arange(1, delay + 1)])[delay:]
  packets.pts = times[place]
  packets.hidden = np.zeros(len(rank), bool)


def _ranks(path: str | os.PathLike, count: int, clock: Clock) -> tuple[np.ndarray, int]:
  """(float64 [n]: the place of each picture in the order of the decoder's output, -1 if unknown; the decoder's delay).

  The delay is the number of pictures that the decoder holds back, if `Clock.counted` is "decoded", else 0.
  """
  rank = np.full(count, -1.0)
  with clock.open(path) as container:
    stream = video_stream(container)
    number = shown = 0
    for packet in clock.packets(container, stream):
      if packet.size:
        packet.pts = packet.dts = number  # the decoder passes it to the picture
        number += 1
      for frame in packet.decode():
        if frame.pts is not None and 0 <= frame.pts < len(rank):
          rank[frame.pts] = shown
          shown += 1
    return rank, stream.codec_context.reorder_depth if clock.counted == "decoded" else 0
