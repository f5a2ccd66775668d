"""How often faces are looked for, with a detector that finds a bright square."""

import numpy as np
import pytest

from synclipmae_jax.data.faces.follower import Face, Follower
from synclipmae_jax.data.faces.track import overlap

SIZE, SIDE = 100, 20


class Square:
  """A `Detector` of the bright square. `looks`: the frames that were searched near a known face."""

  stride, idle_stride, everywhere_stride = 1, 10, 25
  landmarks, mouth, schema = (0, 1), (1,), "square"

  def __init__(self):
    self.looks = []

  def everywhere(self, image, *, known, closely):
    face = self._find(image)
    return [face] if face is not None and all(overlap(face.box, other.box) < 0.3 for other in known) else []

  def near(self, image, face):
    self.looks.append(int(image[0, 0, 2]))
    return self._find(image)

  def _find(self, image):
    rows, columns = np.nonzero(image[..., 0])
    if not len(rows):
      return None
    corners = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]]) / SIZE
    return Face(box=corners.ravel(), confidence=0.9, landmarks=corners.astype(np.float32))


def follow(places, *, backdrop=None, max_stride=3):
  """The track of a square whose left edge is at `places`, None: not there; and the number of looks at each frame."""
  detector = Square()
  follower = Follower(detector, max_stride=max_stride)
  for t, x in enumerate(places):
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[..., 1] = 0 if backdrop is None else backdrop[t]
    image[0, 0, 2] = t
    if x is not None:
      image[40 : 40 + SIDE, x : x + SIDE, 0] = 255
    follower.see(t, image)
  follower.finish()
  return follower.tracks, np.bincount(detector.looks, minlength=len(places))


def lefts(track):
  return {t: round(float(face.box[0]) * SIZE, 3) for t, face in sorted(track.faces.items())}


def test_a_still_face_is_searched_every_third_frame():
  (track,), looks = follow([30] * 60)
  assert lefts(track) == dict.fromkeys(range(60), 30.0)
  assert looks.sum() < 60 / 3 + 8
  assert follow([30] * 60, max_stride=1)[1].sum() >= 59


def test_between_two_searches_the_face_is_interpolated():
  places = [30 + t // 3 for t in range(48)]
  (track,), looks = follow(places)
  assert looks.sum() < 30
  found = lefts(track)
  assert list(found) == list(range(48))
  np.testing.assert_allclose(list(found.values()), places, atol=1.01)
  unsearched = [t for t in range(48) if not looks[t] and 0 < t < 47]
  assert any(found[t] % 1 for t in unsearched)
  for t in unsearched:
    face = track.faces[t]
    np.testing.assert_allclose(face.landmarks.ravel(), face.box, atol=1e-6)


def test_a_face_that_moves_is_found_in_every_frame():
  places = [30] * 20 + [30 + 3 * t for t in range(12)] + [63] * 20
  (track,), _ = follow(places)
  assert lefts(track) == {t: float(x) for t, x in enumerate(places)}


@pytest.mark.parametrize("last", range(30, 36))
def test_the_last_frame_of_a_face_is_exact(last):
  (track,), _ = follow([30] * last + [None] * (60 - last))
  assert list(track.faces) and max(track.faces) == last - 1
  (whole,), _ = follow([30] * last)
  assert max(whole.faces) == last - 1


@pytest.mark.parametrize("cut", range(30, 36))
def test_nothing_is_interpolated_across_a_cut(cut):
  places = [30] * cut + [31] * (60 - cut)
  tracks, _ = follow(places, backdrop=[0] * cut + [90] * (60 - cut))
  found = {t: left for track in tracks for t, left in lefts(track).items()}
  assert found == {t: float(x) for t, x in enumerate(places)}
