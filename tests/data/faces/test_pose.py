"""Head pose of a turned head, and of a real face and its mirror image."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from photograph import picture
from scipy.spatial.transform import Rotation

from synclipmae_jax.data.faces.pose import _HEAD, _RIGID, head_pose
from synclipmae_jax.data.faces.sources import dominant, open_faces
from synclipmae_jax.data.media.video import Frame, MediaInfo


def seen(yaw, pitch, roll, *, distance=None):
  """Landmarks [1, 68, 2] of the head, turned by degrees, at a distance in units of its width (None: far away)."""
  points = _HEAD @ Rotation.from_euler("YXZ", [-yaw, -pitch, roll], degrees=True).as_matrix().T
  scale = 1 if distance is None else distance / (distance + points[:, 2:] / 55)
  landmarks = np.full((1, 68, 2), 7.0)
  landmarks[0, _RIGID] = 300 + 2 * points[:, :2] * scale
  return landmarks


@pytest.mark.parametrize("angles", [(0, 0, 0), (30, 0, 0), (-70, 0, 0), (0, 25, 0), (0, 0, -20), (35, -15, 10)])
def test_the_pose_of_a_turned_head(angles):
  # A yaw is towards the right: the nose moves there. A pitch is upwards, a roll clockwise; y points down.
  found = head_pose(seen(*angles))[0]
  np.testing.assert_allclose(found, angles, atol=0.1)
  np.testing.assert_allclose(head_pose(seen(*angles, distance=4))[0], angles, atol=6)


def test_directions_are_those_of_the_picture():
  nose, ears = _RIGID.index(30), [_RIGID.index(1), _RIGID.index(15)]
  turned, up, tilted = (seen(*angles)[0, _RIGID] for angles in ((30, 0, 0), (0, 30, 0), (0, 0, 30)))
  assert turned[nose, 0] > turned[ears, 0].mean() and up[nose, 1] < up[ears, 1].mean()
  assert tilted[ears[0], 1] < tilted[ears[1], 1]  # the ear on the right of the picture is lower


def test_unknown_landmarks_have_no_pose():
  landmarks = np.concatenate([seen(10, 0, 0), seen(10, 0, 0)])
  landmarks[1, 30] = np.nan
  pose = head_pose(landmarks)
  assert np.isfinite(pose[0]).all() and np.isnan(pose[1]).all()


def test_a_mirrored_photograph_looks_to_the_other_side():
  size = np.array([360, 288])
  info = MediaInfo(width=360, height=288, fps=25.0, sample_rate=16000, channels=1, origin=Fraction(0), end=0.0)

  def pose(angle, flip):
    image = picture((180, 144, 180, angle), mirrored=flip)
    source, _ = open_faces("a.mp4", "mediapipe", info=info)
    track = dominant(source, (Frame(t, t, image) for t in range(12)))
    return np.nanmedian(head_pose(track.landmarks * size), axis=0)

  one, mirrored, tilted = pose(0, False), pose(0, True), pose(20, False)
  np.testing.assert_allclose(mirrored, one * [-1, 1, -1], atol=3)
  assert abs(abs(tilted[2] - one[2]) - 20) < 3 and abs(one[0]) < 40
