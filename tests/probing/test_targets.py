import numpy as np
import pytest

from synclipmae_jax.data.synthtalk.clip import TRUTH_NAMES, make_clip
from synclipmae_jax.data.synthtalk.shown import SHOWN, shown_actions
from synclipmae_jax.probing import targets
from synclipmae_jax.types import InputError

VOCABULARIES = {"emotion": ("neutral", "happy", "sad"), "actions": ("nod", "wink")}


def record(key="k", **known):
  return {"key": key, "identity": "p", "emotion": "", "actions": None, **known}


def test_one_emotion_a_clip_and_clips_without_are_left_out():
  classes = targets.classes_of("emotion", VOCABULARIES)
  found = targets.label_clips(
    [record("a", emotion="sad"), record("b"), record("c", emotion="neutral")], "emotion", classes
  )
  np.testing.assert_array_equal(found.targets, [[0, 0, 1], [1, 0, 0]])
  assert (found.keys, found.rows.tolist(), found.unlabelled) == (("a", "c"), [0, 2], 1)


def test_actions_that_nobody_knows_are_not_absent_actions():
  classes = targets.classes_of("actions", VOCABULARIES)
  found = targets.label_clips(
    [record("a", actions=("wink", "nod")), record("b"), record("c", actions=())], "actions", classes
  )
  np.testing.assert_array_equal(found.targets, [[1, 1], [0, 0]])
  assert found.keys == ("a", "c") and found.unlabelled == 1


def test_classes_that_are_left_out():
  classes = targets.classes_of("emotion", VOCABULARIES, ["happy"])
  assert classes == ["neutral", "sad"]
  assert targets.label_clips([record(emotion="happy")], "emotion", classes).unlabelled == 1
  with pytest.raises(InputError, match="leave_out names 'calm', which is no class: neutral, happy, sad"):
    targets.classes_of("emotion", VOCABULARIES, ["calm"])


def test_labels_that_are_missing_or_unknown():
  with pytest.raises(InputError, match=r"have no labels 'actions' \(vocabularies: none\)"):
    targets.classes_of("actions", {})
  with pytest.raises(InputError, match="unknown data.labels 'mood': one of emotion, actions, shown"):
    targets.classes_of("mood", VOCABULARIES)


def still(**values):
  truth = np.zeros((20, len(TRUTH_NAMES)), np.float32)
  for name, (value, frames) in values.items():
    truth[:frames, TRUTH_NAMES.index(f"ambient/{name}")] = value
  return shown_actions(truth, TRUTH_NAMES)


def test_what_a_face_shows_is_read_from_its_true_motion():
  assert still() == ()
  assert still(smile=(0.9, 20), yaw=(-0.3, 5)) == ("smile", "turn_left")
  assert still(yaw=(-0.3, 4)) == ()  # in less than a quarter of the frames
  assert still(blink_left=(1, 1), blink_right=(1, 1)) == ("blink",)
  assert still(blink_left=(1, 1)) == ("wink",)
  assert shown_actions(np.zeros((3, 1)), ("ambient/yaw",)) is None  # not SynthTalk's
  assert shown_actions(np.zeros((3, 0)), ()) is None


def test_an_expression_of_synthtalk_shows_its_parts():
  clips = [make_clip(index, seed=0, split="train", seconds=2.0) for index in range(40)]
  shown = {clip.key: shown_actions(clip.truth, TRUTH_NAMES) for clip in clips}
  assert {name for names in shown.values() for name in names} == {*SHOWN}
  expected = {"happy": "smile", "angry": "brows_lowered", "surprise": "eyes_wide", "contempt": "smirk"}
  for clip in clips:
    if clip.expression in expected:
      assert expected[clip.expression] in shown[clip.key], clip.key
