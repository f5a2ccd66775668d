"""The points of the face that training reads from the landmarks of its records."""

import numpy as np
import pytest

from synclipmae_jax.data.faces.keypoints import keypoints
from synclipmae_jax.data.faces.mediapipe import MediaPipe
from synclipmae_jax.data.synthtalk.clip import make_clip
from synclipmae_jax.data.synthtalk.corpus import write_clip
from synclipmae_jax.data.synthtalk.geometry import LANDMARKS
from synclipmae_jax.types import KEYPOINTS

COUNTS = {"synthtalk": len(LANDMARKS), MediaPipe.schema: len(MediaPipe.landmarks)}


@pytest.mark.parametrize("schema", COUNTS)
def test_points_are_means_of_landmarks_and_minus_one_where_unknown(schema):
  landmarks = np.random.default_rng(0).uniform(0, 1, (5, COUNTS[schema], 2)).astype(np.float32)
  landmarks[3] = -1
  found = keypoints({"landmarks": landmarks, "landmark_schema": schema}, 1, 4)["keypoints"]
  assert found.shape == (4, len(KEYPOINTS), 2) and found.dtype == np.float32
  np.testing.assert_array_equal(found[2], -1)
  low, high = landmarks[[1, 2, 4]].min(axis=1), landmarks[[1, 2, 4]].max(axis=1)
  assert ((found[[0, 1, 3]] >= low[:, None]) & (found[[0, 1, 3]] <= high[:, None])).all()
  if schema == "synthtalk":
    brow = landmarks[1, LANDMARKS.index("left_brow_1")]
    np.testing.assert_array_equal(found[0, KEYPOINTS.index("left_brow")], brow)


def test_other_landmarks_give_no_points():
  record = {"landmarks": np.zeros((4, 5, 2), np.float32), "landmark_schema": "dlib5"}
  np.testing.assert_array_equal(keypoints(record, 0, 4)["keypoints"], -1)


def test_points_of_a_rendered_face_lie_as_their_names_say(synthtalk_face):
  at = dict(zip(KEYPOINTS, synthtalk_face, strict=True))
  for left in [name for name in KEYPOINTS if name.startswith("left")]:
    assert at[left][0] < at[left.replace("left", "right")][0]
  for side in ("left", "right"):
    assert at[f"{side}_brow"][1] < at[f"{side}_lid_upper"][1] < at[f"{side}_lid_lower"][1] < at["upper_lip"][1]
  downwards = [at[name][1] for name in ("upper_lip", "upper_lip_inner", "lower_lip_inner", "lower_lip", "chin")]
  assert downwards == sorted(downwards)


@pytest.fixture
def synthtalk_face(tmp_path):
  """The mean points of a SynthTalk clip."""
  clip = make_clip(0, seed=0, split="test", seconds=2.0)
  write_clip(clip, tmp_path, size=32)
  with np.load(tmp_path / f"{clip.key}.faces.npz") as sidecar:
    record = {"landmarks": sidecar["landmarks"] / 32, "landmark_schema": str(sidecar["schema"])}
  return keypoints(record, 0, clip.frames)["keypoints"].mean(axis=0)
