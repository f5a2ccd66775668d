"""Reads any file at constant 25 frames/s on the container's own clock; writes clips and reads them as arrays.

The clock. Frame t of a file is the source frame whose interval covers t/25 s, counted from the first picture's
presentation time (`MediaInfo.origin`). It is computed by integer arithmetic on the container's timestamps, for
every t separately, so that rounding does not accumulate at any constant or variable rate. Timestamps are themselves
rounded to the stream's tick (1 ms in Matroska), so a frame may begin half a tick late and still cover t/25.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
from collections.abc import Generator
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from synclipmae_jax.data.media.clock import read_clock
from synclipmae_jax.data.media.containers import (
  check_length,
  open_media,
  video_stream,
)
from synclipmae_jax.data.media.pictures import pictures
from synclipmae_jax.data.media.sound_track import SoundTrack, choose_sound
from synclipmae_jax.types import FPS, InputError

MAX_HOURS = 24
_MAX_FRAMES = MAX_HOURS * 3600 * 240  # that a header may declare: a day of slow motion
_MAX_DAMAGE = Fraction(1, 2)  # seconds of damaged pictures in one place, for which the picture before is held ...
_MAX_DAMAGED_SHARE = 0.05  # ... and share of the length; a file with more is refused
_DAMAGE_REACH = 32  # pictures after an undecodable one in which its gap may appear: they are stored out of order


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaInfo:
  """Result of `probe`. `origin` is the presentation time of the first picture: second 0 of our clock."""

  width: int  # as displayed: after rotation, with square pixels
  height: int
  fps: float  # average, for the manifest only
  sample_rate: int
  channels: int
  origin: Fraction
  end: float  # second of the container at which the file ends by the header; 0 if unknown
  sound: SoundTrack | None = None  # the sound that is read
  notes: tuple[str, ...] = ()  # what the user must know of how the file is read


@dataclasses.dataclass(frozen=True)
class Frame:
  """One frame of the 25 frames/s clock: its index t, the source frame that it shows, and the picture."""

  index: int
  source: int
  image: np.ndarray  # uint8 [H, W, 3] RGB
  damaged: bool = False  # the picture is damaged: the one before it is shown


def probe(path: str | os.PathLike, *, audio_track: int | None = None, silent: bool = False) -> MediaInfo:
  """Sizes and rates of a video file, from its first decoded picture; raises InputError with a reason for the user.

  `audio_track`: number of the sound track, counted from 1; None: `choose_sound` selects it. `silent`: no sound is
  wanted, and the file needs none.
  """
  with open_media(path) as container:  # the header is checked first: it is read fast
    stream = video_stream(container)
    if stream.frames > _MAX_FRAMES:
      raise InputError(f"it declares {stream.frames} frames, more than any footage has")
  sound = None if silent else choose_sound(path, audio_track)
  clock = read_clock(path)
  with clock.open(path) as container:
    stream, heard = video_stream(container), None if sound is None else container.streams[sound.index]
    first = next((picture for picture in pictures(container, stream, clock) if picture.frame), None)
    if first is None:
      raise InputError("it holds no picture that can be decoded")
    height, width = Scaler().display(first.frame, aspect=stream.sample_aspect_ratio).shape[:2]
    return MediaInfo(
      width=width,
      height=height,
      fps=float(stream.average_rate or stream.guessed_rate or 0),
      sample_rate=(heard and heard.rate) or 0,
      channels=(heard and heard.channels) or 0,
      origin=(first.begin or 0) * stream.time_base,
      end=clock.declared_end_of_all(container),
      sound=sound,
      notes=(*clock.notes, *(sound.notes if sound else ())),
    )


def read_frames(
  path: str | os.PathLike, *, short_side: int | None = None, notes: list[str] | None = None
) -> Generator[Frame, None, None]:
  """Yields the file as 25 frames/s, one picture in memory at a time; `short_side` shrinks (never enlarges) them.

  All have the shape of the first: if the size changes, later pictures are fitted into it. A damaged picture is replaced
  by the one before it; a note on this is appended to `notes`.
  Raises InputError if the stream cannot be decoded, ends well before the length declared in its header, or has a longer
  gap than `Clock.longest_hold`.
  """
  clock = read_clock(path)
  with clock.open(path) as container:
    stream = video_stream(container)
    tick = stream.time_base
    step = round(1 / (stream.average_rate or stream.guessed_rate or FPS) / tick)  # of a frame without duration
    display = functools.partial(Scaler().display, aspect=stream.sample_aspect_ratio, short_side=short_side)
    index, source, held, image, first, start, end = 0, -1, None, None, None, 0, 0
    shape, number, failed, damage = None, -1, 0, []

    def covers(ticks: int) -> bool:  # a picture that begins at `ticks` has begun (to half a tick) at index / 25
      return 2 * FPS * ticks * tick.numerator <= 2 * index * tick.denominator + FPS * tick.numerator

    def shown() -> Frame:
      nonlocal image, shape
      image = display(held, into=shape) if image is None else image
      shape = image.shape
      return Frame(index, source, image, damaged=bool(failed) and covers(end))

    for frame, begin in pictures(container, stream, clock):
      number += 1
      if frame is None:
        failed = _DAMAGE_REACH
        continue
      first = (begin or 0) if first is None else first
      pts = end if begin is None else begin - first
      if held is not None and (pts - start) * tick > clock.longest_hold:
        raise InputError(f"its timestamps jump by {float((pts - start) * tick):.0f} s at {float(start * tick):.1f} s")
      if failed and held is not None and pts > end + step // 2:
        damage.append((end * tick, (pts - end) * tick))
        if damage[-1][1] > _MAX_DAMAGE:
          at, lasts = map(float, damage[-1])
          raise InputError(f"it is damaged: its picture is broken from {at:.1f} s to {at + lasts:.1f} s")
      if index > MAX_HOURS * 3600 * FPS:
        raise InputError(f"it lasts longer than {MAX_HOURS} hours")
      while held is not None and not covers(pts):
        yield shown()
        index += 1
      held, image, start, source, failed = frame, None, pts, number, max(0, failed - 1)
      end = pts + (frame.duration or step)
    if held is None:
      raise InputError("it holds no picture that can be decoded")
    if (end - start) * tick > clock.longest_hold:
      raise InputError(f"its last picture has a duration of {float((end - start) * tick):.0f} s")
    while not covers(end):
      yield shown()
      index += 1
    check_length("picture", end=float((first + end) * tick), declared=clock.declared_end(stream))
    lost = float(sum(lasts for _, lasts in damage))
    if lost > _MAX_DAMAGED_SHARE * float(end * tick):
      raise InputError(f"it is damaged: {lost:.1f} s of its picture are broken, in {len(damage)} places")
    if damage and notes is not None:
      places = ", ".join(f"{float(at):.2f}" for at, _ in damage[:5]) + (", …" if len(damage) > 5 else "")
      notes.append(f"its picture is damaged at {places} s, for {1000 * lost:.0f} ms in all: the one before it is held")


class Scaler:
  """Resizes and converts pictures: area averaging when they shrink, bicubic when they grow.

  Keeps swscale's tables from one picture to the next; creating them costs more than scaling a small picture.
  """

  def __init__(self):
    self._reformatter = VideoReformatter()

  def __call__(self, frame: av.VideoFrame, *, width: int, height: int, pixels: str) -> av.VideoFrame:
    shrinks = width < frame.width or height < frame.height
    kind = Interpolation.AREA if shrinks else Interpolation.BICUBIC
    return self._reformatter.reformat(frame, width, height, pixels, interpolation=kind, threads=1)

  def display(
    self, frame: av.VideoFrame, *, aspect: Fraction | None, short_side: int | None = None,
    into: tuple[int, ...] | None = None,
  ) -> np.ndarray:  # fmt: skip
    """The picture as a player shows it: uint8 [H, W, 3], rotated upright, optionally reduced.

    `aspect` is the width of a pixel divided by its height, None if unknown. With `into`, a shape [H, W, 3], the picture
    is fitted into that shape, with black bars if the aspect ratios differ.
    """
    width, height = max(1, round(frame.width * (aspect or 1))), frame.height
    scale = min(1.0, short_side / min(width, height)) if short_side else 1.0
    size = max(1, round(width * scale)), max(1, round(height * scale))
    turns = round(frame.rotation / 90) % 4
    if into and into[:2] != (size if turns % 2 else size[::-1]):
      box = into[:2] if turns % 2 else into[1::-1]  # width and height before rotation
      scale = min(box[0] / width, box[1] / height)
      size = tuple(min(side, max(1, round(length * scale))) for side, length in zip(box, (width, height), strict=True))
    rgb = self(frame, width=size[0], height=size[1], pixels="rgb24").to_ndarray()
    rgb = np.rot90(rgb, turns) if turns else rgb
    if into and rgb.shape != into:
      canvas = np.zeros(into, np.uint8)
      top, left = (into[0] - rgb.shape[0]) // 2, (into[1] - rgb.shape[1]) // 2
      canvas[top : top + rgb.shape[0], left : left + rgb.shape[1]] = rgb
      return canvas
    return rgb


class ClipWriter:
  """Writes RGB pictures as the H.264 clip of a record: square, 25 frames/s, fast to seek and to decode.

  GOP 12 without B-frames: a random window of 16 frames at 256 px then decodes in 6 ms instead of 38 (measured).
  """

  def __init__(self, path: str | os.PathLike, *, size: int):
    self._size = size
    self._container = av.open(os.fspath(path), "w", format="mp4")
    self._stream = self._container.add_stream("libx264", rate=FPS, width=size, height=size, pix_fmt="yuv420p")
    # With mbtree equal pictures sometimes give different bytes (measured: the first clip of a process).
    self._stream.options = {
      "crf": "18", "g": "12", "bf": "0", "tune": "fastdecode", "threads": "1", "x264-params": "mbtree=0",
    }  # fmt: skip
    self._frames, self._scaler = 0, Scaler()

  def write(self, image: np.ndarray) -> None:
    """Appends one picture, uint8 [H, W, 3], resized to size x size."""
    source = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    frame = self._scaler(source, width=self._size, height=self._size, pixels="yuv420p")
    frame.pts, frame.time_base = self._frames, Fraction(1, FPS)
    self._frames += 1
    self._container.mux(self._stream.encode(frame))

  def close(self) -> None:
    self._container.mux(self._stream.encode())
    self._container.close()

  def __enter__(self) -> ClipWriter:
    return self

  def __exit__(self, *_) -> None:
    self.close()


def read_windows(mp4: bytes, starts: list[int], *, count: int, size: int) -> np.ndarray:
  """`count` frames from each of `starts` (ascending) of a clip that `ClipWriter` wrote: uint8 [W, count, S, S, 3].

  Seeks to the keyframe before each window. Raises ValueError where the clip ends inside a window.
  """
  frames, scaler = np.empty((len(starts), count, size, size, 3), np.uint8), Scaler()
  with av.open(io.BytesIO(mp4), format="mp4") as container:
    stream = video_stream(container)
    ticks = round(1 / (FPS * stream.time_base))
    for window, start in enumerate(starts):
      container.seek(start * ticks, stream=stream)
      filled = 0
      for frame in container.decode(stream):
        if (index := frame.pts // ticks) >= start:
          frames[window, index - start] = scaler(frame, width=size, height=size, pixels="rgb24").to_ndarray()
          filled += 1
          if filled == count:
            break
      if filled != count:
        raise ValueError(f"the clip ends {count - filled} frames before frame {start + count}")
  return frames
