"""Each measure follows its own motion, whatever the size of the face in the picture."""

from __future__ import annotations

import numpy as np
import pytest

from synclipmae_jax.data.faces.facial_motion import NAMES, facial_motion
from synclipmae_jax.data.faces.pose import _HEAD, _RIGID


def face():
  """Landmarks [68, 2] of a face that looks into the camera; the eyes are 18 units wide and open by 4."""
  points = np.zeros((68, 2))
  points[3:14] = np.stack([np.linspace(-26, 26, 11), 25 + 5 * np.sin(np.linspace(0, np.pi, 11))], 1)
  for start, x in ((17, -20), (22, 4)):
    points[start : start + 5] = np.stack([np.linspace(x, x + 16, 5), np.full(5, -16)], 1)
  points[48:60] = [0, 20]
  points[[48, 54]] = [[-9, 20], [9, 20]]
  points[60:] = [0, 20]
  points[_RIGID] = _HEAD[:, :2]
  for inner, outer, upper, lower in ((39, 36, (37, 38), (40, 41)), (42, 45, (43, 44), (46, 47))):
    middle = (points[inner] + points[outer]) / 2
    points[list(upper)], points[list(lower)] = middle - [0, 2], middle + [0, 2]
  return points


def change(points, indices, by):
  moved = points.copy()
  moved[list(indices)] += by
  return moved


STILL = face()
MOVED = {
  "mouth/jaw": change(STILL, [8], [0, 6]),
  "mouth/opening": change(STILL, (65, 66, 67), [0, 6]),
  "mouth/width": change(STILL, [54], [5, 0]),
  "ambient/blink_left": change(STILL, (37, 38), [0, 3]),
  "ambient/blink_right": change(STILL, (43, 44), [0, 3]),
  "ambient/brow": change(STILL, range(17, 27), [0, -3]),
}


@pytest.mark.parametrize("name", MOVED)
def test_a_measure_follows_its_own_motion_alone(name):
  still, moved = facial_motion(np.stack([STILL, MOVED[name]]))
  changed = {other for other, a, b in zip(NAMES, still, moved, strict=True) if abs(a - b) > 1e-3}
  expected = {name} | ({"ambient/brow"} if "blink" in name else set())
  assert name in changed and changed <= expected and moved[NAMES.index(name)] > still[NAMES.index(name)]


def test_neither_size_nor_place_matters_and_a_turned_head_is_told():
  near = facial_motion(np.stack([STILL, 3 * STILL + [40, 70]]))
  np.testing.assert_allclose(near[0], near[1], atol=1e-4)
  turn = np.deg2rad(15)
  tilted = STILL @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
  found = facial_motion(tilted[None])[0]
  assert found[NAMES.index("ambient/roll")] - near[0, NAMES.index("ambient/roll")] == pytest.approx(15, abs=0.1)
  np.testing.assert_allclose(found[:6], near[0, :6], atol=1e-3)


def test_unknown_landmarks_have_no_motion():
  assert np.isnan(facial_motion(np.full((1, 68, 2), np.nan))).all()
