"""The track of a face, one row per frame, and the square crop around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from synclipmae_jax.data.media.video import MediaInfo

CROP_RULE = "square, 1.4 x the longer side of the face box (90th percentile of the clip), never beyond the picture"
_CROP_SCALE = 1.4  # the box is brow to chin: a fifth of it on every side, and room for the jaw to open


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaceTrack:
  """One face per frame, for n frames, in fractions of the picture."""

  box: np.ndarray  # float32 [n, 4] x0, y0, x1, y1, brow to chin and ear to ear; nan: no face
  track: np.ndarray  # int [n], another number for another face; -1: no face
  confidence: np.ndarray  # float32 [n] in [0, 1]; 0: no face, or a box interpolated over a short gap
  landmarks: np.ndarray | None = None  # float32 [n, K, 2]; nan: unknown
  mouth: tuple[int, ...] = ()  # indices of the lip landmarks
  schema: str = ""  # name of the set of landmarks

  @property
  def count(self) -> int:
    """Number of landmarks per frame."""
    return 0 if self.landmarks is None else self.landmarks.shape[1]

  def __getitem__(self, rows: np.ndarray | slice) -> FaceTrack:
    landmarks = None if self.landmarks is None else self.landmarks[rows]
    return dataclasses.replace(
      self, box=self.box[rows], track=self.track[rows], confidence=self.confidence[rows], landmarks=landmarks
    )


def nowhere(frames: int, *, landmarks: int = 0, mouth: tuple[int, ...] = (), schema: str = "") -> FaceTrack:
  """A track of `frames` rows without a face."""
  nothing = lambda *shape: np.full((frames, *shape), np.nan, np.float32)
  return FaceTrack(
    box=nothing(4), track=np.full(frames, -1), confidence=np.zeros(frames, np.float32),
    landmarks=nothing(landmarks, 2) if landmarks else None, mouth=mouth, schema=schema,
  )  # fmt: skip


def joined(parts: Sequence[FaceTrack]) -> FaceTrack:
  """The rows of several tracks with the same landmarks, concatenated."""
  return dataclasses.replace(
    parts[0],
    box=np.concatenate([part.box for part in parts]),
    track=np.concatenate([part.track for part in parts]),
    confidence=np.concatenate([part.confidence for part in parts]),
    landmarks=np.concatenate([part.landmarks for part in parts]) if parts[0].count else None,
  )


def centred(count: int, *, info: MediaInfo) -> FaceTrack:
  """A track of `count` rows for which the crop is the largest centred square of the picture."""
  side = min(info.width, info.height) / _CROP_SCALE
  x, y = side / info.width / 2, side / info.height / 2
  box = np.tile(np.array([0.5 - x, 0.5 - y, 0.5 + x, 0.5 + y], np.float32), (count, 1))
  return FaceTrack(box=box, track=np.zeros(count, int), confidence=np.ones(count, np.float32))


def crop_path(box: np.ndarray, *, width: int, height: int) -> np.ndarray:
  """The square crop of a clip, float [n, 3] x0, y0, side in pixels, from its face boxes [n, 4] in pixels.

  One size a clip, and one place where every box stays inside the square with a tenth to spare: head motion then stays
  visible, as the ambient token needs it. A face that wanders further is followed by a path smoothed over seconds.
  """
  centre = (box[:, :2] + box[:, 2:]) / 2
  side = min(_CROP_SCALE * np.percentile((box[:, 2:] - box[:, :2]).max(1), 90), width, height)
  middle = (centre.min(0) + centre.max(0)) / 2
  room = (np.abs(centre - middle) + (box[:, 2:] - box[:, :2]) / 2).max()
  place = np.tile(middle, (len(box), 1)) if room <= 0.45 * side else smooth(centre, sigma=25)
  corner = np.clip(place - side / 2, 0, np.array([width, height]) - side)
  return np.concatenate([corner, np.full((len(box), 1), side)], 1)


def smooth(path: np.ndarray, *, sigma: float) -> np.ndarray:
  """Gaussian smoothing over axis 0 of [n, d], `sigma` in frames; the ends are reflected oddly: a drift stays."""
  reach = int(3 * sigma)
  kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
  padded = np.pad(path, ((reach, reach), (0, 0)), "reflect", reflect_type="odd")
  return np.stack([np.convolve(column, kernel / kernel.sum(), "valid") for column in padded.T], 1)


def overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
  """float [n]: intersection over union of a box [4] with each of `boxes` [n, 4]."""
  inside = np.maximum(np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]), 0).prod(1)
  area = lambda b: (b[..., 2:] - b[..., :2]).prod(-1)
  return inside / np.maximum(area(box) + area(boxes) - inside, 1e-12)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
  """Intersection over union of two boxes [4]."""
  return float(overlaps(a, b[None])[0])


def shared(a: np.ndarray, b: np.ndarray) -> float:
  """Intersection over the smaller of two boxes [4]."""
  inside = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0).prod()
  return float(inside / max(min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod()), 1e-12))
