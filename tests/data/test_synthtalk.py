from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys

import av
import numpy as np
import pytest

from synclipmae_jax.data.synthtalk import clip as clips
from synclipmae_jax.data.synthtalk import corpus, geometry, grammar, phones
from synclipmae_jax.data.synthtalk.clip import MAX_LAG, make_clip, parameter_hash
from synclipmae_jax.data.synthtalk.corpus import write_corpus
from synclipmae_jax.data.synthtalk.motion import AMBIENT
from synclipmae_jax.types import SAMPLE_RATE, SAMPLES_PER_FRAME, InputError

OPENING = phones.MOUTH.index("opening")


def loudness(clip):
  energy = np.square(clip.waveform().reshape(clip.frames, SAMPLES_PER_FRAME)).mean(axis=1)
  return np.log(energy / energy.mean() + 1e-2)


def lag_of(opening, level):
  """The lag in frames with the largest correlation of mouth opening and loudness; positive: the mouth lags."""
  lags = range(-15, 16)
  inside = slice(15, len(level) - 15)
  return max(lags, key=lambda lag: np.corrcoef(np.roll(opening, -lag)[inside], level[inside])[0, 1])


def decode(path):
  """Frames [T, S, S, 3], and the sound at its timestamps."""
  with av.open(str(path)) as container:
    frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
  sound = np.zeros(SAMPLES_PER_FRAME * len(frames) + 4096, np.float32)
  with av.open(str(path)) as container:
    for frame in container.decode(audio=0):
      start = round(frame.pts * frame.time_base * SAMPLE_RATE)
      piece = frame.to_ndarray()[0][max(0, -start) :]
      sound[max(0, start) : max(0, start) + len(piece)] = piece
  return frames, sound


@pytest.fixture(scope="module")
def small(tmp_path_factory):
  out = tmp_path_factory.mktemp("synthtalk")
  write_corpus(out, clips={"train": 2, "test": 2}, seconds=2, size=48, seed=3, workers=1, progress=False)
  return out


def test_the_parameters_of_the_first_clips_match_the_version():
  assert corpus.VERSION == "1.1.0"
  assert parameter_hash(seed=0, seconds=6) == "77defabc8668ddcf963a077431f37a44c63471704c4daf6cbc413e61170d6b42"


def test_a_clip_is_a_function_of_seed_split_and_index():
  one, two = (make_clip(4, seed=1, split="test", seconds=3) for _ in range(2))
  np.testing.assert_array_equal(one.truth, two.truth)
  np.testing.assert_array_equal(one.waveform(), two.waveform())
  assert make_clip(4, seed=2, split="test", seconds=3).text != one.text
  assert parameter_hash(seed=0, seconds=3) != parameter_hash(seed=1, seconds=3)


def test_splits_share_no_identity_voice_or_sentence():
  seen = {split: (set(), set(), set(), set()) for split in clips.SPLITS}
  for split, (faces, voices, sentences, vectors) in seen.items():
    for index in range(150):
      clip = make_clip(index, seed=0, split=split, seconds=4)
      words = clip.text.split()
      faces.add(clip.identity)
      voices.add(tuple(clip.voice_parameters))
      vectors.add(tuple(clip.face))
      sentences |= {" ".join(words[at : at + 6]) for at in range(0, len(words), 6)}
  for split in ("test", "val"):
    for train, held_out in zip(seen["train"], seen[split], strict=True):
      assert train and held_out and not train & held_out
  assert len(seen["train"][0]) == len(seen["train"][3]) == 150 // clips.CLIPS_A_PERSON


def test_the_occluder_is_kept_for_the_test_split():
  hidden = {
    split: np.mean([make_clip(i, seed=0, split=split, seconds=2).occluder[0, 1] < 2 for i in range(80)])
    for split in clips.SPLITS
  }
  assert hidden["train"] == 0 and 0.15 < hidden["test"] < 0.45


