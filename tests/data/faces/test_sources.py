from __future__ import annotations

import os
from fractions import Fraction

import numpy as np
import pytest
from footage import numbered, write_video
from skimage.data import astronaut
from skimage.transform import resize

from synclipmae_jax.data.faces import sidecars
from synclipmae_jax.data.faces.follower import LOOKAHEAD
from synclipmae_jax.data.faces.sources import dominant, open_faces
from synclipmae_jax.data.faces.track import crop_path
from synclipmae_jax.data.media import video
from synclipmae_jax.data.media.video import Frame, MediaInfo
from synclipmae_jax.types import InputError

INFO = MediaInfo(width=256, height=256, fps=25.0, sample_rate=16000, channels=1, origin=Fraction(0), end=0.0)
PHOTOGRAPH = (resize(astronaut(), (256, 256), anti_aliasing=True) * 255).astype(np.uint8)
FACE = PHOTOGRAPH[10:130, 50:170]
GREY = np.full((256, 256, 3), 90, np.uint8)


def picture(*corners):
  """Faces on grey, each with its left edge there."""
  image = GREY.copy()
  for x in corners:
    image[60:180, x : x + 120] = FACE
  return image


def blocks(source, images, *, size):
  """What `take` gives, block by block, with no more shown before than is promised."""
  taken, shown = [], 0
  for start in range(0, len(images), size):
    while shown < min(len(images), start + size + LOOKAHEAD):
      source.see(Frame(shown, shown, images[shown]))
      shown += 1
    taken.append(source.take(start, min(start + size, len(images))))
  return taken


def joined(taken, number, size):
  rows = [block[number].box if number in block else np.full((size, 4), np.nan) for block in taken]
  return np.concatenate(rows)


