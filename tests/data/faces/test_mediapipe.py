"""The face tracker on synthetic footage with a real face, and on SynthTalk."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from photograph import MOUTH, face_of, picture

from synclipmae_jax.data.faces.blazeface import find_faces, tiles
from synclipmae_jax.data.faces.follower import LOOKAHEAD, MOST
from synclipmae_jax.data.faces.mediapipe import MediaPipe
from synclipmae_jax.data.faces.sources import dominant, open_faces
from synclipmae_jax.data.media import video
from synclipmae_jax.data.media.video import Frame, MediaInfo
from synclipmae_jax.data.synthtalk.clip import make_clip
from synclipmae_jax.data.synthtalk.corpus import write_clip

SIZE = np.array([360, 288])


def info(width=360, height=288):
  return MediaInfo(width=width, height=height, fps=25.0, sample_rate=16000, channels=1, origin=Fraction(0), end=0.0)


def source():
  return open_faces("a.mp4", "mediapipe", info=info())[0]


def frames(images):
  return (Frame(index, index, image) for index, image in enumerate(images))


def all_faces(images):
  """The tracks of all faces of a short video."""
  whole = source()
  for frame in frames(images):
    whole.see(frame)
  return whole.take(0, len(images))


def off(box, x, y, side):
  """The largest error of an edge of a box, relative to the side of the head's square."""
  return np.abs(box - face_of(x, y, side))[..., :].max() * 360 / side


def test_follows_a_moving_and_growing_face():
  heads = [(120 + 1.5 * t, 150 - 0.4 * t, 140 + t) for t in range(80)]
  track = dominant(source(), frames(picture(head) for head in heads))
  assert (track.track == 0).all() and (track.confidence > 0.9).all()
  assert max(off(box, *head) for box, head in zip(track.box, heads, strict=True)) < 0.05
  assert track.landmarks.shape == (80, 68, 2) and np.isfinite(track.landmarks).all()


def test_boxes_are_smooth_and_landmarks_do_not_lag():
  heads = [(180 + 60 * np.sin(t / 8), 144, 200) for t in range(100)]  # up to 7 pixels a frame
  track = dominant(source(), frames(picture(head) for head in heads))
  middle = track.landmarks[:, list(track.mouth)].mean(1) * SIZE
  mouth = np.array([[round(x - side / 2), round(y - side / 2)] + MOUTH * side for x, y, side in heads])
  speed = np.gradient(mouth[:, 0])
  late = [np.mean((middle[:, 0] - mouth[:, 0])[speed * sign > 4]) for sign in (-1, 1)]
  assert abs(late[1] - late[0]) / 2 < 0.15 * np.abs(speed)[np.abs(speed) > 4].mean()  # frames
  still = dominant(source(), frames([picture((180, 144, 200))] * 30))
  assert np.abs(np.diff(still.box, axis=0)).max() < 1e-3


def test_follows_a_tilting_head():
  degrees = [40 * np.sin(t / 10) for t in range(60)]
  track = dominant(source(), frames(picture((180, 144, 180, angle)) for angle in degrees))
  assert (track.track == 0).all()
  left, right = track.landmarks[:, 36] * SIZE, track.landmarks[:, 45] * SIZE  # the outer corners of the eyes
  found = np.degrees(np.arctan2(*(right - left).T[::-1]))
  assert np.abs(found - found.mean() - degrees + np.mean(degrees)).max() < 5


def test_gap_has_exact_ends():
  hidden = {*range(23, 46), 58, 59, 60}  # the last are bridged
  face, none = picture((180, 144, 160)), picture()
  track = dominant(source(), frames(none if t in hidden else face for t in range(70)))
  assert np.flatnonzero(track.track < 0).tolist() == list(range(23, 46))
  assert track.track[22] != track.track[46] == track.track[69]
  assert (track.confidence[58:61] == 0).all() and np.isfinite(track.box[58:61]).all()
  assert np.isnan(track.landmarks[58:61]).all() and np.isnan(track.box[30]).all()


def test_follows_large_and_small_faces_until_one_leaves():
  large, middle, small = (90, 150, 170), (250, 120, 90), (320, 235, 46)  # the last of 20 pixels
  film = [picture(large, middle, small)] * 40 + [picture(large, small)] * 35
  found = sorted(all_faces(film).values(), key=lambda track: np.nanmean(track.box[:, 0]))
  assert len(found) == 3
  for track, head, seen in zip(found, (large, middle, small), (75, 40, 75), strict=True):
    assert np.flatnonzero(track.track >= 0).tolist() == list(range(seen))
    assert off(track.box[0], *head) < 0.05


def test_tracks_a_new_face_backwards_to_its_first_frame():
  first = MediaPipe.everywhere_stride + 3
  alone, two = picture((90, 144, 150)), picture((90, 144, 150), (270, 144, 100))  # too little changes for a cut
  film = [alone] * first + [two] * 30
  came = max(all_faces(film).values(), key=lambda track: np.nanmean(track.box[:, 0]))
  assert np.flatnonzero(came.track >= 0).tolist() == list(range(first, first + 30))