def test_faces_and_ambient_motion_are_independent_of_the_speech():
  drawn = [make_clip(i, seed=0, split="train", seconds=4) for i in range(0, 240, clips.CLIPS_A_PERSON)]
  face = np.array([clip.face for clip in drawn])
  pitch = np.array([clip.voice_parameters for clip in drawn])
  words = np.array([[word in clip.text.split() for word in grammar.PRONUNCIATION] for clip in drawn], float)
  words = words[:, words.std(axis=0) > 0]
  for other in (pitch, words):
    correlation = np.corrcoef(face.T, other.T)[: face.shape[1], face.shape[1] :]
    assert np.sqrt(np.mean(correlation**2)) < 1.25 / np.sqrt(len(drawn))
  within = [clip.ambient - clip.ambient.mean(axis=0) for clip in drawn]
  opening = np.concatenate([clip.mouth[:, OPENING] - clip.mouth[:, OPENING].mean() for clip in drawn])
  for name, track in zip(AMBIENT, np.concatenate(within).T, strict=True):
    assert abs(np.corrcoef(track, opening)[0, 1]) < 0.06, name


def test_a_face_has_several_texts_and_voices():
  first, again = (make_clip(i, seed=0, split="train", seconds=3) for i in (6, 7))
  assert first.identity == again.identity and first.text != again.text and first.voice != again.voice
  np.testing.assert_array_equal(first.face, again.face)


def test_the_mouth_neither_leads_nor_lags_the_sound_in_training():
  drawn = [make_clip(i, seed=0, split="train", seconds=6) for i in range(24)]
  measured = [lag_of(clip.mouth[:, OPENING], loudness(clip)) for clip in drawn]
  assert all(clip.lag == 0 for clip in drawn)
  assert abs(np.mean(measured)) < 0.5 and np.median(measured) == 0


def test_a_positive_lag_means_that_the_video_lags():
  drawn = [make_clip(i, seed=0, split="test", seconds=6) for i in range(40)]
  lags = [clip.lag for clip in drawn]
  assert all(lag == 0 for lag in lags[::2])
  assert all(1 <= abs(lag) <= MAX_LAG for lag in lags[1::2]) and min(lags) < -3 and max(lags) > 3
  measured = [lag_of(clip.mouth[:, OPENING], loudness(clip)) for clip in drawn]
  assert np.mean(np.abs(np.subtract(measured, lags)) <= 1) > 0.9


def test_a_lagged_picture_does_not_freeze_at_its_ends():
  lagged = [clip for clip in (make_clip(i, seed=0, split="test", seconds=2) for i in range(1, 30, 2)) if clip.lag]
  for clip in lagged:
    moves = np.abs(np.diff(np.concatenate([clip.mouth, clip.ambient], axis=1), axis=0)).max(axis=1)
    assert moves.min() > 1e-5


def test_phones_follow_the_text():
  clip = make_clip(0, seed=0, split="train", seconds=6)
  spelled = [name for word in clip.text.split() for name in grammar.PRONUNCIATION[word]]
  assert [phones.NAMES[k] for k in clip.score.phones if k != phones.SILENCE] == spelled
  assert len(clip.text.split()) % grammar.SENTENCE_WORDS == 0
  silent = clip.phones == phones.SILENCE
  assert 0.08 < silent.mean() < 0.45
  level = loudness(clip)
  assert level[silent].mean() < level[~silent].mean() - 1


def test_word_times_match_the_phones():
  for index in range(5):
    clip = make_clip(index, seed=0, split="test", seconds=6)
    words = clip.score.words
    assert " ".join(word.label for word in words) == clip.text
    assert all(a.end <= b.start for a, b in itertools.pairwise(words)) and 0 < words[0].start < words[-1].end < 6
    sounding = [phones.NAMES[k] for k in clip.phones]
    for word in words:
      first, last = math.ceil(25 * word.start - 0.5), math.ceil(25 * word.end - 0.5)  # frames with their middle inside
      heard = [name for name, _ in itertools.groupby(sounding[first:last])]
      spelled = iter(grammar.PRONUNCIATION[word.label])
      assert heard and all(name in spelled for name in heard)  # a phone can be shorter than a frame
    spoken = sum(word.end - word.start for word in words)
    assert spoken == pytest.approx(6 * np.mean(clip.phones != phones.SILENCE), abs=0.3)


