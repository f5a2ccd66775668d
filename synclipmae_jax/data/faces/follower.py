"""Follows every face through a video, with any detector."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from synclipmae_jax.data.faces.track import overlap, shared, smooth

LOOKAHEAD = 25  # frames after a block that are needed for its tracks: tracking backwards, bridging, smoothing
BRIDGED = 8  # longest gap, in frames, that is interpolated
MOST = 6  # largest number of faces that are followed at a time
_CHANGE = 10.0  # mean change of the pixels, of 255, above which a scene may have begun
_TAKEN = 0.5  # two tracks follow the same face above this share of the smaller box
_LARGER = 1.5  # a face replaces the smallest of MOST faces if its area is this many times larger
SAME = 0.3  # intersection over union above which two boxes are the same face
_STILL = 0.85  # intersection over union of the boxes of two searches above which a face hardly moved between them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Face:
  """A face in one picture, in fractions of it."""

  box: np.ndarray  # float [4] x0, y0, x1, y1, brow to chin and ear to ear
  confidence: float
  landmarks: np.ndarray | None = None  # float32 [K, 2]: all landmarks of the detector


class Detector(Protocol):
  """Finds faces in images, uint8 [H, W, 3]."""

  stride: int  # frames between searches near known faces that move
  idle_stride: int  # frames between searches of the whole image while no face is followed; a multiple of `stride`
  everywhere_stride: int  # frames between searches of the whole image while faces are followed
  landmarks: tuple[int, ...]  # indices of the landmarks of a `Face` that are returned to users
  mouth: tuple[int, ...]  # which of those are on the lips
  schema: str  # name of this set of landmarks

  def everywhere(self, image: np.ndarray, *, known: Sequence[Face], closely: bool) -> Iterable[Face]:
    """All faces, largest first. Faces that overlap `known` may be omitted. `closely`: also search for small faces."""
    ...

  def near(self, image: np.ndarray, face: Face) -> Face | None:
    """The same face as `face`, which was found in an image shortly before or after; None if it is not found."""
    ...


class Track:
  """The detections of one face, by frame. `stride`: frames from the last one to the next search."""

  def __init__(self, t: int, face: Face, *, stride: int):
    self.faces, self.last, self.stride = {t: face}, t, stride

  def add(self, t: int, face: Face) -> None:
    self.faces[t] = face
    self.last = max(self.last, t)

  def between(self, t: int) -> bool:
    """Whether no search was due since the last detection."""
    return self.last < t < self.last + self.stride

  def interpolate(self, t: int, face: Face) -> None:
    """Adds, for the frames from the last detection to `face` at `t`, what lies between the two."""
    before, since = self.faces[self.last], self.last
    for s in range(since + 1, t):
      self.faces[s] = _between(before, face, (s - since) / (t - since))


class Follower:
  """Is shown the images of a video in order, and collects the `tracks` of the faces.

  It searches near known faces every `look.stride` frames. It searches the whole image at longer intervals and when the
  image changes suddenly. A new face is tracked backwards, at most LOOKAHEAD frames and not beyond a cut. If a face is
  lost, the frames since the previous search are searched. The first and last frame of a track are therefore exact.

  A face that hardly moves is searched less often, at most every `max_stride` frames; between two searches its box and
  landmarks are interpolated. If it has moved, the frames since the previous search are searched.
  """

  def __init__(self, look: Detector, *, max_stride: int = 1):
    self.tracks: list[Track] = []
    self.look = look
    self._max_stride = max(look.stride, max_stride)
    self._followed: list[Track] = []
    self._recent: collections.deque[tuple[int, np.ndarray]] = collections.deque(maxlen=LOOKAHEAD)
    self._thumbnail, self._cut = np.zeros(0), 0  # of the last image; first frame of the scene

  def see(self, t: int, image: np.ndarray) -> None:
    look = self.look
    self._recent.append((t, image))
    if self._changed(image):
      self._cut = t
    if t % look.stride:
      return
    self._followed = [track for track in self._followed if t - track.last <= BRIDGED + look.stride]
    cut = t - self._cut < look.stride
    if cut:  # detections first: positions of faces in the previous scene are not reliable
      for track in self._followed:
        self._follow(track, [(s, image) for s, image in self._recent if track.last < s < self._cut])
      self._look_everywhere(t, image)
    due = cut or t % look.everywhere_stride == 0
    for track in list(self._followed):
      if track.last < t and (due or t >= track.last + track.stride):
        self._look_near(track, t, image)
    if not cut and t % (look.everywhere_stride if self._followed else look.idle_stride) == 0:
      self._look_everywhere(t, image)

  def finish(self) -> None:
    """Call after the last frame: extends the tracks to it."""
    for track in self._followed if self._recent else ():
      if self._recent[-1][0] - track.last < track.stride:
        self._follow(track, [(s, image) for s, image in self._recent if s > track.last])

  def forget(self, before: int) -> None:
    """Drops detections before that frame."""
    for track in self.tracks:
      track.faces = {t: face for t, face in track.faces.items() if t >= before or t == track.last}
    self.tracks = [track for track in self.tracks if track.last >= before or track in self._followed]

  def _look_near(self, track: Track, t: int, image: np.ndarray) -> None:
    face = self.look.near(image, track.faces[track.last])
    if face is not None and not self._taken(t, face, besides=track):
      self._found(track, t, face)
      return
    if face is not None:  # another track follows this face
      self._followed.remove(track)
    if t - track.last <= track.stride:  # it was not missed before
      self._follow(track, [(s, image) for s, image in self._recent if track.last < s < t])
    track.stride = self.look.stride

  def _look_everywhere(self, t: int, image: np.ndarray) -> None:
    known = [track.faces[t] for track in self._followed if t in track.faces]
    closely = t % (4 * self.look.everywhere_stride) == 0
    for face in self.look.everywhere(image, known=known, closely=closely):
      areas = [_area(track.faces[track.last].box) for track in self._followed]
      if len(areas) >= MOST and _area(face.box) < _LARGER * min(areas):
        break
      near = [track for track in self._followed if overlap(face.box, track.faces[track.last].box) > SAME]
      if not near:
        track = Track(t, face, stride=self.look.stride)
        self.tracks.append(track)
        self._followed.append(track)
        self._follow(track, [(s, image) for s, image in reversed(self._recent) if self._cut <= s < t])
        if len(areas) >= MOST:
          del self._followed[int(np.argmin(areas))]
      elif near[0].last < t:
        self._found(near[0], t, face)

  def _found(self, track: Track, t: int, face: Face) -> None:
    """Adds a detection. After a loss it tracks backwards through the gap; see the class for a face that moved."""
    stride, before = self.look.stride, track.last
    if t - before > track.stride:
      first = max(before + 1, self._cut)
      self._follow(track, [(s, image) for s, image in reversed(self._recent) if first <= s < t], face)
    elif overlap(face.box, track.faces[before].box) > _STILL:
      if self._max_stride > stride:
        track.interpolate(t, face)
      track.stride = min(self._max_stride, track.stride + stride)
    else:
      if t - before > stride:
        self._follow(track, [(s, image) for s, image in self._recent if before < s < t])
      track.stride = stride
    track.add(t, face)

  def _follow(self, track: Track, pictures: Iterable[tuple[int, np.ndarray]], face: Face | None = None) -> None:
    """Extends `track` through `pictures`, beginning near `face` or its last detection, until the face is not found."""
    face = face or track.faces[track.last]
    for t, image in pictures:
      face = self.look.near(image, face)
      if face is None or self._taken(t, face, besides=track):
        return
      track.add(t, face)

  def _taken(self, t: int, face: Face, *, besides: Track) -> bool:
    """Whether another track has this face."""
    others = (track for track in self.tracks if track is not besides and (t in track.faces or track.between(t)))
    return any(shared(face.box, track.faces.get(t, track.faces[track.last]).box) > _TAKEN for track in others)

  def _changed(self, image: np.ndarray) -> bool:
    step = max(1, min(image.shape[:2]) // 32)
    before, self._thumbnail = self._thumbnail, image[::step, ::step].astype(np.float32)
    return before.shape == self._thumbnail.shape and bool(np.abs(self._thumbnail - before).mean() > _CHANGE)


def _between(a: Face, b: Face, part: float) -> Face:
  mix = lambda x, y: x + part * (y - x)
  marks = None if a.landmarks is None or b.landmarks is None else mix(a.landmarks, b.landmarks).astype(np.float32)
  return Face(box=mix(a.box, b.box), confidence=min(a.confidence, b.confidence), landmarks=marks)


def _area(box: np.ndarray) -> float:
  return float((box[2:] - box[:2]).prod())


def paths(faces: Mapping[int, Face]) -> list[tuple[np.ndarray, np.ndarray]]:
  """The smoothed boxes of a track, split at gaps: frames [n] and boxes [n, 4] of each part.

  The smoothing kernel is symmetric in time, so that boxes do not lag.
  """
  found = []
  times = np.array(sorted(faces))
  for part in np.split(times, np.flatnonzero(np.diff(times) > BRIDGED + 1) + 1):
    if len(part) >= 3:  # shorter tracks are mostly false detections
      span = np.arange(part[0], part[-1] + 1)
      padded = np.pad([faces[t].box for t in part.tolist()], ((2, 2), (0, 0)), "edge")
      median = np.median(np.lib.stride_tricks.sliding_window_view(padded, 5, axis=0), -1)
      found.append((span, smooth(np.stack([np.interp(span, part, column) for column in median.T], 1), sigma=3)))
  return found
