from __future__ import annotations

import numpy as np

from synclipmae_jax.data.faces.track import crop_path


def test_the_crop_stands_still_unless_the_face_wanders_off():
  rng = np.random.default_rng(0)
  still = np.tile([100.0, 100, 160, 170], (100, 1)) + rng.normal(0, 2, (100, 4))
  crop = crop_path(still, width=400, height=400)
  assert (crop == crop[0]).all()
  x0, y0, side = crop[0]
  assert (still[:, 0] > x0).all() and (still[:, 3] < y0 + side).all()
  wanders = still + np.linspace(0, 150, 100)[:, None] * np.array([1, 0, 1, 0])
  path = crop_path(wanders, width=400, height=400)
  assert np.abs(np.diff(path[:, 0])).max() < 3 and len(set(path[:, 2])) == 1
  assert (wanders[:, 0] > path[:, 0]).all() and (wanders[:, 2] < path[:, 0] + path[:, 2]).all()


def test_the_crop_never_leaves_the_picture():
  for box in ([0.0, 0, 60, 60], [150, 30, 200, 100], [0, 0, 200, 100]):
    x0, y0, side = crop_path(np.tile(np.array(box, float), (10, 1)), width=200, height=100)[0]
    assert 0 <= x0 <= x0 + side <= 200 and 0 <= y0 <= y0 + side <= 100