def test_labels_match_the_motion():
  drawn = [make_clip(i, seed=0, split="train", seconds=6) for i in range(200)]
  column = dict(zip(AMBIENT, np.transpose([clip.ambient.mean(axis=0) for clip in drawn]), strict=True))
  expression = np.array([clip.expression for clip in drawn])
  assert len(set(expression)) == 8
  assert column["smile"][expression == "happy"].mean() > 0.3 > -0.2 > column["smile"][expression == "sad"].mean()
  assert column["brow"][expression == "surprise"].min() > column["brow"][expression == "angry"].max()
  winks = np.array([np.ptp(clip.ambient[:, 5] - clip.ambient[:, 6]) > 0.5 for clip in drawn])
  np.testing.assert_array_equal(winks, ["wink" in clip.actions for clip in drawn])


def test_files_decode_and_match_their_sidecar_files(small):
  description = json.loads((small / "corpus.json").read_text())
  assert description["splits"] == {"train": 2, "test": 2} and description["size"] == 48
  assert description["truth_names"] == list(clips.TRUTH_NAMES)
  for split in description["splits"]:
    for index in range(2):
      clip = make_clip(index, seed=3, split=split, seconds=2)
      stem = small / split / f"{split}_{index:05d}"
      frames, sound = decode(stem.with_suffix(".mp4"))
      with av.open(str(stem.with_suffix(".mp4"))) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.pix_fmt, video.average_rate) == ("h264", "yuv420p", 25)
        assert (audio.codec_context.name, audio.rate) == ("aac", SAMPLE_RATE)
      assert frames.shape == (50, 48, 48, 3)
      truth = np.load(stem.with_suffix(".truth.npz"))
      assert truth["truth"].shape == (50, len(clips.TRUTH_NAMES)) and truth["truth"].dtype == np.float32
      assert list(truth["names"]) == list(clips.TRUTH_NAMES) and truth["phones"].shape == (50,)
      assert (int(truth["lag"]), str(truth["text"])) == (clip.lag, clip.text)
      assert json.loads(str(truth["labels"]))["expression"] == clip.expression
      assert [word for _, _, word in json.loads(str(truth["words"]))] == clip.text.split()
      faces = np.load(stem.with_suffix(".faces.npz"))
      assert faces["boxes"].shape == (50, 4) and faces["landmarks"].shape == (50, len(geometry.LANDMARKS), 2)
      heard = sound[: clip.frames * SAMPLES_PER_FRAME]
      assert np.corrcoef(heard, clip.waveform())[0, 1] > 0.9  # lossy AAC at the right time


def test_lips_are_at_their_landmarks():
  from synclipmae_jax.data.synthtalk.render import render

  clip = make_clip(0, seed=0, split="train", seconds=2)
  frames = render(clip, size=112).astype(float)
  assert frames.std() > 20
  tracks = {
    "face": dict(zip(clips.IDENTITY, clip.face, strict=True)),
    "scene": dict(zip(clips.SCENE, clip.scene, strict=True)),
    "mouth": dict(zip(phones.MOUTH, clip.mouth.T, strict=True)),
    "ambient": dict(zip(AMBIENT, clip.ambient.T, strict=True)),
  }
  points = geometry.landmarks(**tracks, size=112)
  boxes = geometry.face_boxes(points)
  assert (boxes[:, :2] <= points.min(axis=1)).all() and (boxes[:, 2:] >= points.max(axis=1)).all()
  index = {name: k for k, name in enumerate(geometry.LANDMARKS)}
  lip = (points[:, index["lower_inner_1"]] + points[:, index["lower_outer_1"]]) / 2
  nose = points[:, index["nose_tip"]]

  def redness(place):
    x, y = place.round().astype(int).T
    red, green, _ = frames[np.arange(clip.frames), y, x].T
    return red / (green + 1)

  assert (redness(lip) > 1.15 * redness(nose)).all()


