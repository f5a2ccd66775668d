"""The face mesh: 468 points of one face (Kartynnik et al. 2019, arXiv 1907.06724).

The input follows MediaPipe's `modules/face_landmark` graphs: a square of 1.5 times the longer side of the face, rotated
so that the eyes are level. A rotation below 0.15 rad is omitted, because cutting out a square that is not rotated takes
half the time.
"""

from __future__ import annotations

import numpy as np

from synclipmae_jax.data.faces.litert import network
from synclipmae_jax.data.faces.window import Window, cut_window

_ROOM = 1.5  # side of the window, relative to the longer side of the face
_LEVEL = 0.15  # radians; a rotation error of this size moves points by 1.1 % of the face size (measured)
_EYES = [33, 263]  # outer corners; the one further left in an upright picture is first


def find_points(image: np.ndarray, window: Window) -> tuple[np.ndarray, float]:
  """The mesh of the face in a window of an image, uint8 [H, W, 3].

  Returns points float32 [468, 2] in pixels of the image, and the confidence in [0, 1] that this is a face.
  """
  run = network("face_landmark.tflite")
  points, logit = run(cut_window(image, window, size=run.size).astype(np.float32) / 255)
  confidence = 1 / (1 + np.exp(-np.clip(float(logit.item()), -50, 50)))
  return window.to_picture(points.reshape(468, 3)[:, :2] / run.size), float(confidence)


def window_around(points: np.ndarray, *, eyes: np.ndarray | None = None) -> Window:
  """The window around a face with the outline `points` [n, 2], pixels.

  `eyes` [2, 2] are the positions of both eyes. Without them, `points` must be the 468 points of the mesh.
  """
  left, right = points[_EYES] if eyes is None else eyes
  angle = float(np.arctan2(*(right - left)[::-1]))
  angle = 0.0 if abs(angle) < _LEVEL else angle
  cos, sin = np.cos(angle), np.sin(angle)
  turn = np.array([[cos, -sin], [sin, cos]])
  low, high = (points @ turn).min(0), (points @ turn).max(0)
  return Window(centre=turn @ (low + high) / 2, side=max(1.0, _ROOM * float((high - low).max())), angle=angle)
