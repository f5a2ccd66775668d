"""The mouth mask of dubbing: the lower half of the face from chin to hairline, and some way below the chin."""

from __future__ import annotations

import numpy as np

from synclipmae_jax.types import InputError

# A face box reaches from slightly above the brows to the chin (`track.FaceTrack`). By the rule of thirds, the forehead
# above the brows is half as high as the face below them, which puts the hairline here, in heights of the box.
_HAIRLINE = 0.35  # above the box
_BELOW_CHIN = 0.15  # of the distance from chin to hairline: room for a jaw that opens wider than it did
_ASIDE = 0.05  # of the width of the box, on each side
_BEYOND = 0.05  # of the picture, by which chin and cheeks may leave it: boxes are not exact


def mouth_region(face_box: np.ndarray) -> np.ndarray:
  """float32 [4] x0, y0, x1, y1: one region for all frames of a segment, from its face boxes [T, 4].

  Coordinates are those of the boxes. The region holds that of every frame: a mask that followed the chin would tell how
  far the mouth is open. Raises InputError without boxes, and for one that is not finite or has no area.
  """
  box = np.asarray(face_box, np.float32)
  if box.ndim != 2 or box.shape[1] != 4 or not len(box):
    raise InputError(f"a segment has one face box a frame, not {list(box.shape)}")
  if not (np.isfinite(box).all() and (box[:, 2:] > box[:, :2]).all()):
    raise InputError("there is a frame without a face in the segment")
  x0, y0, x1, chin = box.T
  face = (1 + _HAIRLINE) * (chin - y0)
  aside = _ASIDE * (x1 - x0)
  return np.array([
    (x0 - aside).min(), (chin - face / 2).min(), (x1 + aside).max(), (chin + _BELOW_CHIN * face).max()
  ], np.float32)  # fmt: skip


def mouth_region_within(face_box: np.ndarray) -> np.ndarray:
  """`mouth_region` of boxes in fractions of the picture.

  Below the chin and beside the face it may end with the picture. Raises InputError where `mouth_region` does, and if
  chin or cheeks lie outside of the picture.
  """
  region = mouth_region(face_box)
  if min(face_box[:, 0].min(), region[1]) < -_BEYOND or face_box[:, 2:].max() > 1 + _BEYOND:
    raise InputError("the mouth leaves the picture: the mask cannot cover it")
  return np.clip(region, 0, 1)


def region_mask(region: np.ndarray, *, height: int, width: int) -> np.ndarray:
  """bool [height, width]: the pixels whose centre lies in a region [4], in fractions of the picture."""
  x0, y0, x1, y1 = region
  rows, columns = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
  return ((y0 <= rows) & (rows <= y1))[:, None] & ((x0 <= columns) & (columns <= x1))


def mouth_mask(face_box: np.ndarray, *, height: int, width: int) -> np.ndarray:
  """bool [height, width], true where the mouth is to be generated, from face boxes [T, 4] in fractions of the picture.

  Raises InputError where `mouth_region_within` does.
  """
  return region_mask(mouth_region_within(face_box), height=height, width=width)
