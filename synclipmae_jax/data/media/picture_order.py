"""In which order the pictures of a stream are shown where its file does not say: as its decoder gives them."""

from __future__ import annotations

import os

import numpy as np

from synclipmae_jax.data.media.containers import open_media, video_stream
from synclipmae_jax.data.media.timeline import NO_TIME, Packets

_LOOK = 100  # pictures whose order tells that of a file, unless its header says that there are others


def lacks_order(path: str | os.PathLike, packets: Packets, stream, container_format: str) -> bool:
  """Whether pictures are stored in another order than shown, and no times of showing are there to tell it.

  AVI never has them: FFmpeg then takes those of decoding, or one picture later, so that these are not to be trusted.
  """
  if not stream.codec_context.codec.reorder or not len(packets.pts):
    return False
  if "avi" in container_format.split(","):
    return True
  known = (packets.pts != NO_TIME) & (packets.dts != NO_TIME)
  if not known.any() or (packets.pts != packets.dts)[known].any():
    return False
  rank = _ranks(path, packets, pictures=_LOOK)
  return bool((np.diff(rank[rank >= 0]) < 0).any())


def order_by_decoding(path: str | os.PathLike, packets: Packets) -> None:
  """Gives the pictures of `packets` the times of showing that follow from the order in which they are decoded.

  The k-th picture that is shown gets the k-th time of decoding, of which the first is not before 0: an edit list that
  was to hide the delay of decoding hides pictures otherwise.
  """
  rank = _ranks(path, packets, pictures=len(packets.dts))
  for i in np.flatnonzero(rank < 0):  # what cannot be decoded stays beside its neighbour
    rank[i] = rank[i - 1] + 1e-6 if i else -0.5
  place = np.empty(len(rank), np.int64)
  place[np.argsort(rank, kind="stable")] = np.arange(len(rank))
  times = np.sort(packets.dts)
  times += max(0, -int(times[0])) if len(times) else 0
  packets.pts = times[place]
  packets.hidden = np.zeros(len(rank), bool)


def _ranks(path: str | os.PathLike, packets: Packets, *, pictures: int) -> np.ndarray:
  """float64 [n]: the place of each packet's picture in the order in which the decoder gives them; -1 where unknown.

  Stops after `pictures` of them.
  """
  rank = np.full(len(packets.dts), -1.0)
  with open_media(path) as container:
    stream = video_stream(container)
    number = shown = 0
    for packet in container.demux(stream):
      if packet.size:
        packet.pts = packet.dts = number  # a decoder hands it on to the picture
        number += 1
      for frame in packet.decode():
        if frame.pts is not None and 0 <= frame.pts < len(rank):
          rank[frame.pts] = shown
          shown += 1
      if shown >= pictures:
        break
  return rank
