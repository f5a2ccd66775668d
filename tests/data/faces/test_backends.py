from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from skimage.data import astronaut
from skimage.transform import resize

from synclipmae_jax.data.faces import backends as faces
from synclipmae_jax.data.media.scenes import SceneCuts
from synclipmae_jax.data.media.video import Frame, MediaInfo
from synclipmae_jax.types import InputError

INFO = MediaInfo(width=256, height=256, fps=25.0, sample_rate=16000, channels=1, origin=Fraction(0), end=0.0)
FACE = np.array([86, 33, 137, 92]) / 256  # in the photograph, against a face mesh


def photograph():
  return (resize(astronaut(), (256, 256), anti_aliasing=True) * 255).astype(np.uint8)


def frames(images):
  return (Frame(index, index, image) for index, image in enumerate(images))


def test_lbp_finds_the_face_and_the_exact_gap():
  face, none = photograph(), np.full((256, 256, 3), 90, np.uint8)
  hidden = {*range(23, 46), 58, 59, 60}  # a gap, and a blink of the detector that is bridged
  track = faces.skimage_lbp(frames(none if t in hidden else face for t in range(70)), info=INFO, sidecar=None)
  assert np.flatnonzero(track.track < 0).tolist() == list(range(23, 46))
  assert (track.track[:23] == track.track[0]).all() and (track.track[46:] == track.track[46]).all()
  assert track.track[0] != track.track[46]
  np.testing.assert_allclose(track.box[[0, 22, 46, 69]], np.tile(FACE, (4, 1)), atol=0.03)
  assert np.isnan(track.box[30]).all()


def test_lbp_follows_a_moving_face():
  face = photograph()
  moved = [np.roll(face, 2 * t, axis=1) for t in range(40)]
  track = faces.skimage_lbp(frames(moved), info=INFO, sidecar=None)
  assert (track.track == 0).all()
  centre = (track.box[:, 0] + track.box[:, 2]) / 2 * 256
  np.testing.assert_allclose(centre, 111.5 + 2 * np.arange(40), atol=6)


def test_lbp_finds_nothing_in_nothing():
  noise = np.random.default_rng(0).integers(0, 255, (20, 256, 256, 3)).astype(np.uint8)
  assert (faces.skimage_lbp(frames(noise), info=INFO, sidecar=None).track < 0).all()


def test_precomputed_follows_the_source_frames(tmp_path):
  boxes = np.arange(6, dtype=np.float32)[:, None] + np.float32([10, 20, 60, 80])
  boxes[2] = np.nan
  scores = np.array([1, 1, 1, 1, 0, 1], np.float32)
  landmarks = np.zeros((6, 2, 2), np.float32) + np.float32([128, 64])
  np.savez(tmp_path / "a.faces.npz", boxes=boxes, scores=scores, landmarks=landmarks, mouth=np.array([1]), schema="two")
  shown = [0, 0, 1, 3, 4, 5]
  blank = np.zeros((8, 8, 3), np.uint8)
  stream = [Frame(t, source, blank) for t, source in enumerate(shown)]
  track = faces.precomputed(stream, info=INFO, sidecar=tmp_path / "a.faces.npz")
  assert track.track.tolist() == [0, 0, 0, 0, -1, 0]
  np.testing.assert_allclose(track.box[3] * 256, boxes[3])
  np.testing.assert_allclose(track.landmarks[0, 0], [0.5, 0.25])
  assert track.mouth == (1,) and track.schema == "two"
  with pytest.raises(InputError, match="6 rows, the video 4 frames"):
    faces.precomputed(stream[:4], info=INFO, sidecar=tmp_path / "a.faces.npz")
  np.savez(tmp_path / "c.faces.npz", boxes=boxes, landmarks=np.zeros((6, 68, 3)))
  with pytest.raises(InputError, match="are not"):
    faces.precomputed(stream, info=INFO, sidecar=tmp_path / "c.faces.npz")
  (tmp_path / "b.faces.npz").write_bytes(b"PK\x03\x04 not really")
  with pytest.raises(InputError, match="cannot be read"):
    faces.precomputed(stream, info=INFO, sidecar=tmp_path / "b.faces.npz")


def test_full_frame_crops_the_centred_square():
  info = MediaInfo(width=200, height=100, fps=25.0, sample_rate=16000, channels=1, origin=Fraction(0), end=0.0)
  track = faces.full_frame(frames(np.zeros((5, 100, 200, 3), np.uint8)), info=info, sidecar=None)
  crop = faces.crop_path(track.box * [200, 100, 200, 100], width=200, height=100)
  np.testing.assert_allclose(crop, np.tile([50, 0, 100], (5, 1)), atol=1e-4)


def test_the_crop_stands_still_unless_the_face_wanders_off():
  rng = np.random.default_rng(0)
  still = np.tile([100.0, 100, 160, 170], (100, 1)) + rng.normal(0, 2, (100, 4))
  crop = faces.crop_path(still, width=400, height=400)
  assert (crop == crop[0]).all()
  x0, y0, side = crop[0]
  assert (still[:, 0] > x0).all() and (still[:, 3] < y0 + side).all()
  wanders = still + np.linspace(0, 150, 100)[:, None] * np.array([1, 0, 1, 0])
  path = faces.crop_path(wanders, width=400, height=400)
  assert np.abs(np.diff(path[:, 0])).max() < 3 and len(set(path[:, 2])) == 1
  assert (wanders[:, 0] > path[:, 0]).all() and (wanders[:, 2] < path[:, 0] + path[:, 2]).all()


def test_the_crop_never_leaves_the_picture():
  for box in ([0.0, 0, 60, 60], [150, 30, 200, 100], [0, 0, 200, 100]):
    x0, y0, side = faces.crop_path(np.tile(np.array(box, float), (10, 1)), width=200, height=100)[0]
    assert 0 <= x0 <= x0 + side <= 200 and 0 <= y0 <= y0 + side <= 100


def test_cuts_are_found_and_motion_and_light_are_not_cuts():
  face = photograph()
  other = np.ascontiguousarray(face[::-1, :, ::-1])
  moving = [np.roll(face, 3 * t, axis=1) for t in range(20)]
  lamp = [(face * gain).astype(np.uint8) for gain in 1 - 0.3 * np.sin(np.arange(20) / 2) ** 2]
  scenes = SceneCuts()
  assert len(list(scenes.watch(frames(moving + [other] * 20 + lamp)))) == 60
  assert scenes.cuts == [20, 40]
  still = SceneCuts()
  list(still.watch(frames(moving + moving[::-1])))
  assert still.cuts == []
