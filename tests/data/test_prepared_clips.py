"""Contents of prepared clips: pictures, sound, landmarks, truth, lengths."""

from __future__ import annotations

import json
from fractions import Fraction

import av
import numpy as np
import pytest
from footage import clicks, number_of, numbered, write_video
from preparing import SIZE, by_file, run, talk

from synclipmae_jax.data import records
from synclipmae_jax.data.media import audio, video
from synclipmae_jax.data.pipeline import eval_clips
from synclipmae_jax.data.synthtalk import corpus


def test_one_clip_holds_the_same_time_in_picture_and_sound(tmp_path):
  """29.97 fps and 44.1 kHz stereo: frame t shows the picture that covers t / 25, and the click is at its sample."""
  (tmp_path / "raw").mkdir()
  fps, count = Fraction(30000, 1001), 239
  sound = clicks(8, [1.0], rate=44100, noise=0.02)
  images = map(numbered, range(count))
  write_video(tmp_path / "raw" / "a.mov", images, fps=fps, sound=sound, rate=44100, layout="stereo")
  manifest = run(tmp_path / "raw", tmp_path / "out", size=64)
  (entry,) = manifest.entries
  (clip,) = entry["clips"]
  assert clip["frames"] == 200 and entry["source"]["fps"] == pytest.approx(29.97, abs=0.01)
  record = records.open_records(tmp_path / "out", split="train")[0]
  shown = video.read_windows(record["mp4"], [0], count=200, size=64)[0]
  assert [number_of(image) for image in shown] == [int(Fraction(t, 25) * fps) for t in range(200)]
  heard = audio.decode_flac(record["flac"])
  assert len(heard) == 200 * 640
  assert abs(np.abs(heard).argmax() - 16000) <= 16


def test_gaps_cuts_and_length_divide_a_file(tmp_path):
  raw = tmp_path / "raw"
  raw.mkdir()
  rng = np.random.default_rng(0)
  shots = rng.integers(0, 255, (2, 8, 8, 3)).astype(np.uint8)
  shots[1] //= 4
  images = [np.kron(shots[int(t >= 150)], np.ones((16, 16, 1), np.uint8)) for t in range(500)]
  write_video(raw / "a.mp4", images, sound=clicks(20, [], noise=0.1))
  boxes = np.tile(np.float32([40, 30, 90, 95]), (500, 1))
  boxes[60:80] = np.nan  # no face
  np.savez(raw / "a.faces.npz", boxes=boxes)
  (entry,) = run(raw, tmp_path / "out", faces="auto", max_seconds=8).entries
  spans = [(clip["start"], clip["start"] + clip["frames"]) for clip in entry["clips"]]
  assert spans == [(0, 60), (80, 150), (150, 325), (325, 500)]
  assert entry["source"]["faces"] == "precomputed"


def test_where_the_sound_is_missing_there_is_no_clip(tmp_path):
  (tmp_path / "raw").mkdir()
  write_video(
    tmp_path / "raw" / "late.mkv", map(numbered, range(200)), sound_times=[(2.0, clicks(4, [], noise=0.1))],
    sound_codec="flac",
  )  # fmt: skip
  (entry,) = run(tmp_path / "raw", tmp_path / "out").entries
  ((start, stop),) = [(clip["start"], clip["start"] + clip["frames"]) for clip in entry["clips"]]
  assert 47 <= start <= 50 and 150 <= stop <= 153


