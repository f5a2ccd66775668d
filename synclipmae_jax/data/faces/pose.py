"""Head pose from the landmarks of the face mesh.

A rigid head is fitted under scaled orthography (DeMenthon and Davis 1995, POS): the affine map from the head to the
picture by least squares, then the nearest rotation. Perspective is neglected: at an arm's length that is 2 degrees.
"""

from __future__ import annotations

import numpy as np

SCHEMA = "mediapipe68"  # of the landmarks that the head below belongs to
# Points that speech does not move: ears, bridge and base of the nose, corners of the eyes.
_RIGID = [0, 1, 2, 14, 15, 16, 27, 28, 29, 30, 31, 33, 35, 36, 39, 42, 45]
# The head: x to the right, y down, z away from the camera. It is the mean of the mesh's own points over 13 GRID clips
# of 11 people who look into the camera, mirrored: yaw and roll are 0 by symmetry; their pitch varies by 3 degrees.
_HEAD = np.array([
  [-27.5, -11.7, 13.8], [-27.5, 0.9, 20.2], [-27.1, 7.2, 20.6], [27.1, 7.2, 20.6], [27.5, 0.9, 20.2],
  [27.5, -11.7, 13.8], [0.0, -9.0, -10.8], [0.0, -2.5, -14.4], [0.0, 3.5, -18.7], [0.0, 7.3, -19.6],
  [-5.2, 11.3, -10.9], [0.0, 13.0, -12.3], [5.2, 11.3, -10.9], [-18.3, -7.3, -1.9], [-7.1, -6.5, -4.0],
  [7.1, -6.5, -4.0], [18.3, -7.3, -1.9],
])  # fmt: skip
_HEAD -= _HEAD.mean(0)


def head_pose(landmarks: np.ndarray) -> np.ndarray:
  """Yaw, pitch and roll, float32 [n, 3] in degrees, of landmarks [n, 68, 2] in pixels; nan where they are unknown.

  Yaw is positive where the face turns to the right of the picture, pitch where it looks up, roll where it tilts
  clockwise.
  """
  (left, _, right), known = _fit(landmarks)
  across, down = np.swapaxes(left @ right, 0, 1)  # rows of the rotation: the axes of the picture, seen by the head
  yaw = np.arctan2(-across[:, 2], np.cross(across, down)[:, 2])
  pitch, roll = np.arcsin(np.clip(down[:, 2], -1, 1)), np.arctan2(down[:, 0], down[:, 1])
  pose = np.degrees(np.stack([yaw, pitch, roll], 1))
  return np.where(known[:, None], pose, np.nan).astype(np.float32)


def head_scale(landmarks: np.ndarray) -> np.ndarray:
  """Pixels per unit of the head (its ears are 55 units apart), float32 [n], of landmarks as above; the pose is out."""
  (_, values, _), known = _fit(landmarks)
  return np.where(known, values.mean(1), np.nan).astype(np.float32)


def _fit(landmarks: np.ndarray):
  """((left, values, right) of the affine map [n, 2, 3] from the head to the picture, bool [n] where it is known)."""
  points = landmarks[:, _RIGID].astype(float)
  known = np.isfinite(points).all((1, 2))
  points = np.where(known[:, None, None], points, _HEAD[:, :2])
  affine = np.swapaxes(np.linalg.pinv(_HEAD) @ (points - points.mean(1, keepdims=True)), 1, 2)
  return np.linalg.svd(affine, full_matrices=False), known