def test_finds_new_face_in_the_first_frame_after_a_cut():
  film = [picture((90, 144, 150))] * 31 + [picture((270, 160, 190), mirrored=True)] * 29
  track = dominant(source(), frames(film))
  assert (track.track >= 0).all() and track.track[30] != track.track[31]
  assert off(track.box[30], 90, 144, 150) < 0.05
  assert track.box[31, 0] * 360 > 200
  for before, after in ((150, 170), (120, 280), (280, 120)):  # at the position of the old face
    film = [picture((180, 144, before))] * 31 + [picture((180, 144, after), mirrored=True)] * 29
    track = dominant(source(), frames(film))
    points = track.landmarks * SIZE
    assert (track.track >= 0).all() and np.abs(points[31:] - points[50]).max() < 0.03 * after


def test_follows_a_face_in_flashing_light():
  light, dark = picture((180, 144, 200)), (picture((180, 144, 200)) * 0.6).astype(np.uint8)
  track = dominant(source(), frames([light, dark] * 20))
  assert (track.track == 0).all() and (track.confidence > 0.9).all()


def test_finds_a_face_of_16_pixels():
  track = dominant(source(), frames([picture((300, 80, 40))] * 20))
  assert (track.track == 0).all() and off(track.box[0], 300, 80, 40) < 0.06


def test_face_at_the_edge_is_found_and_upside_down_face_and_noise_are_not():
  edge = dominant(source(), frames([picture((15, 144, 240))] * 20))
  assert (edge.track == 0).all() and edge.box[0, 0] < 0  # the box includes the part outside
  for side in (60, 100, 150, 200, 240):
    assert (dominant(source(), frames([picture((180, 144, side, 180))] * 20)).track < 0).all()
  noise = np.random.default_rng(0).integers(0, 255, (20, 288, 360, 3)).astype(np.uint8)
  assert (dominant(source(), frames(noise)).track < 0).all()


@pytest.mark.parametrize("width, height", [(360, 288), (288, 360), (640, 360), (2000, 16), (1, 1)])
def test_tiles_cover_pictures_of_every_shape(width, height):
  seen = np.zeros((height, width), bool)
  found = tiles(height, width)
  for tile in found:
    x0, y0, x1, y1 = np.concatenate([tile.centre - tile.side / 2, tile.centre + tile.side / 2]).round().astype(int)
    seen[max(0, y0) : y1, max(0, x0) : x1] = True
  assert seen.all() and len(found) <= 12
  assert len(find_faces(np.zeros((height, width, 3), np.uint8), closely=True)) == 0


def test_follows_the_largest_faces_of_a_crowd():
  crowd = [(30 + 45 * column, 30 + 45 * row, 44) for row in range(6) for column in range(8)]
  front = (180, 150, 150)
  found = all_faces([picture(*crowd, front)] * 30)
  assert 2 <= len(found) <= MOST
  assert any(off(track.box[0], *front) < 0.05 for track in found.values())
  late = all_faces([picture(*crowd)] * 30 + [picture(*crowd, front)] * 30)  # the large face appears late
  assert any(track.track[59] == 0 and off(track.box[59], *front) < 0.05 for track in late.values())


def test_memory_does_not_grow():
  stream, kept = source(), []
  for t in range(400):
    stream.see(Frame(t, t, picture((100 + t / 4, 144, 150))))
    if t >= LOOKAHEAD and (t - LOOKAHEAD + 1) % 50 == 0:
      stream.take(t - LOOKAHEAD - 49, t - LOOKAHEAD + 1)
      kept.append(sum(len(track.faces) for track in stream._follower.tracks) + len(stream._follower._recent))
  assert len(kept) == 7 and max(kept) <= 4 * LOOKAHEAD


def test_is_deterministic():
  film = [picture((120 + t, 150, 140 + t)) for t in range(60)]
  one, other = (dominant(source(), frames(film)) for _ in range(2))
  np.testing.assert_array_equal(one.box, other.box)
  np.testing.assert_array_equal(one.landmarks, other.landmarks)


@pytest.mark.parametrize("scale", [0.5, 2])
def test_boxes_do_not_depend_on_the_resolution(scale):
  size = {"width": round(360 * scale), "height": round(288 * scale)}
  x, y, side = 200, 150, 180
  film = [picture((x * scale, y * scale, side * scale), **size)] * 5
  track = dominant(open_faces("a.mp4", "mediapipe", info=info(**size))[0], frames(film))
  assert off(track.box[2], x, y, side) < 0.05


def test_boxes_agree_with_those_of_synthtalk(tmp_path):
  """The crop size agrees within 8 % in every clip and 4 % on average, the mouth within one pixel of 64."""
  sizes, mouths = [], []
  for index in range(4):
    path = write_clip(make_clip(index, seed=11, split="train", seconds=1.0), tmp_path, size=224)
    facts = video.probe(path)
    opened = [open_faces(path, name, info=facts)[0] for name in ("mediapipe", "precomputed")]
    tracks = [dominant(one, video.read_frames(path)) for one in opened]
    assert (tracks[0].track == 0).all()
    side = [np.percentile((track.box[:, 2:] - track.box[:, :2]).max(1), 90) for track in tracks]
    sizes.append(side[0] / side[1])
    lips = [track.landmarks[:, list(track.mouth)] for track in tracks]
    middle = [(points.min(1) + points.max(1)) / 2 for points in lips]
    mouths.append(np.abs(middle[0] - middle[1]).mean() / (1.4 * side[1]))
  assert np.abs(np.array(sizes) - 1).max() < 0.08 and abs(np.mean(sizes) - 1) < 0.04
  assert max(mouths) < 1 / 64
