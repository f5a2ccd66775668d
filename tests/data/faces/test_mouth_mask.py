"""The mouth mask: where it lies, that it stands still, and what it refuses."""

import numpy as np
import pytest

from synclipmae_jax.data.faces.mouth_mask import mouth_mask, mouth_region
from synclipmae_jax.data.synthtalk.geometry import LANDMARKS, MOUTH_LANDMARKS, face_boxes
from synclipmae_jax.types import InputError

BOX = np.array([[0.2, 0.25, 0.8, 0.85]], np.float32)


def test_it_is_the_lower_half_from_chin_to_hairline_and_more_below():
  x0, y0, x1, y1 = mouth_region(BOX)
  hairline = 0.25 - 0.35 * 0.6
  assert y0 == pytest.approx((hairline + 0.85) / 2) and 0.85 < y1 < 1
  assert x0 < 0.2 and x1 > 0.8
  mask = mouth_mask(BOX, height=100, width=200)
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
  assert abs(rows[0] - 100 * y0) <= 1 and abs(rows[-1] + 1 - 100 * y1) <= 1
  assert abs(columns[0] - 200 * x0) <= 1 and abs(columns[-1] + 1 - 200 * x1) <= 1


def test_one_mask_covers_the_mouth_of_every_frame_of_a_segment():
  rng = np.random.default_rng(0)
  shift = rng.uniform(-0.05, 0.05, (17, 1, 2)).astype(np.float32)
  points = np.tile(rng.uniform(0.3, 0.7, (1, len(LANDMARKS), 2)), (17, 1, 1)).astype(np.float32)
  contour, brows = [LANDMARKS.index(f"contour_{k}") for k in range(9)], LANDMARKS.index("left_brow_1")
  angle = np.linspace(0.05, np.pi - 0.05, 9)
  points[:, contour] = np.stack([0.5 + 0.25 * np.cos(angle), 0.5 + 0.3 * np.sin(angle)], -1)
  points[:, brows] = (0.4, 0.3)
  points[:, MOUTH_LANDMARKS, 1] = rng.uniform(0.62, 0.75, len(MOUTH_LANDMARKS))
  points[:, MOUTH_LANDMARKS, 0] = rng.uniform(0.4, 0.6, len(MOUTH_LANDMARKS))
  points = points + shift
  mask = mouth_mask(face_boxes(points), height=96, width=96)
  assert mask.shape == (96, 96)
  x, y = (points[:, MOUTH_LANDMARKS] * 96).astype(int).reshape(-1, 2).T
  assert mask[y, x].all()
  assert not mask[: int(96 * 0.35)].any()  # eyes and brows stay
  assert (mouth_mask(face_boxes(points)[::-1], height=96, width=96) == mask).all()


def test_a_jaw_that_opens_within_the_segment_does_not_show_in_the_mask():
  still, moving = np.tile(BOX, (5, 1)), np.tile(BOX, (5, 1))
  moving[:3, 3] -= 0.02  # the last frames are as before
  first, second = mouth_region(still), mouth_region(moving)
  assert first[3] == second[3] and abs(first[1] - second[1]) < 0.02


@pytest.mark.parametrize(
  "boxes, why",
  [
    (np.zeros((0, 4), np.float32), "one face box a frame"),
    (np.array([[0.2, np.nan, 0.8, 0.9]], np.float32), "without a face"),
    (np.array([[0.8, 0.2, 0.2, 0.9]], np.float32), "without a face"),
    (BOX + np.array([0, 0.3, 0, 0.3], np.float32), "leaves the picture"),
    (BOX - np.array([0.4, 0, 0.4, 0], np.float32), "leaves the picture"),
  ],
)
def test_what_has_no_mouth_in_the_picture_is_refused(boxes, why):
  with pytest.raises(InputError, match=why):
    mouth_mask(boxes, height=64, width=64)
