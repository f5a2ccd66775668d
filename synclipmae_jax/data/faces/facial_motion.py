"""Jaw, lips, lids, brows and pose from the landmarks of the face mesh: what footage tells of its motion without truth.

Lengths are divided by the size of the head, so that the distance of the camera is not in them; foreshortening is. The
landmarks are themselves estimates.
"""

from __future__ import annotations

import numpy as np

from synclipmae_jax.data.faces.pose import head_pose, head_scale

# With the factor that each belongs to. Left is left in the picture.
NAMES = (
  "mouth/jaw", "mouth/opening", "mouth/width", "ambient/blink_left", "ambient/blink_right", "ambient/brow",
  "ambient/yaw", "ambient/pitch", "ambient/roll",
)  # fmt: skip


def facial_motion(landmarks: np.ndarray) -> np.ndarray:
  """float32 [n, NAMES] of landmarks [n, 68, 2] in pixels, or fractions of a square picture; nan where they are unknown.

  jaw: from the base of the nose to the chin; opening: between the lips; width: of the mouth; blink: -(opening of the
  lids / width of the eye); brow: from the eye to the brow; angles in degrees (`pose.head_pose`).
  """
  mean = lambda *indices: landmarks[:, list(indices)].mean(axis=1)
  distance = lambda a, b: np.linalg.norm(a - b, axis=-1)
  scale = head_scale(landmarks)
  lids = lambda upper, lower, corners: -distance(mean(*upper), mean(*lower)) / distance(*map(mean, corners))
  eyes = mean(36, 39), mean(42, 45)
  brows = mean(*range(17, 22)), mean(*range(22, 27))
  pose = head_pose(landmarks)
  columns = [
    distance(mean(33), mean(8)) / scale,
    distance(mean(61, 62, 63), mean(65, 66, 67)) / scale,
    distance(mean(48), mean(54)) / scale,
    lids((37, 38), (40, 41), (36, 39)),
    lids((43, 44), (46, 47), (42, 45)),
    sum(distance(eye, brow) for eye, brow in zip(eyes, brows, strict=True)) / 2 / scale,
    *pose.T,
  ]
  return np.stack(columns, axis=1).astype(np.float32)
