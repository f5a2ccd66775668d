"""Every face of a file at once, in one pass and constant memory (`data.faces.backends` follows one face a scene).

A `FaceSource` is shown the pictures one by one and hands out, block by block, the boxes of the faces in it. A face that
appears where another was last seen is taken to be the same; otherwise it is a new one: after a cut, faces are told
apart by their place alone.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Protocol

import av
import numpy as np

from synclipmae_jax.data.faces import backends as faces
from synclipmae_jax.data.faces.backends import FaceTrack
from synclipmae_jax.data.media import video
from synclipmae_jax.data.media.video import Frame, MediaInfo
from synclipmae_jax.types import FPS, InputError

LOOKAHEAD = 25  # frames beyond a block that a source may want to see: the reach of bridging and smoothing
_LOOK = 256  # pixels of the short side, as in `data.clips`: a face is looked for in as many
_MOST = 6  # faces of a block that are handed out, the largest
_SAME_PLACE = 0.3  # intersection over union


class FaceSource(Protocol):
  def see(self, frame: Frame) -> None:
    """Is called with every frame, in order."""
    ...

  def take(self, start: int, stop: int) -> dict[int, FaceTrack]:
    """Faces by number, with their rows for frames [start, stop); blocks follow one another, and all frames before
    `stop` + LOOKAHEAD, as far as there are any, have been seen."""
    ...


def open_faces(path: str | os.PathLike, backend: str, *, info: MediaInfo) -> tuple[FaceSource, tuple[str, ...]]:
  """The source for `backend` (`auto` or one of `faces.BACKENDS`), and notes for the user.

  `auto` takes the `.faces.npz` beside the file where it is there and fits. Raises InputError for an unknown backend,
  and where `precomputed` is asked for and cannot be had.
  """
  sidecar = Path(os.path.splitext(path)[0] + ".faces.npz")
  match backend:
    case "full_frame":
      return _FullFrame(info), ()
    case "skimage_lbp":
      return _Cascade(), ()
    case "precomputed":
      return _Sidecar(path, sidecar, info), ()
    case "auto":
      if not os.path.exists(sidecar):
        return _Cascade(), ()
      try:
        return _Sidecar(path, sidecar, info), ()
      except InputError as error:
        return _Cascade(), (f"{error}: faces were looked for instead",)
  raise InputError(f"unknown face backend {backend!r}: choose one of auto, {', '.join(faces.BACKENDS)}")


class _FullFrame:
  def __init__(self, info: MediaInfo):
    self._info = info

  def see(self, frame: Frame) -> None:
    pass

  def take(self, start: int, stop: int) -> dict[int, FaceTrack]:
    return {0: faces.centred(stop - start, info=self._info)}


class _Sidecar:
  """One face, by source frame."""

  def __init__(self, path: str | os.PathLike, sidecar: Path, info: MediaInfo):
    if not os.path.exists(sidecar):
      raise InputError("it has no .faces.npz beside it")
    self._rows, self._source = faces.read_sidecar(sidecar, info=info), {}
    with video.open_media(path) as container:  # packets are counted, not decoded: headers err
      count = sum(packet.size > 0 for packet in container.demux(video.video_stream(container)))
    if not len(self._rows.box) or abs(len(self._rows.box) - count) > info.fps / FPS:
      raise InputError(f"its face file has {len(self._rows.box)} rows, the video {count} frames")

  def see(self, frame: Frame) -> None:
    self._source[frame.index] = min(frame.source, len(self._rows.box) - 1)

  def take(self, start: int, stop: int) -> dict[int, FaceTrack]:
    return {0: self._rows[np.array([self._source.pop(t) for t in range(start, stop)])]}


class _Cascade:
  """Frontal faces, by the cascade of `faces.Follower`; boxes as that of `faces.skimage_lbp`."""

  def __init__(self):
    self._follower, self._scaler = faces.Follower(), video.Scaler()
    self._size = (1, 1)  # of the pictures looked at: width, height
    self._seen = -1
    self._number: dict[faces.Track, int] = {}
    self._place: list[tuple[int, np.ndarray]] = []  # of every face: the last frame it was handed out for, and its box

  def see(self, frame: Frame) -> None:
    height, width = frame.image.shape[:2]
    scale = min(1.0, _LOOK / min(width, height))
    self._size, self._seen = (round(width * scale), round(height * scale)), frame.index
    self._follower.see(frame.index, functools.partial(self._grey, frame.image))

  def _grey(self, image: np.ndarray) -> np.ndarray:
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return self._scaler(picture, width=self._size[0], height=self._size[1], pixels="gray").to_ndarray()

  def take(self, start: int, stop: int) -> dict[int, FaceTrack]:
    if self._seen < stop + LOOKAHEAD - 1:  # the file has ended
      self._follower.finish()
    area = lambda path: np.nansum((path[:, 2] - path[:, 0]) * (path[:, 3] - path[:, 1]))
    shown = [(path, track) for track in self._follower.tracks for path in [self._path(track, start, stop)]]
    largest = sorted((item for item in shown if area(item[0]) > 0), key=lambda item: -area(item[0]))[:_MOST]
    found: dict[int, np.ndarray] = {}
    for path, track in sorted(largest, key=lambda item: np.isfinite(item[0][:, 0]).argmax()):
      times = np.flatnonzero(np.isfinite(path[:, 0]))
      if track not in self._number:
        self._number[track] = self._same_place(path[times[0]], start + times[0])
      number = self._number[track]
      found[number] = np.where(np.isfinite(path), path, found.get(number, np.nan))
      self._place[number] = (start + times[-1], path[times[-1]])
    self._forget(stop)
    none = lambda path: np.where(np.isfinite(path[:, 0]), 0, -1)
    return {number: FaceTrack(box=path, track=none(path)) for number, path in sorted(found.items())}

  def _path(self, track: faces.Track, start: int, stop: int) -> np.ndarray:
    """float32 [stop - start, 4] in fractions of the picture; nan where the track is not."""
    box = np.full((stop - start, 4), np.nan, np.float32)
    for span, path in faces.paths(track.boxes):
      inside = (span >= start) & (span < stop)
      box[span[inside] - start] = path[inside] / np.tile(self._size, 2)
    return box

  def _same_place(self, box: np.ndarray, t: int) -> int:
    """The face that was last seen there, the latest of them, or a new one."""
    for number in sorted(range(len(self._place)), key=lambda n: -self._place[n][0]):
      last, place = self._place[number]
      if last < t and faces.overlap(place, box) > _SAME_PLACE:
        return number
    self._place.append((t, box))
    return len(self._place) - 1

  def _forget(self, stop: int) -> None:
    """What lies further back than smoothing reaches."""
    for track in self._follower.tracks:
      track.boxes = {t: box for t, box in track.boxes.items() if t >= stop - LOOKAHEAD or t == track.last}
    self._follower.tracks = [track for track in self._follower.tracks if track.last >= stop - LOOKAHEAD]
    self._number = {track: self._number[track] for track in self._follower.tracks if track in self._number}
