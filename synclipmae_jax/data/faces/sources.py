"""The faces of a file, in one pass and constant memory.

A `FaceSource` is shown the frames in order and returns the tracks of all faces, block by block. A face that appears at
the last position of an earlier face gets the same number; all others get a new number. `dominant` selects one face per
frame.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from synclipmae_jax.data.faces import litert
from synclipmae_jax.data.faces.cascade import Cascade
from synclipmae_jax.data.faces.follower import LOOKAHEAD, MOST, SAME, Detector, Follower, Track, paths
from synclipmae_jax.data.faces.mediapipe import MediaPipe
from synclipmae_jax.data.faces.sidecars import read_sidecar
from synclipmae_jax.data.faces.track import FaceTrack, centred, joined, nowhere, overlap
from synclipmae_jax.data.media import video
from synclipmae_jax.data.media.video import Frame, MediaInfo
from synclipmae_jax.types import FPS, InputError

_DETECTORS: Mapping[str, Callable[[], Detector]] = {"mediapipe": MediaPipe, "skimage_lbp": Cascade}
BACKENDS = ("precomputed", *_DETECTORS, "full_frame")
SHORT_SIDE = {"mediapipe": 360}  # short side of the frames that a backend needs, pixels; others: 256
_BLOCK = 250  # frames


class FaceSource(Protocol):
  def see(self, frame: Frame) -> None:
    """Must be called with every frame, in order."""
    ...

  def take(self, start: int, stop: int) -> dict[int, FaceTrack]:
    """The tracks of the faces, by number, with one row per frame of [start, stop).

    Blocks must be contiguous. All frames before `stop` + LOOKAHEAD that exist must have been seen.
    """
    ...


def search_stride(backend: str) -> int:
  """Frames between searches for a face; the boxes between them are interpolated."""
  return getattr(_DETECTORS.get(backend), "stride", 1)


@functools.cache
def detector() -> tuple[str, tuple[str, ...]]:
  """The name of the default detector, and a note for the user if it is only the fallback."""
  try:
    litert.check()
  except litert.Unavailable as error:
    return "skimage_lbp", (f"{error}: files without .faces.npz are searched with skimage_lbp, which finds fewer faces",)
  return "mediapipe", ()


def open_faces(
  path: str | os.PathLike, backend: str, *, info: MediaInfo, sidecar: Path | None = None, max_stride: int = 1
) -> tuple[FaceSource, tuple[str, ...]]:
  """The source for `backend` (`auto` or one of `BACKENDS`), and notes for the user.

  `auto` uses `sidecar` (default: the `.faces.npz` beside the file) if it exists and is valid, and `detector` otherwise.
  A detector searches near a face that hardly moves every `max_stride` frames (`Follower`). Raises InputError if the
  backend is unknown, or was requested by name and is not available.
  """
  sidecar = sidecar or Path(os.path.splitext(path)[0] + ".faces.npz")
  notes: tuple[str, ...] = ()
  if backend == "auto":
    if os.path.exists(sidecar):
      try:
        return _Sidecar(path, sidecar, info), ()
      except InputError as error:
        notes = (f"{error}: faces were looked for instead",)
    backend, more = detector()
    notes += more
  if backend in _DETECTORS:
    return _Followed(Follower(_DETECTORS[backend](), max_stride=max_stride)), notes
  match backend:
    case "full_frame":
      return _FullFrame(info), ()
    case "precomputed":
      return _Sidecar(path, sidecar, info), ()
  raise InputError(f"unknown face backend {backend!r}: choose one of auto, {', '.join(BACKENDS)}")


Speakers = Callable[[Sequence[np.ndarray], Sequence[FaceTrack], int], np.ndarray]


def dominant(source: FaceSource, frames: Iterable[Frame], *, speakers: Speakers | None = None) -> FaceTrack:
  """Shows all frames to `source` and selects one face per frame.

  The tracks are split at gaps. The parts are used in order of duration x width, and each takes the frames that are not
  yet taken. In `track` every part has its own number.

  `speakers(times, rows, count)` is asked where several faces are visible at a time: of the frames of each face and
  their rows, it returns for each of `count` frames the face that must be taken, -1 where any may.
  """
  times: dict[int, list[np.ndarray]] = {}  # by face, a list over blocks: the frames in which it is visible
  rows: dict[int, list[FaceTrack]] = {}  # the rows of these frames
  start = seen = 0

  def take(stop: int) -> None:
    nonlocal start
    for number, track in source.take(start, stop).items():
      shown = np.flatnonzero(track.track >= 0)
      times.setdefault(number, []).append(start + shown)
      rows.setdefault(number, []).append(track[shown])
    start = stop

  for frame in frames:
    source.see(frame)
    seen = frame.index + 1
    if seen == start + _BLOCK + LOOKAHEAD:
      take(start + _BLOCK)
  while start < seen:
    take(min(start + _BLOCK, seen))
  shown = [np.concatenate(face) for face in times.values()]
  speaking = np.full(seen, -1)
  if speakers and np.bincount(np.concatenate([[], *shown]).astype(int)).max(initial=0) > 1:
    speaking = speakers(shown, [joined(face) for face in rows.values()], seen)
  return _longest(seen, shown, [*itertools.chain(*rows.values())], speaking)


def _longest(count: int, times: list[np.ndarray], rows: list[FaceTrack], speaking: np.ndarray) -> FaceTrack:
  """The result of `dominant` for `count` frames.

  Args:
    times: the frames of each face.
    rows: the rows of these frames, in the same order.
    speaking: int [count], the face that must be taken, -1 where any may.
  """
  like = rows[0] if rows else nowhere(0)
  known = joined([*rows, nowhere(1, landmarks=like.count, mouth=like.mouth, schema=like.schema)])
  bounds, end, face_of = [], 0, np.repeat(np.arange(len(times)), [*map(len, times)])
  for face in times:
    cuts = [0, *(np.flatnonzero(np.diff(face) > 1) + 1).tolist(), len(face)]
    bounds += [(end + a, end + b) for a, b in itertools.pairwise(cuts) if a < b]
    end += len(face)
  width = known.box[:, 2] - known.box[:, 0]
  frame = np.concatenate([*times, [0]]).astype(int)
  row, owner = np.full(count, -1), np.full(count, -1)  # -1 is the last row of `known`: no face
  for number, (a, b) in enumerate(sorted(bounds, key=lambda bound: -width[slice(*bound)].sum())):
    there = frame[a:b]
    mine = np.arange(a, b)[(owner[there] < 0) & np.isin(speaking[there], (-1, face_of[a]))]
    row[frame[mine]], owner[frame[mine]] = mine, number
  return dataclasses.replace(known[row], track=owner)


class _FullFrame:
  """The crop is the largest centred square: for videos that are already cropped."""

  def __init__(self, info: MediaInfo):
    self._info = info

  def see(self, frame: Frame) -> None:
    pass

  def take(self, start: int, stop: int) -> dict[int, FaceTrack]:
    return {0: centred(stop - start, info=self._info)}


class _Sidecar:
  """The face of a sidecar, with one row per source frame."""

  def __init__(self, path: str | os.PathLike, sidecar: Path, info: MediaInfo):
    if not os.path.exists(sidecar):
      raise InputError("it has no .faces.npz beside it")
    self._rows, self._source = read_sidecar(sidecar, info=info), {}
    with video.open_media(path) as container:  # count the packets, because headers can be wrong
      count = sum(packet.size > 0 for packet in container.demux(video.video_stream(container)))
    if not len(self._rows.box) or abs(len(self._rows.box) - count) > info.fps / FPS:
      raise InputError(f"its face file has {len(self._rows.box)} rows, the video {count} frames")

  def see(self, frame: Frame) -> None:
    self._source[frame.index] = min(frame.source, len(self._rows.box) - 1)

  def take(self, start: int, stop: int) -> dict[int, FaceTrack]:
    return {0: self._rows[np.array([self._source.pop(t) for t in range(start, stop)])]}


class _Followed:
  """The faces found by a detector."""

  def __init__(self, follower: Follower):
    self._follower = follower
    self._seen = -1
    self._number: dict[Track, int] = {}
    self._place: list[tuple[int, np.ndarray]] = []  # of every face: the last frame that was returned, and its box

  def see(self, frame: Frame) -> None:
    self._seen = frame.index
    self._follower.see(frame.index, frame.image)

  def take(self, start: int, stop: int) -> dict[int, FaceTrack]:
    if self._seen < stop + LOOKAHEAD - 1:  # the file has ended
      self._follower.finish()
    area = lambda path: np.nansum((path[:, 2] - path[:, 0]) * (path[:, 3] - path[:, 1]))
    shown = [(path, track) for track in self._follower.tracks for path in [_path(track, start, stop)]]
    largest = sorted((item for item in shown if area(item[0]) > 0), key=lambda item: -area(item[0]))[:MOST]
    found: dict[int, FaceTrack] = {}
    for path, track in sorted(largest, key=lambda item: np.isfinite(item[0][:, 0]).argmax()):
      times = np.flatnonzero(np.isfinite(path[:, 0]))
      if track not in self._number:
        self._number[track] = self._same_place(path[times[0]], start + times[0])
      number = self._number[track]
      found[number] = self._rows(track, path, start, found.get(number))
      self._place[number] = (start + times[-1], path[times[-1]])
    self._follower.forget(stop - LOOKAHEAD)
    self._number = {track: self._number[track] for track in self._follower.tracks if track in self._number}
    return dict(sorted(found.items()))

  def _rows(self, track: Track, path: np.ndarray, start: int, before: FaceTrack | None) -> FaceTrack:
    """The rows of a face in a block: the detections of `track` along `path`, added to the rows `before`."""
    look, count = self._follower.look, len(path)
    if before is None:
      before = nowhere(count, landmarks=len(look.landmarks), mouth=look.mouth, schema=look.schema)
    for row in np.flatnonzero(np.isfinite(path[:, 0])).tolist():
      before.box[row], before.track[row] = path[row], 0
      if (face := track.faces.get(start + row)) is not None:
        before.confidence[row] = face.confidence
        if before.landmarks is not None:
          before.landmarks[row] = face.landmarks[list(look.landmarks)]
    return before

  def _same_place(self, box: np.ndarray, t: int) -> int:
    """The number of the face that was last seen at this position, or a new number."""
    for number in sorted(range(len(self._place)), key=lambda n: -self._place[n][0]):
      last, place = self._place[number]
      if last < t and overlap(place, box) > SAME:
        return number
    self._place.append((t, box))
    return len(self._place) - 1


def _path(track: Track, start: int, stop: int) -> np.ndarray:
  """The boxes of a track, float32 [stop - start, 4], in fractions of the picture; nan: not visible."""
  box = np.full((stop - start, 4), np.nan, np.float32)
  for span, path in paths(track.faces):
    inside = (span >= start) & (span < stop)
    box[span[inside] - start] = path[inside]
  return box