@pytest.mark.parametrize("backend", ["mediapipe", "skimage_lbp"])
def test_tracks_do_not_depend_on_the_blocks(backend):
  images = [np.roll(PHOTOGRAPH, t // 2, axis=1) for t in range(120)]
  images[50:70] = [GREY] * 20
  taken = blocks(open_faces("a.mp4", backend, info=INFO)[0], images, size=40)
  assert {number for block in taken for number in block} == {0}  # it came back to its place
  box = joined(taken, 0, 40)
  assert np.flatnonzero(np.isnan(box[:, 0])).tolist() == list(range(50, 70))
  whole = dominant(open_faces("a.mp4", backend, info=INFO)[0], (Frame(t, t, image) for t, image in enumerate(images)))
  assert whole.track[0] != whole.track[70]  # two parts with a gap between them
  np.testing.assert_allclose(box, whole.box, atol=1e-6)


def test_dominant_face_is_the_longest_and_largest():
  images = [picture(4)] * 20 + [picture(4, 130)] * 40 + [picture(130)] * 40
  track = dominant(open_faces("a.mp4", "mediapipe", info=INFO)[0], (Frame(t, t, im) for t, im in enumerate(images)))
  assert (track.track[20:] == 0).all() and (track.track[:20] == 1).all()
  assert track.box[20:, 0].min() > 0.5 > track.box[:20, 2].max()


@pytest.mark.parametrize("backend", ["mediapipe", "skimage_lbp"])
def test_two_faces_at_once_and_one_of_them_leaves(backend):
  images = [picture(4, 130)] * 60 + [picture(130)] * 40
  taken = blocks(open_faces("a.mp4", backend, info=INFO)[0], images, size=50)
  left, right = sorted((joined(taken, number, 50) for number in (0, 1)), key=lambda box: np.nanmean(box[:, 0]))
  assert np.isfinite(right).all()
  assert np.flatnonzero(np.isfinite(left[:, 0])).tolist() == list(range(60))
  assert np.nanmax(left[:, 2]) < 0.5 < np.nanmin(right[:, 0])


def test_no_face_is_no_track():
  assert blocks(open_faces("a.mp4", "auto", info=INFO)[0], [GREY] * 30, size=30) == [{}]


def test_full_frame_crops_the_middle():
  (taken,) = blocks(open_faces("a.mp4", "full_frame", info=INFO)[0], [GREY] * 5, size=5)
  crop = crop_path(taken[0].box * 256, width=256, height=256)
  np.testing.assert_allclose(crop, np.tile([0, 0, 256], (5, 1)), atol=1e-3)


def test_a_sidecar_follows_the_source_frames(tmp_path):
  boxes = np.arange(6, dtype=np.float32)[:, None] + np.float32([10, 20, 60, 80])
  boxes[2] = np.nan
  scores = np.float32([1, 0.7, 1, 1, 0, 1])
  landmarks = np.zeros((6, 2, 2), np.float32) + np.float32([128, 64])
  path = write_video(tmp_path / "a.mp4", [numbered(t) for t in range(6)], sound=np.zeros(4000))
  sidecar = tmp_path / "a.faces.npz"
  np.savez(sidecar, boxes=boxes, scores=scores, landmarks=landmarks, mouth=np.array([1]), schema="two")
  shown = [0, 0, 1, 3, 4, 5]
  track = dominant(open_faces(path, "precomputed", info=INFO)[0], (Frame(t, s, GREY) for t, s in enumerate(shown)))
  assert (track.track[:4] == track.track[0]).all() and track.track[4] == -1 < track.track[5] != track.track[0]
  np.testing.assert_allclose(track.box[3] * 256, boxes[3])
  np.testing.assert_allclose(track.landmarks[0, 0], [0.5, 0.25])
  np.testing.assert_allclose(track.confidence, [1, 1, 0.7, 1, 0, 1])
  assert track.mouth == (1,) and track.schema == "two"
  np.savez(sidecar, boxes=boxes, landmarks=np.zeros((6, 68, 3)))
  with pytest.raises(InputError, match="are not"):
    open_faces(path, "precomputed", info=INFO)
  sidecar.write_bytes(b"PK\x03\x04 not really")
  with pytest.raises(InputError, match="cannot be read"):
    open_faces(path, "precomputed", info=INFO)


def test_the_sidecar_is_taken_where_it_fits(tmp_path):
  path = write_video(tmp_path / "a.mp4", [numbered(t) for t in range(30)], sound=np.zeros(19200))
  info = video.probe(path)
  boxes = np.arange(30, dtype=np.float32)[:, None] / 2 + np.float32([10, 10, 30, 30])
  np.savez(tmp_path / "a.faces.npz", boxes=boxes)
  source, notes = open_faces(path, "auto", info=info)
  assert notes == ()
  for frame in video.read_frames(path):
    source.see(frame)
  np.testing.assert_allclose(source.take(0, 30)[0].box, boxes / 64, atol=1e-6)

  np.savez(tmp_path / "a.faces.npz", boxes=boxes[:20])
  assert "20 rows, the video 30 frames: faces were looked for instead" in open_faces(path, "auto", info=info)[1][0]
  with pytest.raises(InputError, match="20 rows, the video 30 frames"):
    open_faces(path, "precomputed", info=info)
  with pytest.raises(InputError, match=r"no \.faces\.npz"):
    open_faces(tmp_path / "b.mp4", "precomputed", info=info)


def test_a_hostile_sidecar_is_neither_waited_for_nor_unpacked(tmp_path, monkeypatch):
  path = write_video(tmp_path / "a.mp4", [numbered(0)], sound=np.zeros(1000))
  info, sidecar = video.probe(path), tmp_path / "a.faces.npz"
  np.savez(sidecar, boxes=np.zeros((0, 4)))
  with pytest.raises(InputError, match="0 rows, the video 1 frames"):
    open_faces(path, "precomputed", info=info)
  monkeypatch.setattr(sidecars, "_MAX_SIDECAR", 2**20)
  np.savez_compressed(sidecar, boxes=np.zeros((2**16, 4)))
  assert sidecar.stat().st_size < 2**14
  with pytest.raises(InputError, match="when unpacked"):
    open_faces(path, "precomputed", info=info)
  sidecar.unlink()
  os.mkfifo(sidecar)
  with pytest.raises(InputError, match="not a regular file"):
    open_faces(path, "precomputed", info=info)
