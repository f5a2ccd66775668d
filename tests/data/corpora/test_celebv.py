from __future__ import annotations

import json
import pickle

import pytest
from footage import clicks, numbered, write_video
from trees import YOUTUBE, celebv_entry, celebvhq, celebvtext, hq_attributes, write

from synclipmae_jax.data import corpora, prepare, records
from synclipmae_jax.data.corpora import celebvtext as text_corpus
from synclipmae_jax.data.pipeline import Source, eval_clips, train_batches
from synclipmae_jax.types import InputError, Segment

CLIP = f"{YOUTUBE[0]}_0"


def listed(raw, corpus):
  return {item.path.stem: item for item in corpora.load(corpus)(raw)}


def hq(raw, emotion, **known):
  attributes = hq_attributes(emotion, actions=("talk", "blow"), appearance=("male",)) | known.pop("attributes", {})
  return celebvhq(raw, clips={CLIP: celebv_entry(YOUTUBE[0], attributes=attributes) | known})


def test_the_labels_of_celebvhq(tmp_path):
  item = listed(hq(tmp_path, {"sep_flag": False, "labels": "Angry"}), "auto")[CLIP]
  assert (item.emotion, item.actions, item.appearance) == ("anger", ("blow", "talk"), ("male",))
  assert item.identity == item.split_group == YOUTUBE[0] and item.key == f"processed/{CLIP}.mp4"
  assert item.provenance == {
    "youtube": YOUTUBE[0], "start_s": "1.5", "end_s": "9.25", "box": "0.2 0.1 0.5 0.6 fractions", "version": "v0.1"
  }  # fmt: skip
  assert len(item.vocabularies["actions"]) == 35 and item.vocabularies["appearance"][-1] == "wearing_hat"
  parts = [{"emotion": "sad", "start_sec": 0, "end_sec": 2.5}, {"emotion": "neutral", "start_sec": 2.5, "end_sec": 4}]
  item = listed(hq(tmp_path, {"sep_flag": True, "labels": parts}), "celebvhq")[CLIP]
  assert item.emotion == "" and item.emotion_segments == (Segment(0, 2.5, "sadness"), Segment(2.5, 4, "neutral"))


@pytest.mark.parametrize(
  ("emotion", "known", "words"),
  [
    ({"sep_flag": True, "labels": [{"emotion": "sad", "start_sec": 3, "end_sec": 2}]}, {}, "sadness from 3 to 2 s"),
    ({"sep_flag": True, "labels": "sad"}, {}, "damaged"),
    ({"sep_flag": False, "labels": ["sad"]}, {}, "is no name"),
    (None, {}, "damaged"),
    ({"sep_flag": False, "labels": "sad"}, {"attributes": {"action": [0, 1]}}, "2 flags for 35 names"),
    ({"sep_flag": False, "labels": "sad"}, {"attributes": {"appearance": [0, 2, 0, 0]}}, "not 0 and 1"),
  ],
)
def test_damaged_labels_of_a_clip_cost_the_labels_and_are_named(tmp_path, emotion, known, words):
  item = listed(hq(tmp_path, emotion, **known), "celebvhq")[CLIP]
  assert (item.emotion, item.emotion_segments, item.actions, item.appearance) == ("", (), None, None)
  assert words in item.provenance["labels"]


def test_damaged_times_and_boxes_are_named_and_labels_may_be_absent(tmp_path):
  for known in ({"bbox": {"top": 1}}, {"bbox": [1, 2]}, {"duration": {"start_sec": "soon"}}, {"duration": 3}):
    item = listed(hq(tmp_path, {"sep_flag": False, "labels": "sad"}, **known), "celebvhq")[CLIP]
    assert item.provenance["damaged"] and "box" not in item.provenance and item.emotion == "sadness"
  bare = celebvhq(tmp_path, clips={CLIP: {}})
  item = listed(bare, "celebvhq")[CLIP]
  assert item.actions is None and item.emotion == "" and item.identity == YOUTUBE[0]


