"""Where the face is: interchangeable backends that follow one face a scene, and the square crop around it.

A backend is given the frames of a file, one at a time, and answers with a `FaceTrack` in fractions of the picture, so
it does not matter at which size it looked. `precomputed` reads what another tool found, `skimage_lbp` works offline
with what scikit-image ships, `full_frame` believes that the picture is a face crop already.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from synclipmae_jax.data.media.video import Frame, MediaInfo
from synclipmae_jax.types import FPS, InputError

CROP_RULE = "square, 1.4 x the longer side of the face box (90th percentile of the clip), never beyond the picture"
_CROP_SCALE = 1.4  # the box is brow to chin: a fifth of it on every side, and room for the jaw to open
_TRACKS = 20  # newest faces that are looked after at a time
_MAX_SIDECAR = 2**30  # bytes: three hours of a face mesh
BRIDGED = 8  # frames without a detection that are interpolated rather than called a gap


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaceTrack:
  """One face a frame, for n frames, in fractions of the picture."""

  box: np.ndarray  # float32 [n, 4] x0, y0, x1, y1, brow to chin; nan where there is no face
  track: np.ndarray  # int [n]: changes where another face is followed; -1 where there is none
  landmarks: np.ndarray | None = None  # float32 [n, K, 2]
  mouth: tuple[int, ...] = ()  # the landmarks that are lips
  schema: str = ""  # the landmarks' name

  def __getitem__(self, rows: np.ndarray | slice) -> FaceTrack:
    landmarks = None if self.landmarks is None else self.landmarks[rows]
    return dataclasses.replace(self, box=self.box[rows], track=self.track[rows], landmarks=landmarks)


class FaceBackend(Protocol):
  def __call__(self, frames: Iterable[Frame], *, info: MediaInfo, sidecar: Path | None) -> FaceTrack: ...


def full_frame(frames: Iterable[Frame], *, info: MediaInfo, sidecar: Path | None) -> FaceTrack:
  """The largest centred square is the crop: for corpora that were cropped by others."""
  return centred(sum(1 for _ in frames), info=info)


def centred(count: int, *, info: MediaInfo) -> FaceTrack:
  """`count` rows with the box around which the crop is the largest centred square."""
  side = min(info.width, info.height) / _CROP_SCALE
  x, y = side / info.width / 2, side / info.height / 2
  box = np.tile(np.array([0.5 - x, 0.5 - y, 0.5 + x, 0.5 + y], np.float32), (count, 1))
  return FaceTrack(box=box, track=np.zeros(count, int))


def precomputed(frames: Iterable[Frame], *, info: MediaInfo, sidecar: Path | None) -> FaceTrack:
  """What another tool found, as `read_sidecar` reads it."""
  source = np.array([frame.source for frame in frames])
  if sidecar is None or not os.path.exists(sidecar):
    raise InputError("it has no .faces.npz beside it")
  rows = read_sidecar(sidecar, info=info)
  shown = source[-1] + 1  # at more than 25 frames/s the last few may never be shown
  if not shown <= len(rows.box) <= shown + info.fps / FPS:
    raise InputError(f"its face file has {len(rows.box)} rows, the video {shown} frames")
  return rows[source]


def read_sidecar(path: Path, *, info: MediaInfo) -> FaceTrack:
  """`<stem>.faces.npz`, one row a source frame: boxes [n, 4] and landmarks [n, K, 2] in pixels of the picture,
  scores [n] (0: no face), schema, mouth (indices of the lip landmarks). All but boxes may be absent."""
  try:
    if not os.path.isfile(path):  # a pipe would be waited for
      raise ValueError("it is not a regular file")
    with np.load(path) as stored:
      if (size := sum(entry.file_size for entry in stored.zip.infolist())) > _MAX_SIDECAR:
        raise ValueError(f"{size / 2**30:.0f} GiB when unpacked")
      sheet = {name: stored[name] for name in stored.files}
    boxes = np.asarray(sheet["boxes"], np.float32)
    score = np.broadcast_to(np.asarray(sheet.get("scores", 1), np.float32), len(boxes))
    landmarks = np.asarray(sheet.get("landmarks", np.zeros((len(boxes), 0, 2))), np.float32)
    if boxes.shape[1:] != (4,) or landmarks.ndim != 3 or landmarks.shape[::2] != (len(boxes), 2):
      raise ValueError(f"boxes {boxes.shape} and landmarks {landmarks.shape} are not [n, 4] and [n, K, 2]")
    mouth = tuple(int(i) for i in sheet.get("mouth", ()))
    if mouth and not 0 <= min(mouth) <= max(mouth) < landmarks.shape[1]:
      raise ValueError(f"mouth names landmark {max(mouth)} of {landmarks.shape[1]}")
  except Exception as error:  # a damaged archive shows it in a dozen ways
    raise InputError(f"its face file {path.name} cannot be read ({error})") from error
  scale = np.array([info.width, info.height], np.float32)
  found = np.isfinite(boxes).all(1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]) & (score > 0)
  return FaceTrack(
    box=np.where(found[:, None], boxes / np.tile(scale, 2), np.nan).astype(np.float32),
    track=np.where(found, 0, -1),
    landmarks=landmarks / scale if landmarks.shape[1] else None,
    mouth=mouth,
    schema=str(sheet.get("schema", "")),
  )


def skimage_lbp(frames: Iterable[Frame], *, info: MediaInfo, sidecar: Path | None) -> FaceTrack:
  """Frontal faces by the local-binary-pattern cascade that ships with scikit-image; boxes only."""
  follower, count, shape = Follower(), 0, (1, 1)
  for frame in frames:
    count, shape = frame.index + 1, frame.image.shape
    follower.see(frame.index, functools.partial(_grey, frame.image))
  follower.finish()
  return _dominant([track.boxes for track in follower.tracks], count, shape)


def _grey(image: np.ndarray) -> np.ndarray:
  return (image @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.uint8)


Picture = Callable[[], np.ndarray]


class Follower:
  """Sees grey pictures go by, in order of time, and follows every face through them: `tracks`.

  A picture is a function that makes it, uint8 [H, W], for few are needed: it looks at every 5th frame, near the faces
  it follows (everywhere every 2 s, or when it follows none), and at the frames between where a face came or went, so
  the ends of a gap are exact.
  """

  def __init__(self):
    self.tracks: list[Track] = []
    self._look = _Cascade()
    self._recent: list[tuple[int, Picture]] = []  # what passed since the last look
    self._last = -1

  def see(self, t: int, picture: Picture) -> None:
    look, self._last = self._look, t
    if t % look.stride:
      self._recent.append((t, picture))
      return
    grey = picture()
    active = [track for track in self.tracks[-_TRACKS:] if t - track.last <= BRIDGED + look.stride]
    for track in active:
      seen, box = track.last, look.near(grey, track.boxes[track.last])
      if box is not None:
        if seen < t - look.stride:
          look.follow(self._recent[::-1], track, box)
        track.add(t, box)
      elif seen == t - look.stride:
        look.follow(self._recent, track, track.boxes[seen])
    if not active or t % look.everywhere_stride == 0:
      for box in look.everywhere(grey):
        if all(overlap(box, track.boxes[track.last]) < 0.3 for track in active):
          self.tracks.append(Track(t, box))
          active.append(self.tracks[-1])
          look.follow(self._recent[::-1], self.tracks[-1], box)
    self._recent = []

  def finish(self) -> None:
    """After the last frame: follows to it what the last look saw."""
    for track in self.tracks[-_TRACKS:]:
      if track.last == self._last - len(self._recent):
        self._look.follow(self._recent, track, track.boxes[track.last])


class Track:
  """Where one face was seen: frame -> box in pixels of the frames as they were given."""

  def __init__(self, t: int, box: np.ndarray):
    self.boxes, self.last = {t: box}, t

  def add(self, t: int, box: np.ndarray) -> None:
    self.boxes[t] = box
    self.last = max(self.last, t)


BACKENDS: Mapping[str, FaceBackend] = {
  "precomputed": precomputed, "skimage_lbp": skimage_lbp, "full_frame": full_frame,
}  # fmt: skip


class _Cascade:
  """skimage's detector with the settings above; boxes are float [4] x0, y0, x1, y1 in pixels."""

  stride = 5
  everywhere_stride = 50
  _smallest = 32  # pixels: below that the 24-pixel window sees faces in everything

  def __init__(self):
    import skimage.data  # heavy, and only this backend needs it
    import skimage.feature

    self._cascade = skimage.feature.Cascade(skimage.data.lbp_frontal_face_cascade_filename())

  def everywhere(self, grey: np.ndarray) -> list[np.ndarray]:
    return self._detect(grey, self._smallest, min(grey.shape), neighbours=4)

  def near(self, grey: np.ndarray, box: np.ndarray) -> np.ndarray | None:
    """The detection that overlaps `box` best, searched within its neighbourhood and near its size."""
    side = box[2] - box[0]
    x0, y0 = np.maximum(np.floor(box[:2] - 0.5 * side), 0).astype(int)
    x1, y1 = np.ceil(box[2:] + 0.5 * side).astype(int)
    region = np.ascontiguousarray(grey[y0:y1, x0:x1])
    if min(region.shape) < 24:
      return None
    found = self._detect(region, max(24, int(0.75 * side)), min(int(1.4 * side), *region.shape), neighbours=2)
    found = [candidate + np.tile([x0, y0], 2) for candidate in found]
    best = max(found, key=lambda candidate: overlap(candidate, box), default=None)
    return best if best is not None and overlap(best, box) > 0.3 else None

  def follow(self, frames: Iterable[tuple[int, Picture]], track: Track, box: np.ndarray) -> None:
    """Extends `track` through `frames` until the face is no longer found."""
    for t, picture in frames:
      if (box := self.near(picture(), box)) is None:
        return
      track.add(t, box)

  def _detect(self, grey, smallest: int, largest: int, *, neighbours: int) -> list[np.ndarray]:
    if largest < smallest:
      return []
    found = self._cascade.detect_multi_scale(
      img=grey, scale_factor=1.2, step_ratio=1, min_size=(smallest, smallest), max_size=(largest, largest),
      min_neighbor_number=neighbours,
    )  # fmt: skip
    # The cascade's square ends on the lower lip: 12 % more reaches the chin (against a face mesh on a photograph).
    return [
      np.array([d["c"], d["r"], d["c"] + d["width"], d["r"] + 1.12 * d["height"]], float)
      for d in sorted(found, key=lambda d: (d["r"], d["c"], d["width"]))
    ]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
  """Intersection over union of two boxes."""
  width, height = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
  inside = width * height
  return inside / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside)


