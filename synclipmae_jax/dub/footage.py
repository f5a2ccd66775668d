"""The pictures of a video to dub: a survey of all of them, then one after another in any order, as they are stored."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

from synclipmae_jax.data.faces.sources import SHORT_SIDE, dominant, open_faces
from synclipmae_jax.data.faces.track import FaceTrack
from synclipmae_jax.data.media.clock import read_clock
from synclipmae_jax.data.media.containers import check_length, video_stream
from synclipmae_jax.data.media.pictures import pictures
from synclipmae_jax.data.media.planes import encodable, turns
from synclipmae_jax.data.media.scenes import SceneCuts
from synclipmae_jax.data.media.video import Frame, MediaInfo, Scaler
from synclipmae_jax.types import FPS, InputError

_LOOK = max(256, *SHORT_SIDE.values())  # pixels of the short side, for finding faces and cuts
_HELD = 2**28  # bytes of pictures that are held to show them backwards


@dataclasses.dataclass(frozen=True, kw_only=True)
class Footage:
  """What is known of a video with n pictures. Sizes are those of the picture as displayed, in square pixels."""

  path: str
  width: int
  height: int
  stored: tuple[int, int]  # height and width of the stored picture, turned upright
  time_base: Fraction
  ticks: np.ndarray  # int64 [n]: the time of each picture in ticks, on the file's clock
  step: int  # ticks for which the last picture is shown
  rate: Fraction  # pictures a second, by the header
  track: FaceTrack  # [n], one face a picture
  cuts: tuple[int, ...]  # first pictures of new shots
  notes: tuple[str, ...]

  @property
  def seconds(self) -> np.ndarray:
    """float64 [n]: the times from the first picture on."""
    return (self.ticks - self.ticks[0]) * float(self.time_base)


def survey(path: str | os.PathLike, *, faces: str) -> Footage:
  """Reads a video once, at reduced size. Raises InputError if it cannot be read to its end."""
  if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would block
    raise InputError("it is not a regular file")
  clock, scenes, ticks, damaged = read_clock(path), SceneCuts(), [], 0
  with clock.open(path) as container:
    stream = video_stream(container)
    shown = pictures(container, stream, clock)
    first = next((picture for picture in shown if picture.frame), None)
    if first is None:
      raise InputError("it holds no picture that can be decoded")
    display = functools.partial(Scaler().display, aspect=stream.sample_aspect_ratio)
    height, width = display(first.frame).shape[:2]
    rate = Fraction(stream.average_rate or stream.guessed_rate or FPS)
    step = first.frame.duration or round(1 / rate / stream.time_base)
    size, turn = (first.frame.width, first.frame.height), turns(first.frame)
    origin = (first.begin or 0) * stream.time_base
    info = MediaInfo(width=width, height=height, fps=float(rate), sample_rate=0, channels=0, origin=origin, end=0.0)
    source, notes = open_faces(path, faces, info=info)

    def frames() -> Iterator[Frame]:
      nonlocal damaged
      for number, (frame, begin) in enumerate(itertools.chain([first], shown)):
        if frame is None:
          damaged += 1
          continue
        if (frame.width, frame.height) != size or turns(frame) != turn:
          raise InputError(f"its picture changes from {size[0]} x {size[1]} to {frame.width} x {frame.height} pixels")
        ticks.append(begin if begin is not None else ticks[-1] + step if ticks else 0)
        yield Frame(len(ticks) - 1, number, display(frame, short_side=_LOOK))

    track = dominant(source, scenes.watch(frames()))
    check_length("picture", end=float((ticks[-1] + step) * stream.time_base), declared=clock.declared_end(stream))
    if damaged:
      notes = (*notes, f"{damaged} of its pictures are damaged and left out")
    return Footage(
      path=os.fspath(path), width=width, height=height, stored=size if turn % 2 else size[::-1],
      time_base=stream.time_base, ticks=np.array(ticks, np.int64), step=step, rate=rate, track=track,
      cuts=tuple(scenes.cuts), notes=(*clock.notes, *notes),
    )  # fmt: skip


def read(path: str | os.PathLike, order: np.ndarray) -> Iterator[av.VideoFrame]:
  """The pictures of a video by their numbers in `order`, which goes up or down by one; `encodable`."""
  ways = np.sign(np.diff(order))
  turned = [t + 1 for t in range(len(ways)) if ways[t] == 0 or (t and ways[t] != ways[t - 1])]
  for part in np.split(order, turned):
    yield from _forwards(path, part) if part[0] <= part[-1] else _backwards(path, part)


def _stored(path: str | os.PathLike) -> Iterator[av.VideoFrame]:
  clock = read_clock(path)
  with clock.open(path) as container:
    for picture in pictures(container, video_stream(container), clock):
      if picture.frame is not None:
        yield encodable(picture.frame)


def _forwards(path: str | os.PathLike, part: np.ndarray) -> Iterator[av.VideoFrame]:
  yield from itertools.islice(_stored(path), int(part[0]), int(part[-1]) + 1)


def _backwards(path: str | os.PathLike, part: np.ndarray) -> Iterator[av.VideoFrame]:
  """Stretch by stretch, each read anew from the beginning: a decoder goes forwards only."""
  high, low = int(part[0]) + 1, int(part[-1])
  while high > low:
    held: collections.deque[av.VideoFrame] = collections.deque()
    for frame in itertools.islice(_stored(path), low, high):
      held.append(frame)
      if sum(plane.buffer_size for plane in frame.planes) * len(held) > _HELD:
        held.popleft()
    high -= len(held)
    yield from reversed(held)
