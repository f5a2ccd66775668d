from __future__ import annotations

from fractions import Fraction

import numpy as np
from skimage.data import astronaut
from skimage.transform import resize

from synclipmae_jax.data.faces.sources import dominant, open_faces
from synclipmae_jax.data.media.video import Frame, MediaInfo

INFO = MediaInfo(width=256, height=256, fps=25.0, sample_rate=16000, channels=1, origin=Fraction(0), end=0.0)
FACE = np.array([86, 33, 137, 92]) / 256  # in the photograph, against a face mesh


def photograph():
  return (resize(astronaut(), (256, 256), anti_aliasing=True) * 255).astype(np.uint8)


def found(images):
  frames = (Frame(index, index, image) for index, image in enumerate(images))
  return dominant(open_faces("a.mp4", "skimage_lbp", info=INFO)[0], frames)


def test_lbp_finds_the_face_and_the_exact_gap():
  face, none = photograph(), np.full((256, 256, 3), 90, np.uint8)
  hidden = {*range(23, 46), 58, 59, 60}  # a gap, and a blink of the detector that is bridged
  track = found(none if t in hidden else face for t in range(70))
  assert np.flatnonzero(track.track < 0).tolist() == list(range(23, 46))
  assert (track.track[:23] == track.track[0]).all() and (track.track[46:] == track.track[46]).all()
  assert track.track[0] != track.track[46]
  np.testing.assert_allclose(track.box[[0, 22, 46, 69]], np.tile(FACE, (4, 1)), atol=0.03)
  assert np.isnan(track.box[30]).all()


def test_lbp_follows_a_moving_face():
  face = photograph()
  moved = [np.roll(face, 2 * t, axis=1) for t in range(40)]
  track = found(moved)
  assert (track.track == 0).all()
  centre = (track.box[:, 0] + track.box[:, 2]) / 2 * 256
  np.testing.assert_allclose(centre, 111.5 + 2 * np.arange(40), atol=6)


def test_lbp_finds_nothing_in_nothing():
  noise = np.random.default_rng(0).integers(0, 255, (20, 256, 256, 3)).astype(np.uint8)
  assert (found(noise).track < 0).all()