def test_rendering_is_bit_identical():
  from synclipmae_jax.data.synthtalk.render import render

  clip = make_clip(1, seed=0, split="test", seconds=2)
  np.testing.assert_array_equal(render(clip, size=48), render(clip, size=48))


def test_a_click_decodes_at_its_time(tmp_path):
  waveform = np.zeros(SAMPLES_PER_FRAME * 50, np.float32)
  times = np.array([4_000, 15_000, 28_000])
  waveform[times], waveform[times + 1] = 0.9, -0.9
  corpus.encode(tmp_path / "click.mp4", np.zeros((50, 32, 32, 3), np.uint8), waveform, crf=30)
  frames, sound = decode(tmp_path / "click.mp4")
  assert len(frames) == 50
  for time in times:
    assert abs(np.abs(sound[time - 500 : time + 500]).argmax() - 500) <= SAMPLE_RATE // 1000


def test_an_interrupted_corpus_is_resumed(small, tmp_path):
  settings = dict(clips={"train": 2, "test": 2}, seconds=2, size=48, seed=3, workers=1, progress=False)
  done = small / "corpus.json"
  before = {path: path.stat().st_mtime_ns for path in small.rglob("*.*")}
  assert write_corpus(small, **settings) == done
  done.rename(small / "corpus.unfinished.json")  # the name during the run
  lost = small / "test" / "test_00001.mp4"
  content = lost.read_bytes()
  lost.unlink()
  write_corpus(small, **settings)
  assert lost.read_bytes() == content
  after = {path: path.stat().st_mtime_ns for path in small.rglob("*.*")}
  assert set(after) == set(before)
  assert {path for path in after if after[path] != before[path]} <= {done, lost, *lost.parent.glob("test_00001.*")}


def test_another_corpus_in_the_folder_is_refused(small):
  with pytest.raises(InputError, match="seed is 3, not 4"):
    write_corpus(small, clips={"train": 2, "test": 2}, seconds=2, size=48, seed=4, workers=1, progress=False)


@pytest.mark.parametrize(
  "wrong",
  [{"clips": {"dev": 1}}, {"clips": {"train": 0}}, {"size": 47}, {"seconds": 0.5}],
  ids=lambda wrong: next(iter(wrong)),
)
def test_invalid_arguments_are_refused(tmp_path, wrong):
  settings = dict(clips={"train": 1}, seconds=2, size=48, seed=0, workers=1, progress=False)
  with pytest.raises(InputError):
    write_corpus(tmp_path, **(settings | wrong))
  assert not list(tmp_path.iterdir())


def test_processes_write_the_same_files(tmp_path, small):
  command = ["--out", str(tmp_path), *"--train 16 --val 0 --test 0 --seconds 2 --size 48 --seed 3".split()]
  module = [sys.executable, "-m", "synclipmae_jax.data.synthtalk"]
  done = subprocess.run([*module, *command, "--workers", "2"], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert len(list((tmp_path / "train").glob("*.mp4"))) == 16
  name = "train/train_00001"
  assert (
    np.load(tmp_path / f"{name}.truth.npz")["truth"].tobytes()
    == np.load(small / f"{name}.truth.npz")["truth"].tobytes()
  )
  frames, sound = decode(tmp_path / f"{name}.mp4")
  alone, heard = decode(small / f"{name}.mp4")
  assert np.abs(frames.astype(int) - alone).mean() < 1 and np.abs(sound - heard).max() < 0.02
  again = subprocess.run([*module, *command, "--size", "64"], capture_output=True, text=True)
  assert again.returncode == 2 and "Traceback" not in again.stderr and "size is 48, not 64" in again.stderr