def test_an_unknown_emotion_is_refused_by_name(tmp_path):
  timed = {"emotion": "bored", "start_sec": 0, "end_sec": 1}
  for emotion in ({"sep_flag": False, "labels": "bored"}, {"sep_flag": True, "labels": [timed]}):
    with pytest.raises(InputError, match=rf"clip {CLIP} has the unknown emotion 'bored': known are neutral, anger"):
      listed(hq(tmp_path, emotion), "celebvhq")


@pytest.mark.parametrize(
  ("content", "words"),
  [
    ("{}", "meta_info is a NoneType, not a mapping"),
    ('{"meta_info": {"action_mapping": [1]}}', "action_mapping is no list of names"),
    ('{"meta_info": {"action_mapping": [], "appearance_mapping": []}, "clips": []}', "clips is a list"),
    ('{"meta_info": {"action_mapping": [], "appearance_mapping": []}, "clips": {"a_1": 3}}', "clip a_1 is a int"),
    ('{"meta_info": {"action_mapping": [], "appearance_mapping": []}, "clips": {"../../etc/a": {}}}', "is called"),
    (r'{"meta_info": {"action_mapping": [], "appearance_mapping": []}, "clips": {"a\ud800": {}}}', "is called"),
    (r'{"meta_info": {"action_mapping": [], "appearance_mapping": []}, "clips": {"a\u0000": {}}}', "is called"),
  ],
)
def test_a_damaged_json_is_one_sentence(tmp_path, content, words):
  write(tmp_path / "celebvhq_info.json", content)
  with pytest.raises(InputError, match=words):
    listed(tmp_path, "celebvhq")
  for corpus in ("celebvhq", "celebvtext"):
    with pytest.raises(InputError, match="there is no celebv"):
      listed(tmp_path / "empty", corpus)


def test_files_are_found_anywhere_once_and_missing_ones_are_listed(tmp_path):
  raw = celebvhq(tmp_path)
  (raw / "processed" / f"{CLIP}.mp4").rename(write(raw / "cropped" / "x").with_name(f"{CLIP}.mkv"))
  write(raw / "raw" / f"{YOUTUBE[0]}.mp4")
  write(raw / "raw" / f"{YOUTUBE[1]}_0.mp4")  # a video that is named like a clip
  write(raw / "processed" / "stranger_0.mp4")
  (raw / "processed" / f"{YOUTUBE[2]}_0.mp4").unlink()
  found = listed(raw, "celebvhq")
  assert len(found) == 2 * len(YOUTUBE) and "stranger_0" not in found and YOUTUBE[0] not in found
  assert found[CLIP].key == f"cropped/{CLIP}.mkv"
  assert found[f"{YOUTUBE[1]}_0"].key == f"processed/{YOUTUBE[1]}_0.mp4"
  missing = found[f"{YOUTUBE[2]}_0"]
  assert missing.key == f"processed/{YOUTUBE[2]}_0.mp4" and not missing.path.exists()


def test_the_actions_of_celebvtext_and_both_of_its_sets(tmp_path):
  found = listed(celebvtext(tmp_path), "auto")
  assert len(found) == 2 * len(YOUTUBE), "the second set repeats a key"
  assert found[f"{CLIP}_0"].identity == YOUTUBE[0], "as in the first set"
  for item in (found[f"{CLIP}_0"], found[f"{YOUTUBE[0]}_1"]):  # named with the further number, and without
    assert item.actions == ("talk", "shake_head") and item.emotion == "" and item.appearance is None
    assert item.action_segments == (Segment(0, 2.5, "talk"), Segment(1, 1.5, "shake_head"))
    assert item.provenance["box"] == "40 100 552 612 pixels" and item.provenance["actions"] == "annotations.pkl"
  assert len(item.vocabularies["actions"]) == 37 and item.vocabularies.keys() == {"actions"}


def test_the_older_json_of_celebvtext_has_its_clips_at_the_top(tmp_path):
  entry = celebv_entry("v", duration={"start_frame": 415.29, "end_frame": 420})
  write(tmp_path / "celebvtext_info.json", json.dumps({"v_0": entry}))
  item = listed(tmp_path, "auto")["v_0"]
  assert (item.provenance["start_s"], item.provenance["actions"], item.actions) == ("415.29", "missing", None)


