"""Pictures in and out: any file to constant 25 frames/s on the container's own clock, and clips of ours back to arrays.

The clock. Frame t of a file is the source frame whose interval covers t/25 s, counted from the first picture's
presentation time (`MediaInfo.origin`). It is decided by integer arithmetic on the container's timestamps for every t
anew, so nothing accumulates, whatever the source's rate and however it varies. Timestamps are themselves rounded to
the stream's tick (1 ms in Matroska), so a frame may begin half a tick late and still cover t/25.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
from collections.abc import Generator, Iterator
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from synclipmae_jax.types import FPS, InputError

# A text file called .mp4 may be a playlist that names other files: only true containers are opened, and only files.
_OPEN_OPTIONS = {"format_whitelist": "mov,mp4,matroska,webm,avi,mpegts,flac", "protocol_whitelist": "file"}
_MAX_HOLD = 10  # seconds one picture may stand; a longer jump of the timestamps is damage, not a slide
_MAX_SHORTFALL = 0.5  # seconds a stream may end before the length that its header declares ...
_MAX_SHORTFALL_FRACTION = 0.02  # ... or this share of it, where that is more
_MAX_FRAMES = 24 * 3600 * 240  # that a header may claim: a day of slow motion


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaInfo:
  """What `probe` found. `origin` is the presentation time of the first picture: second 0 of our clock."""

  width: int  # as displayed: after rotation, with square pixels
  height: int
  fps: float  # average, for the manifest only
  sample_rate: int
  channels: int
  origin: Fraction
  end: float  # second of the container at which the header says that everything ends; 0 where it does not say


@dataclasses.dataclass(frozen=True)
class Frame:
  """One frame of the 25 frames/s clock: its index t, the source frame that it shows, and the picture."""

  index: int
  source: int
  image: np.ndarray  # uint8 [H, W, 3] RGB


@contextlib.contextmanager
def open_media(path: str | os.PathLike) -> Iterator[av.container.InputContainer]:
  """Opens a video file for reading; every way in which that or the reading inside fails becomes an InputError."""
  try:
    # Absolute, for FFmpeg takes what stands before the colon of "12:30.mp4" for a protocol.
    container = av.open(os.path.abspath(path), options=_OPEN_OPTIONS, metadata_errors="ignore")
  except FileNotFoundError as error:
    raise InputError("the file is missing") from error
  except PermissionError as error:
    raise InputError("the file may not be read") from error
  except (av.error.FFmpegError, OSError) as error:
    if os.path.isfile(path) and os.path.getsize(path) == 0:
      raise InputError("the file is empty (0 bytes)") from error
    raise InputError(f"it cannot be read as a video ({error.strerror})") from error
  with container:
    try:
      yield container
    except av.error.FFmpegError as error:
      raise InputError(f"it is damaged: it cannot be decoded to its end ({error.strerror})") from error
    except (IndexError, OverflowError, UnicodeDecodeError) as error:  # PyAV's own, of a stream that comes late, ...
      raise InputError(f"it is damaged: it cannot be decoded to its end ({error})") from error


def video_stream(container) -> av.video.stream.VideoStream:
  """The picture track of a container (not a cover image). Raises InputError where there is none."""
  stream = container.streams.best("video")
  if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
    raise InputError("it has no picture track")
  stream.thread_type = "NONE"  # parallelism is one level up: one file, or one batch, a worker
  return stream


def probe(path: str | os.PathLike) -> MediaInfo:
  """Sizes and rates of a video file, from its first decoded picture; raises InputError with a reason for the user."""
  with open_media(path) as container:
    stream = video_stream(container)
    sound = container.streams.best("audio")
    if sound is None:
      raise InputError("it has no sound track")
    if sound.codec_context is None:
      raise InputError("its sound is of a codec that cannot be decoded")
    if stream.frames > _MAX_FRAMES:
      raise InputError(f"it claims {stream.frames} frames, which no footage has")
    first = next(container.decode(stream), None)
    if first is None:
      raise InputError("it holds no picture that can be decoded")
    height, width = Scaler().display(first, aspect=stream.sample_aspect_ratio).shape[:2]
    return MediaInfo(
      width=width,
      height=height,
      fps=float(stream.average_rate or stream.guessed_rate or 0),
      sample_rate=sound.rate or 0,
      channels=sound.channels or 0,
      origin=(first.pts or 0) * stream.time_base,
      end=((container.start_time or 0) + (container.duration or 0)) / av.time_base,
    )


def read_frames(path: str | os.PathLike, *, short_side: int | None = None) -> Generator[Frame, None, None]:
  """Yields the file as 25 frames/s, one picture in memory at a time; `short_side` shrinks (never enlarges) them.

  Raises InputError where the stream cannot be decoded, ends well before the length its header declares, or stands
  still for longer than any real footage.
  """
  with open_media(path) as container:
    stream = video_stream(container)
    tick = stream.time_base
    step = round(1 / (stream.average_rate or stream.guessed_rate or FPS) / tick)  # where a frame has no duration
    display = functools.partial(Scaler().display, aspect=stream.sample_aspect_ratio, short_side=short_side)
    index, source, held, image, first, start, end = 0, -1, None, None, None, 0, 0

    def covers(ticks: int) -> bool:  # a picture that begins at `ticks` has begun (to half a tick) at index / 25
      return 2 * FPS * ticks * tick.numerator <= 2 * index * tick.denominator + FPS * tick.numerator

    for frame in container.decode(stream):
      if frame.is_corrupt:
        raise InputError(f"it is damaged: its picture is broken at {float(end * tick):.1f} s")
      first = (frame.pts or 0) if first is None else first
      pts = end if frame.pts is None else frame.pts - first
      if held is not None and pts <= start:  # a timestamp that goes back: the clock does not
        continue
      if (pts - start) * tick > _MAX_HOLD:
        raise InputError(f"its timestamps jump by {float((pts - start) * tick):.0f} s at {float(start * tick):.1f} s")
      while held is not None and not covers(pts):
        image = display(held) if image is None else image
        yield Frame(index, source, image)
        index += 1
      held, image, start, source = frame, None, pts, source + 1
      end = pts + (frame.duration or step)
    if held is None:
      raise InputError("it holds no picture that can be decoded")
    if (end - start) * tick > _MAX_HOLD:
      raise InputError(f"its last picture is to stand for {float((end - start) * tick):.0f} s")
    while not covers(end):
      image = display(held) if image is None else image
      yield Frame(index, source, image)
      index += 1
    check_length("picture", end=float((first + end) * tick), declared=declared_end(stream))


def check_length(what: str, *, end: float, declared: float) -> None:
  """Raises InputError where something decoded up to second `end` falls well short of the second `declared`."""
  if end < declared - max(_MAX_SHORTFALL, _MAX_SHORTFALL_FRACTION * declared):
    raise InputError(f"it is truncated: {declared:.1f} s are declared, its {what} ends at {max(end, 0):.1f} s")


def declared_end(stream) -> float:
  """The second at which the header says that a stream ends; 0 where it does not say (Matroska: `MediaInfo.end`)."""
  return float(((stream.start_time or 0) + (stream.duration or 0)) * stream.time_base)


class Scaler:
  """Resizes and converts pictures: area averaging when they shrink, bicubic when they grow.

  Keeps swscale's tables from one picture to the next; making them anew costs more than a small picture itself.
  """

  def __init__(self):
    self._reformatter = VideoReformatter()

  def __call__(self, frame: av.VideoFrame, *, width: int, height: int, pixels: str) -> av.VideoFrame:
    shrinks = width < frame.width or height < frame.height
    kind = Interpolation.AREA if shrinks else Interpolation.BICUBIC
    return self._reformatter.reformat(frame, width, height, pixels, interpolation=kind, threads=1)

  def display(self, frame: av.VideoFrame, *, aspect: Fraction | None, short_side: int | None = None) -> np.ndarray:
    """The picture as a player would show it: uint8 [H, W, 3], turned upright, perhaps smaller.

    `aspect` is the width of one of its pixels by the height, None where the file does not say.
    """
    width, height = max(1, round(frame.width * (aspect or 1))), frame.height
    scale = min(1.0, short_side / min(width, height)) if short_side else 1.0
    size = {"width": max(1, round(width * scale)), "height": max(1, round(height * scale))}
    rgb = self(frame, **size, pixels="rgb24").to_ndarray()
    return np.rot90(rgb, round(frame.rotation / 90) % 4) if frame.rotation else rgb


class ClipWriter:
  """Writes RGB pictures as the H.264 clip that records hold: square, 25 frames/s, quick to seek and to decode.

  GOP 12 without B-frames: a random window of 16 frames at 256 px then decodes in 6 ms instead of 38 (measured).
  """

  def __init__(self, path: str | os.PathLike, *, size: int):
    self._size = size
    self._container = av.open(os.fspath(path), "w", format="mp4")
    self._stream = self._container.add_stream("libx264", rate=FPS, width=size, height=size, pix_fmt="yuv420p")
    # With mbtree the same pictures give other bytes now and then (measured: the first clip of a process).
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
