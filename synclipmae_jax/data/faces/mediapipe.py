"""Face tracking with MediaPipe's networks: BlazeFace detects faces, the face mesh follows them from frame to frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from synclipmae_jax.data.faces import litert
from synclipmae_jax.data.faces.blazeface import find_faces
from synclipmae_jax.data.faces.face_mesh import find_points, window_around
from synclipmae_jax.data.faces.follower import MOST, SAME, Face
from synclipmae_jax.data.faces.track import overlap
from synclipmae_jax.data.faces.window import Window

_MIN_CONFIDENCE = 0.5  # as in MediaPipe
_EYES = (2, 3)  # indices of the points of a detection
_BROWS = [70, 63, 105, 66, 107, 336, 296, 334, 293, 300]  # upper edge
# Margins of the box above the brows and below the chin, relative to the distance from brows to chin. They reproduce the
# boxes of `synthtalk.geometry.face_boxes`: for 20 rendered people the side of the crop is 1.01 times that of SynthTalk
# (standard deviation 0.03) and the centres differ by 1.5 % of the side.
_ABOVE, _BELOW = 0.12, 0.04


class MediaPipe:
  """A `follower.Detector`. Raises `litert.Unavailable` if the networks cannot be run."""

  stride, idle_stride, everywhere_stride = 1, 10, 25
  # The mesh points closest to the 68 points of iBUG 300-W, in the same order: jaw, brows, nose, eyes, lips.
  landmarks: tuple[int, ...] = (
    162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389, 70, 63, 105, 66, 107, 336, 296,
    334, 293, 300, 168, 197, 5, 4, 75, 97, 2, 326, 305, 33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380, 61,
    39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87,
  )  # fmt: skip
  mouth: tuple[int, ...] = tuple(range(48, 68))
  schema = "mediapipe68"

  def __init__(self):
    litert.check()

  def everywhere(self, image: np.ndarray, *, known: Sequence[Face], closely: bool) -> Iterator[Face]:
    scale = _size(image)
    found = find_faces(image, closely=closely) / scale
    new = [points for points in found if all(overlap(points[:2].ravel(), face.box) < SAME for face in known)]
    for points in new[: 2 * MOST]:
      pixels = points * scale
      face = self._look(image, window_around(pixels[:2], eyes=pixels[list(_EYES)]))
      if face is not None and (face := self.near(image, face)) is not None:  # refined
        if not self._upside_down(image, face):
          yield face

  def near(self, image: np.ndarray, face: Face) -> Face | None:
    return self._look(image, window_around(face.landmarks * _size(image)))

  def _upside_down(self, image: np.ndarray, face: Face) -> bool:
    """Whether the confidence is higher with the window rotated by 180 degrees.

    Both networks often report an upright face where a face is upside down, with lower confidence.
    """
    window = window_around(face.landmarks * _size(image))
    _, confidence = find_points(image, dataclasses.replace(window, angle=window.angle + np.pi))
    return confidence > face.confidence

  def _look(self, image: np.ndarray, window: Window) -> Face | None:
    points, confidence = find_points(image, window)
    if confidence < _MIN_CONFIDENCE:
      return None
    (x0, _), (x1, chin), brow = points.min(0), points.max(0), points[_BROWS, 1].min()
    height = chin - brow
    box = np.array([x0, brow - _ABOVE * height, x1, chin + _BELOW * height])
    size = _size(image)
    return Face(box=box / np.tile(size, 2), confidence=confidence, landmarks=points / size)


def _size(image: np.ndarray) -> np.ndarray:
  """Width and height, float32 [2]."""
  return np.array(image.shape[1::-1], np.float32)
