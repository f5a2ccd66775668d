"""The points of a face that move with the head, the lids, the brows, the lips and the jaw, from a record's landmarks.

They are the targets of `losses.head_motion` and `losses.lip_motion`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from synclipmae_jax.data.faces.mediapipe import MediaPipe
from synclipmae_jax.data.synthtalk.geometry import LANDMARKS
from synclipmae_jax.types import KEYPOINTS

_MOUTH_OF_SYNTHTALK = {
  "upper_lip": "upper_outer_1", "upper_lip_inner": "upper_inner_1", "lower_lip_inner": "lower_inner_1",
  "lower_lip": "lower_outer_1", "chin": "contour_4",
  "left_mouth_corner": "mouth_left", "right_mouth_corner": "mouth_right",
}  # fmt: skip


def _of_synthtalk(name: str) -> tuple[str, ...]:
  if name in _MOUTH_OF_SYNTHTALK:
    return (_MOUTH_OF_SYNTHTALK[name],)
  side = "left" if name.startswith("left") else "right"
  match name.removeprefix(f"{side}_"):
    case "temple":
      return ("contour_8",) if side == "left" else ("contour_0",)
    case "brow":
      return (f"{side}_brow_1",)
    case "lid_upper":
      return (f"{side}_eye_top",)
    case "lid_lower":
      return (f"{side}_eye_bottom",)
    case "outer" | "inner" as corner:
      return (f"{side}_eye_{corner}",)
  raise ValueError(name)


# Schema -> for each of KEYPOINTS the landmarks of which it is the mean. Left is left in the picture.
_INDICES: Mapping[str, tuple[tuple[int, ...], ...]] = {
  "synthtalk": tuple(tuple(map(LANDMARKS.index, _of_synthtalk(name))) for name in KEYPOINTS),
  # iBUG 300-W
  MediaPipe.schema: (
    (0,), (16,), (36,), (39,), (37, 38), (40, 41), (45,), (42,), (43, 44), (46, 47), (19,), (24,),
    (48,), (54,), (51,), (62,), (66,), (57,), (8,),
  ),
}  # fmt: skip


def keypoints(record: Mapping[str, Any], start: int, count: int) -> dict[str, np.ndarray]:
  """{"keypoints": float32 [count, P, 2]} (x, y) as fractions of the image; -1 where they are not known.

  A `pipeline.Targets` for training batches.
  """
  landmarks, indices = record["landmarks"][start : start + count], _INDICES.get(record["landmark_schema"])
  if indices is None or not landmarks.shape[1]:
    return {"keypoints": np.full((count, len(KEYPOINTS), 2), -1, np.float32)}
  points = np.stack([landmarks[:, list(own)].mean(axis=1) for own in indices], axis=1)
  known = (landmarks[:, sum(indices, ())] != -1).all(axis=(1, 2))
  return {"keypoints": np.where(known[:, None, None], points, -1).astype(np.float32)}