def _dominant(tracks: list[dict[int, np.ndarray]], count: int, shape: tuple[int, ...]) -> FaceTrack:
  """One face a frame: the tracks in order of duration x width, each taking the frames that are still free."""
  pieces = [piece for track in tracks for piece in paths(track)]
  size = np.array([len(path) * (path[:, 2] - path[:, 0]).mean() for _, path in pieces])
  box, owner = np.full((count, 4), np.nan, np.float32), np.full(count, -1)
  for number, piece in enumerate(np.argsort(-size, stable=True)):
    span, path = pieces[piece]
    free = owner[span] < 0
    box[span[free]], owner[span[free]] = path[free] / np.tile([shape[1], shape[0]], 2), number
  return FaceTrack(box=box, track=owner)


def paths(boxes: Mapping[int, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
  """Frame -> box, with holes, as unbroken smooth stretches: frames [n] and boxes [n, 4] of each."""
  found = []
  times = np.array(sorted(boxes))
  for part in np.split(times, np.flatnonzero(np.diff(times) > BRIDGED + 1) + 1):
    if len(part) >= 3:  # fewer are a flicker of the detector
      span = np.arange(part[0], part[-1] + 1)
      padded = np.pad([boxes[t] for t in part], ((2, 2), (0, 0)), "edge")
      median = np.median(np.lib.stride_tricks.sliding_window_view(padded, 5, axis=0), -1)
      found.append((span, smooth(np.stack([np.interp(span, part, column) for column in median.T], 1), sigma=3)))
  return found


def smooth(path: np.ndarray, *, sigma: float) -> np.ndarray:
  """Gaussian smoothing over axis 0 of [n, d], `sigma` in frames; the ends are reflected oddly: a drift stays."""
  reach = int(3 * sigma)
  kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
  padded = np.pad(path, ((reach, reach), (0, 0)), "reflect", reflect_type="odd")
  return np.stack([np.convolve(column, kernel / kernel.sum(), "valid") for column in padded.T], 1)


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