def annotated(raw, acts):
  celebvtext(raw)
  write(raw / "annotations.pkl", pickle.dumps({"act": acts}))
  return listed(raw, "celebvtext")[f"{YOUTUBE[0]}_1"]


def test_times_in_another_unit_and_several_annotations(tmp_path):
  key = f"{YOUTUBE[0]}_1"
  for times in ([0, 250, 10.0, 0], [0, 1], None, [3, 1, -2]):
    item = annotated(tmp_path, {f"{key}_0": [["Talk", times], ["squint", [0, 1, 1, 1]]]})
    assert item.actions == ("talk", "squint") and item.action_segments == ()
    assert item.provenance["actions"] == "without times"
  item = annotated(tmp_path, {f"{key}_0": [], f"{key}_1": [["talk", [0, 1, 1, 0]]]})
  assert item.actions is None and item.provenance["actions"] == "ambiguous"
  assert annotated(tmp_path, {f"{key}_0": []}).actions == ()


@pytest.mark.parametrize(
  ("acts", "words"),
  [
    ({"a_0_0": [["fly", [0, 1, 1, 0]]]}, r"a_0_0 has the unknown action 'fly': known are blow, chew"),
    ({"a_0_0": [3]}, "unknown action 3"),
    ({"a_0_0": "talk"}, "the actions of 'a_0_0' are no list"),
    ({1: []}, "the actions of 1 are no list"),
    (None, "act is a NoneType"),
  ],
)
def test_other_pickles_of_celebvtext_are_one_sentence(tmp_path, acts, words):
  with pytest.raises(InputError, match=words):
    annotated(tmp_path, acts)
  assert text_corpus.ACTIONS[-2:] == ("blink", "squint")


def test_celebvhq_from_raw_files_to_a_batch(tmp_path):
  parts = [{"emotion": "sad", "start_sec": 0, "end_sec": 1}, {"emotion": "neutral", "start_sec": 1, "end_sec": 2}]
  attributes = hq_attributes({"sep_flag": True, "labels": parts}, actions=("talk",), appearance=("young",))
  keys = [f"{video}_0" for video in YOUTUBE[:4]]
  raw = celebvhq(tmp_path / "raw", clips={key: celebv_entry(key[:-2], attributes=attributes) for key in keys})
  for key in keys[:3]:
    sound = clicks(2, [], noise=0.1)
    write_video(raw / "processed" / f"{key}.mp4", map(numbered, range(50)), sound=sound)
  (raw / "processed" / f"{keys[3]}.mp4").unlink()
  manifest = prepare.prepare(raw, tmp_path / "out", faces="full_frame", size=32, progress=False)
  outcomes = {entry["file"]: entry["reason"] for entry in manifest.entries}
  assert outcomes == {f"processed/{key}.mp4": "the file is missing" if key == keys[3] else "" for key in keys}
  assert manifest.summary()["labelled"]["appearance"] == 3
  kept = {entry["split"] for entry in manifest.entries if entry["outcome"] == "accepted"}
  for split in kept:
    clip = next(iter(eval_clips(tmp_path / "out", split=split, image_size=32)))
    assert (clip.corpus, clip.emotion, clip.actions, clip.appearance) == ("celebvhq", "", ("talk",), ("young",))
    assert clip.emotion_segments == (Segment(0, 1, "sadness"), Segment(1, 2, "neutral"))
  opened = records.open_records(tmp_path / "out", split="train")
  assert len(opened.vocabularies["actions"]) == 35 and opened[0]["provenance"]["start_s"] == "1.5"
  batch = next(
    train_batches(
      [Source(directory=tmp_path / "out")],
      split="train",
      seed=0,
      batch_size=2,
      clip_frames=8,
      audio_context_frames=16,
      image_size=32,
    )  # fmt: skip
  )
  assert batch["frames"].shape == (2, 8, 32, 32, 3)
