"""Pictures in the pixel format of their file, of which a part is changed; all other samples keep every bit.

A picture that went to RGB and back would differ everywhere by rounding.
"""

from __future__ import annotations

import av
import numpy as np
from av.video.reformatter import Interpolation

# Formats with one component a plane that libx264 encodes.
_FORMATS = frozenset(
  "yuv420p yuvj420p yuv422p yuvj422p yuv444p yuvj444p gray yuv420p10le yuv422p10le yuv444p10le gray10le".split()
)
_CHROMA = Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
_EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | _CHROMA


def encodable(frame: av.VideoFrame) -> av.VideoFrame:
  """The picture itself, or, where its format has no planes or the encoder does not take it, converted."""
  odd = frame.width % 2 or frame.height % 2
  if frame.format.name in _FORMATS and not (odd and any(part.width != frame.width for part in frame.format.components)):
    return frame
  deep = max((part.bits for part in frame.format.components), default=8) > 8
  return at(frame.reformat(format=("yuv444p" if odd else "yuv420p") + ("10le" if deep else "")), frame)


def turns(frame: av.VideoFrame) -> int:
  """Quarter turns to the left that show the picture upright."""
  return round(frame.rotation / 90) % 4


def upright(frame: av.VideoFrame) -> np.ndarray:
  """uint8 [H, W, 3]: the stored pixels as RGB, turned upright. Unlike `video.Scaler.display` never resized."""
  rgb = frame.reformat(format="rgb24", interpolation=_EXACT).to_ndarray()
  return np.ascontiguousarray(np.rot90(rgb, turns(frame)))


def changed(frame: av.VideoFrame, shown: np.ndarray, where: np.ndarray) -> av.VideoFrame:
  """A copy of an `encodable` picture that shows `shown` at the pixels of `where`.

  `shown`: uint8 [H, W, 3] and `where`: bool [H, W], as `upright` gives the picture. A sample that belongs to several
  pixels is changed where all of them are. All other samples keep every bit.
  """
  back = lambda array: np.ascontiguousarray(np.rot90(array, -turns(frame)))
  shown, where = back(shown), back(where)
  rgb = av.VideoFrame.from_ndarray(shown, format="rgb24")
  rgb.colorspace = frame.colorspace
  wanted = rgb.reformat(format=frame.format.name, interpolation=_EXACT, dst_color_range=int(frame.color_range))
  out = av.VideoFrame(frame.width, frame.height, frame.format.name)
  for part in frame.format.components:
    old, new, target = (_samples(each, part) for each in (frame, wanted, out))
    target[:] = np.where(_pooled(where, part), new, old)
  for name in ("colorspace", "color_range", "color_primaries", "color_trc"):
    setattr(out, name, getattr(frame, name))
  return at(out, frame)


def at(picture: av.VideoFrame, other: av.VideoFrame) -> av.VideoFrame:
  """`picture` with the time of another."""
  picture.pts = other.pts
  if other.time_base is not None:
    picture.time_base = other.time_base
  return picture


def _samples(frame: av.VideoFrame, part) -> np.ndarray:
  """A view of the samples of a component, [h, w]."""
  plane = frame.planes[part.plane]
  kind = np.dtype(np.uint8 if part.bits <= 8 else "<u2")
  rows = np.frombuffer(memoryview(plane), kind).reshape(-1, plane.line_size // kind.itemsize)
  return rows[: plane.height, : plane.width]


def _pooled(where: np.ndarray, part) -> np.ndarray:
  """bool [h, w]: whether all pixels of a sample of the component are in `where`."""
  height, width = where.shape
  down, right = -(-height // part.height), -(-width // part.width)
  padded = np.pad(where, ((0, part.height * down - height), (0, part.width * right - width)), "edge")
  whole: np.ndarray = np.all(padded.reshape(part.height, down, part.width, right), axis=(1, 3))
  return whole
