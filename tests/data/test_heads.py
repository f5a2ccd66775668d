"""SynthTalk's heads in 3D."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from synclipmae_jax.data.synthtalk import geometry, phones
from synclipmae_jax.data.synthtalk.clip import before_camera, is_solid, make_clip
from synclipmae_jax.data.synthtalk.corpus import write_corpus
from synclipmae_jax.data.synthtalk.head import Stage, face_boxes
from synclipmae_jax.data.synthtalk.motion import AMBIENT
from synclipmae_jax.types import InputError

INDEX = {name: k for k, name in enumerate(geometry.LANDMARKS)}


def clip_of(person, *, mouth=("aa",), **ambient):
  """A clip with one frame for each phone of `mouth`. `ambient` sets what it names; all other motion is at rest."""
  clip = make_clip(2 * person, seed=0, split="train", seconds=2)
  track = np.zeros((len(mouth), len(AMBIENT)))
  for name, values in ambient.items():
    track[:, AMBIENT.index(name)] = values
  shapes = phones.TABLE[[phones.NAMES.index(name) for name in mouth], : len(phones.MOUTH)]
  return dataclasses.replace(clip, mouth=shapes, ambient=track, occluder=np.tile([0.0, 3.0], (len(mouth), 1)))


def test_the_same_clip_gives_the_same_pictures():
  clip = clip_of(1, mouth=("aa", "m"))
  first, again, other = (Stage(who, 48).pictures() for who in (clip, clip, clip_of(2, mouth=("aa", "m"))))
  np.testing.assert_array_equal(first, again)
  assert np.abs(first.astype(int) - other).mean() > 10


@pytest.mark.parametrize("person", [0, 3, 5])
def test_the_lips_part_as_the_parameter_says(person):
  opening = np.linspace(0, 1, 11)
  clip = clip_of(person, mouth=["aa"] * 11)
  for jaw, rounding, smile in ((0.0, 0.0, 0.0), (0.8, 0.0, 0.0), (0.4, 0.9, 0.0), (0.4, 0.0, 0.8)):
    values = {
      "opening": opening,
      "jaw": jaw * opening,
      "rounding": rounding,
      "width": 0,
      "teeth": 0,
      "tongue": 0,
      "tuck": 0,
    }
    mouth = np.stack([np.broadcast_to(values[name], 11) for name in phones.MOUTH], axis=1)
    ambient = clip.ambient.copy()
    ambient[:, AMBIENT.index("smile")] = smile
    points = Stage(dataclasses.replace(clip, mouth=mouth, ambient=ambient), 224).landmarks()
    gap = points[:, INDEX["lower_inner_1"], 1] - points[:, INDEX["upper_inner_1"], 1]
    assert (np.diff(gap) > 0 if jaw else np.diff(gap) >= 0).all() and gap[0] < 3
    assert not jaw or (np.corrcoef(gap, opening)[0, 1] > 0.99 and gap[-1] > 8)


def test_a_face_turns_as_the_truth_says():
  turns = dict(yaw=[0, 0.7, 0, 0], pitch=[0, 0, 0.3, 0], roll=[0, 0, 0, 0.25])
  points = Stage(clip_of(0, mouth=["sil"] * 4, **turns), 224).landmarks()
  eyes = points[:, [INDEX["left_eye_outer"], INDEX["right_eye_outer"]]]
  nose = points[:, INDEX["nose_tip"]] - eyes.mean(axis=1)
  assert nose[1, 0] > nose[0, 0] + 15  # to the right
  assert nose[2, 1] > nose[0, 1] + 5  # downwards
  slope = np.arctan2(*(eyes[:, 1] - eyes[:, 0]).T[::-1])
  np.testing.assert_allclose(slope[[0, 3]], [0, 0.25], atol=0.02)  # clockwise


def test_the_picture_has_the_mouth_where_the_landmarks_are():
  for yaw in (-0.6, 0.0, 0.6):
    clip = clip_of(3, mouth=("aa", "m"), yaw=yaw)
    stage = Stage(clip, 160)
    frames, points = stage.pictures().astype(float), stage.landmarks()
    boxes = face_boxes(points)
    assert (boxes[:, :2] < points.min(axis=1)).all() and (boxes[:, 2:] > points.max(axis=1)).all()
    low, high = points[0][geometry.MOUTH_LANDMARKS].min(axis=0), points[0][geometry.MOUTH_LANDMARKS].max(axis=0)
    change = np.abs(frames[0] - frames[1]).mean(axis=2)
    y, x = np.unravel_index(np.argsort(change.ravel())[-100:], change.shape)
    room = 0.2 * (high - low)
    inside = (x > low[0] - room[0]) & (x < high[0] + room[0]) & (y > low[1] - room[1]) & (y < high[1] + room[1])
    assert inside.mean() > 0.8, yaw
    x, y = points[0, [INDEX["upper_inner_1"], INDEX["lower_inner_1"]]].mean(axis=0).round().astype(int)
    cheek = points[0, [INDEX["left_eye_bottom"], INDEX["mouth_left"]]].mean(axis=0).round().astype(int)
    assert frames[0, y, x].sum() < 0.7 * frames[0, cheek[1], cheek[0]].sum()


def test_the_face_tracker_sees_faces():
  pytest.importorskip("ai_edge_litert")
  from synclipmae_jax.data.faces.mediapipe import MediaPipe

  tracker, differences = MediaPipe(), []
  for person, yaw in enumerate((0.0, 0.7, -0.5, 0.3)):
    stage = Stage(clip_of(person, mouth=("aa", "m", "uw"), yaw=yaw), 160)
    points = stage.landmarks()
    for picture, ours, box in zip(stage.pictures(), points, face_boxes(points), strict=True):
      (face,) = tracker.everywhere(picture, known=[], closely=False)
      side = (box[2:] - box[:2]).max()
      theirs = face.landmarks[list(tracker.landmarks)][list(tracker.mouth)] * 160
      lips = ours[geometry.MOUTH_LANDMARKS]
      middles = [(p.min(axis=0) + p.max(axis=0)) / 2 for p in (lips, theirs)]
      differences.append([*(face.box * 160 - box) / side, *(middles[1] - middles[0]) / side])
  assert np.abs(np.mean(differences, axis=0)).max() < 0.05
  assert np.abs(differences).max() < 0.15


def test_the_camera_is_part_of_the_truth():
  clips = [make_clip(index, seed=0, split="test", seconds=2) for index in range(60)]
  turned = [before_camera(clip) for clip in clips]
  yaw = np.array([clip.ambient[:, AMBIENT.index("yaw")] for clip in turned])
  assert np.abs(yaw).max() < 0.8 and (np.abs(yaw).mean(axis=1) > 0.35).mean() > 0.2
  others = [k for k, name in enumerate(AMBIENT) if name not in ("yaw", "pitch")]
  for before, after in zip(clips, turned, strict=True):
    np.testing.assert_array_equal(before.ambient[:, others], after.ambient[:, others])
    np.testing.assert_array_equal(before.mouth, after.mouth)


def test_a_mixed_corpus_has_both_kinds_and_says_so(tmp_path):
  settings = dict(clips={"train": 3}, seconds=2, size=48, seed=0, workers=1, progress=False)
  path = write_corpus(tmp_path, heads="mixed", **settings)
  assert json.loads(path.read_text())["heads"] == "mixed"
  for index in range(3):
    clip = make_clip(index, seed=0, split="train", seconds=2)
    truth = np.load(tmp_path / "train" / f"{clip.key}.truth.npz")["truth"]
    assert is_solid(clip, "mixed") == (index < 2) == bool((truth != clip.truth).any())
    assert np.load(tmp_path / "train" / f"{clip.key}.faces.npz")["boxes"].shape == (50, 4)
  with pytest.raises(InputError, match="heads is mixed, not flat"):
    write_corpus(tmp_path, **settings)
  with pytest.raises(InputError, match="flat, 3d, mixed"):
    write_corpus(tmp_path / "other", heads="round", **settings)
