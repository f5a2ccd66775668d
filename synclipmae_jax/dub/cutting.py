"""Where the face crops of a video lie, which pictures are generated together, and which part of them."""

from __future__ import annotations

import av
import numpy as np

from synclipmae_jax.data.faces.mouth_mask import mouth_region_within, region_mask
from synclipmae_jax.data.faces.track import crop_path
from synclipmae_jax.data.media.video import Scaler
from synclipmae_jax.dub.compositing import Crop
from synclipmae_jax.dub.footage import Footage
from synclipmae_jax.dub.segments import Segment, plan
from synclipmae_jax.types import InputError

_LEAST = 16  # pixels of a crop: a smaller face stays as it is


class Cutting:
  """The `segments` that are generated, and of each, in fractions of its crops, the mouth region in `regions`, float
  [4], and the face in `boxes`, float32 [n, 4].

  `order`: which picture of the footage each picture of the result is. Raises InputError if there is nothing to do: no
  face, only small ones, or only mouths that leave the picture.
  """

  def __init__(self, seen: Footage, order: np.ndarray):
    self._crops = np.full((len(order), 4), np.nan)  # x0, y0, width, height in pixels of the stored picture
    self.segments: list[Segment] = []
    self.regions: list[np.ndarray] = []
    self.boxes: list[np.ndarray] = []
    self.notes: list[str] = []
    track = seen.track.track[order]
    size = np.array([seen.width, seen.height])
    boxes = seen.track.box[order] * np.tile(size, 2)
    grid = np.array(seen.stored[::-1]) / size  # pixels of the stored picture, which need not be square
    small, outside = 0, 0
    for start, stop, segments in _shots(plan(track >= 0, cuts=_cuts(seen, order, track))):
      crop = crop_path(boxes[start:stop], width=seen.width, height=seen.height).round()
      if crop[0, 2] < _LEAST:
        small += stop - start
        continue
      self._crops[start:stop] = np.rint(crop[:, [0, 1, 2, 2]] * np.tile(grid, 2))
      for segment in segments:
        rows = slice(segment.start - start, segment.stop - start)
        inside = (boxes[segment.start : segment.stop] - crop[rows][:, [0, 1, 0, 1]]) / crop[rows][:, 2:]
        try:
          self.regions.append(mouth_region_within(inside))
        except InputError:
          outside += segment.stop - segment.start
        else:
          self.segments.append(segment)
          self.boxes.append(inside.astype(np.float32))
    for count, why in (
      (int((track < 0).sum()), "show no face"),
      (small, f"show a face smaller than {_LEAST} pixels"),
      (outside, "show a mouth that leaves the picture"),
    ):
      if count and not self.segments:
        raise InputError(f"nothing can be dubbed: {count} of {len(order)} pictures {why}")
      if count:
        self.notes.append(f"{count} of {len(order)} pictures {why} and stay as they are")

  @property
  def dubbed(self) -> int:
    """How many pictures are changed."""
    return sum(segment.stop - segment.start for segment in self.segments)

  def crop(self, place: int) -> Crop:
    """The crop of a picture of the result, in whole pixels of the stored picture, upright."""
    x, y, width, height = self._crops[place]
    return float(x), float(y), float(width), float(height)

  def masks(self, number: int, side: int) -> np.ndarray:
    """bool [side, side]: what is generated of the crops of a segment."""
    return region_mask(self.regions[number], height=side, width=side)


def _shots(segments: list[Segment]):
  """(start, stop, segments) of every shot."""
  by_first: dict[int, list[Segment]] = {}
  for segment in segments:
    by_first.setdefault(segment.first, []).append(segment)
  for first, parts in by_first.items():
    yield first, parts[-1].stop, parts


def _cuts(seen: Footage, order: np.ndarray, track: np.ndarray) -> list[int]:
  """Places of the result at which a new shot begins: cuts of the footage, in either direction, and new faces."""
  later = np.maximum(order[1:], order[:-1])
  jumps = np.isin(later, seen.cuts) | (track[1:] != track[:-1])
  return (np.flatnonzero(jumps) + 1).tolist()


def cut_out(picture: np.ndarray, crop: Crop, *, size: int) -> np.ndarray:
  """uint8 [size, size, 3]: a crop in whole pixels of a picture uint8 [H, W, 3]."""
  x, y, width, height = map(int, crop)
  part = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[y : y + height, x : x + width]), format="rgb24")
  return Scaler()(part, width=size, height=size, pixels="rgb24").to_ndarray()