def test_landmarks_and_truth_follow_the_crop_and_the_clock(tmp_path):
  """A 50 fps source: boxes, landmarks and truth are rows of source frames, in pixels of the source."""
  raw = tmp_path / "raw"
  (raw / "train").mkdir(parents=True)
  (raw / "corpus.json").write_text(
    json.dumps({"name": "synthtalk", "version": "1", "seed": 0, "splits": {"train": 1}, "expressions": ["calm", "joy"],
                "actions": ["nod", "turn"]})
  )  # fmt: skip
  stem = raw / "train" / "train_00000"
  count = 160
  write_video(stem.with_suffix(".mp4"), (np.full((200, 300, 3), 99, np.uint8) for _ in range(count)), fps=50,
              sound=clicks(count / 50, [], noise=0.1))  # fmt: skip
  box = np.tile(np.float32([100, 50, 180, 130]), (count, 1))
  lips = np.float32([[120, 100], [160, 120]]) + np.arange(count, dtype=np.float32)[:, None, None] / 16
  landmarks = np.concatenate([np.zeros((count, 1, 2), np.float32), lips], 1)
  np.savez(stem.with_suffix(".faces.npz"), boxes=box, landmarks=landmarks, scores=np.ones(count), schema="three",
           mouth=np.array([1, 2]))  # fmt: skip
  labels = json.dumps({"expression": "joy", "actions": ["turn"]})
  truth = np.arange(count, dtype=np.float32)[:, None]
  np.savez(stem.with_suffix(".truth.npz"), truth=truth, names=np.array(["mouth/t"]), lag=-3, identity="ann",
           voice="bob", text="hello", labels=labels)  # fmt: skip
  run(raw, tmp_path / "out", faces="auto", size=64)
  record = records.open_records(tmp_path / "out", split="train")[0]
  assert record["n_frames"] == 80 and record["truth"][:, 0].tolist() == list(range(0, 160, 2))
  assert record["truth_names"] == ["mouth/t"] and record["text"] == "hello" and record["identity"] == "ann"
  assert (record["lag"], record["has_lag"], record["emotion"], record["actions"]) == (-3, 1, "joy", ("turn",))
  assert record["landmark_schema"] == "three" and record["speaker"] == "bob" and record["words"] == ()
  side = 1.4 * 80
  corner = np.array([140, 90]) - side / 2
  np.testing.assert_allclose(record["face_box"][5], (box[0] - np.tile(corner, 2)) / side, atol=0.01)
  np.testing.assert_allclose(record["landmarks"][30, 1:], (lips[60] - corner) / side, atol=0.01)
  mouth = record["mouth_box"][30]
  assert (mouth[:2] < record["landmarks"][30, 1]).all() and (mouth[2:] > record["landmarks"][30, 2]).all()
  assert record["preprocessing"]["size"] == 64 and record["preprocessing"]["fps"] == 25


def test_synthtalk_brings_its_truth(tmp_path):
  corpus.write_corpus(tmp_path / "raw", clips={"train": 1, "test": 2}, seconds=2, size=48, workers=1, progress=False)
  (tmp_path / "raw" / "test" / "test_00000.mp4").unlink()
  found = by_file(run(tmp_path / "raw", tmp_path / "out", faces="auto"))
  assert "missing" in found["test/test_00000.mp4"]["reason"]
  (clip,) = eval_clips(tmp_path / "out", split="test", image_size=SIZE)
  known = np.load(tmp_path / "raw" / "test" / "test_00001.truth.npz")
  assert clip.corpus == "synthtalk" and clip.key == "test/test_00001.mp4#0" and clip.text == str(known["text"])
  assert clip.lag == int(known["lag"]) != 0 and clip.identity == str(known["identity"])
  assert clip.truth_names == tuple(known["names"]) and {name.split("/")[0] for name in clip.truth_names} == {
    "identity", "mouth", "ambient",
  }  # fmt: skip
  np.testing.assert_array_equal(clip.truth, known["truth"])
  assert (clip.mouth_box[:, :2] >= clip.face_box[:, :2] - 0.02).all()
  record = records.open_records(tmp_path / "out", split="train")[0]
  description = json.loads((tmp_path / "raw" / "corpus.json").read_text())
  named = np.load(tmp_path / "raw" / "train" / "train_00000.truth.npz")
  labels = json.loads(str(named["labels"]))
  assert record["emotion"] == labels["expression"] and list(record["actions"]) == labels["actions"]
  assert records.open_records(tmp_path / "out", split="train").vocabularies == {
    "emotion": description["expressions"], "actions": description["actions"],
  }  # fmt: skip
  assert record["speaker"] == str(named["voice"]) and record["text_source"] == "synthetic"
  assert " ".join(word.label for word in record["words"]) == record["text"] == str(named["text"])
  assert [list(word) for word in record["words"]] == json.loads(str(named["words"]))


def test_clips_of_one_length_leave_a_rest(tmp_path):
  (tmp_path / "raw").mkdir()
  talk(tmp_path / "raw" / "a.mp4", count=110)
  (entry,) = run(tmp_path / "raw", tmp_path / "out", min_seconds=2, max_seconds=2).entries
  assert [(clip["start"], clip["frames"]) for clip in entry["clips"]] == [(0, 50), (50, 50)]


def test_a_damaged_picture_is_in_no_clip(tmp_path):
  (tmp_path / "raw").mkdir()
  path = talk(tmp_path / "raw" / "a.mkv", count=200, codec="mjpeg")
  with av.open(str(path)) as container:
    content = [bytes(packet) for packet in container.demux(video=0)][100]
  path.write_bytes(path.read_bytes().replace(content, bytes(len(content))))
  (entry,) = run(tmp_path / "raw", tmp_path / "out").entries
  assert [(clip["start"], clip["frames"]) for clip in entry["clips"]] == [(0, 100), (101, 99)]
  assert "damaged at 4.00 s" in entry["source"]["notes"][0]
