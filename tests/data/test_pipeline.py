from __future__ import annotations

import hashlib
import itertools
import json

import numpy as np
import pytest
from footage import number_of, numbered, write_video

from synclipmae_jax.data import prepare
from synclipmae_jax.data.pipeline import Source, eval_clips, size_weights, train_batches
from synclipmae_jax.data.samplers import SingleWindow, WholeClip, WindowPair
from synclipmae_jax.types import InputError

FRAMES, CONTEXT, SIZE = 8, 24, 32


def make_corpus(folder, first_file, files, *, size=SIZE):
  """Files whose picture k of file f is numbered 256 f + k; 20 to 60 frames each; all in the split `train` but a few."""
  (folder / "raw").mkdir()
  rng = np.random.default_rng(first_file)
  for number in range(first_file, first_file + files):
    count = 20 + 20 * (number % 3)
    images = (numbered(256 * number + k) for k in range(count))
    sound = rng.normal(0, 0.2, 640 * count).astype(np.float32)
    write_video(folder / "raw" / f"{number:03d}.mkv", images, sound=sound, sound_codec="flac")
  prepare.prepare(folder / "raw", folder, faces="full_frame", size=size, min_seconds=0.8, progress=False)
  return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return make_corpus(tmp_path_factory.mktemp("corpus"), 0, 12)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
  return make_corpus(tmp_path_factory.mktemp("other"), 100, 6)


def batches(directories, count, **kwargs):
  weights = kwargs.pop("weights", (1.0, 2.0))
  sources = [Source(directory=path, weight=weight) for path, weight in zip(directories, weights, strict=False)]
  usual = {"seed": 7, "batch_size": 8, "clip_frames": FRAMES, "audio_context_frames": CONTEXT, "image_size": SIZE}
  return list(itertools.islice(train_batches(sources, **usual | kwargs), count))


def same(one, other):
  pairs = zip(one, other, strict=True)
  return all(a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a) for a, b in pairs)


def test_a_batch_is_what_it_says(corpus, other):
  for batch in batches([corpus, other], 6):
    assert batch["frames"].shape == (8, FRAMES, SIZE, SIZE, 3) and batch["frames"].dtype == np.uint8
    assert batch["waveform"].shape == (8, 640 * CONTEXT + 160) and batch["waveform"].dtype == np.float32
    assert batch["face_box"].shape == batch["mouth_box"].shape == (8, FRAMES, 4)
    assert batch["index"].dtype == np.uint32
    numbers = np.array([[number_of(image) for image in clip] for clip in batch["frames"]])
    assert (np.diff(numbers, axis=1) == 1).all()
    first, second = numbers[::2], numbers[1::2]
    assert (first // 256 == second // 256).all(), "clips 2r and 2r+1 are of one record"
    assert (second[:, 0] > first[:, -1]).all(), "and do not overlap"


def test_the_frames_sit_in_the_middle_of_the_sound(corpus):
  clips = {number_of(clip.frames[0]) // 256: clip for clip in eval_clips(corpus, split="train", image_size=SIZE)}
  ends = 0
  for batch in batches([corpus], 6):
    for frames, waveform in zip(batch["frames"], batch["waveform"], strict=True):
      file, start = divmod(number_of(frames[0]), 256)
      begin = 640 * start - 640 * (CONTEXT - FRAMES) // 2 - 80
      padded = np.pad(clips[file].waveform, (640 * CONTEXT,) * 2)
      expected = padded[640 * CONTEXT + begin :][: len(waveform)]
      np.testing.assert_array_equal(waveform, expected)
      ends += begin < 0
  assert ends, "some window is near an end and is padded"


def test_the_stream_is_a_function_of_seed_and_step(corpus, other):
  whole = batches([corpus, other], 8)
  assert same(whole, batches([corpus, other], 8))
  assert same(whole[5:], batches([corpus, other], 3, start_step=5))
  assert not same(whole[:1], batches([corpus, other], 1, seed=8))
  assert [batch["index"].tolist() for batch in whole] == np.arange(64).reshape(8, 8).tolist()


def test_pretraining_draws_what_it_always_drew(corpus, other):
  """Which pictures, which sound, in which order: the digest is of the first version (on the
  clips that are left for training since folders have a split `val`). Pixels may vary with the codec."""
  digest = hashlib.sha256()
  for batch in batches([corpus, other], 6):
    assert sorted(batch) == ["face_box", "frames", "index", "mouth_box", "source", "subject", "waveform"]
    digest.update(np.array([[number_of(image) for image in clip] for clip in batch["frames"]]).tobytes())
    for name in ("waveform", "face_box", "mouth_box", "index"):
      digest.update(batch[name].tobytes())
  assert digest.hexdigest() == "0c4c09afef1615615a27d9b7e542b65858613d6569e982967a28a1f2b6c546d3"


def test_pairs_across_the_records_of_a_subject(tmp_path):
  """Folder `a` has three files of one person, the file `b` stands alone."""
  for number, person in enumerate("aaab"):
    (tmp_path / "raw" / person).mkdir(parents=True, exist_ok=True)
    images = (numbered(256 * number + k) for k in range(40))
    sound = np.random.default_rng(number).normal(0, 0.2, 640 * 40).astype(np.float32)
    write_video(tmp_path / "raw" / person / f"{number}.mkv", images, sound=sound, sound_codec="flac")
  prepare.prepare(tmp_path / "raw", tmp_path, faces="full_frame", size=SIZE, min_seconds=0.8, progress=False)
  splits = json.loads(next(tmp_path.glob("records/*/clips/*/metadata.json")).read_text())["identities"]
  pairs, subjects = set(), {}
  for split in splits:
    for batch in sampled([tmp_path], 12, WindowPair(FRAMES, across=1.0), split=split):
      for pair in range(0, 8, 2):
        files = [number_of(batch["frames"][pair + side][0]) // 256 for side in (0, 1)]
        pairs.add(tuple(files))
        assert batch["subject"][pair] == batch["subject"][pair + 1]
        subjects.setdefault(int(batch["subject"][pair]), set()).update(files)
        if files == [3, 3]:  # disjoint windows of the only file
          first = [number_of(batch["frames"][pair + side][0]) % 256 for side in (0, 1)]
          assert abs(first[0] - first[1]) >= FRAMES
  assert pairs == {(0, 1), (1, 2), (2, 0), (3, 3)}
  assert sorted(map(sorted, subjects.values())) == [[0, 1, 2], [3]]


def test_hosts_divide_the_batch_of_one_host(corpus, other):
  whole = batches([corpus, other], 4)
  shares = [batches([corpus, other], 4, batch_size=4, host_index=host, host_count=2) for host in range(2)]
  joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*shares, strict=True)]
  assert same(whole, joined)
  assert same(shares[1][2:], batches([corpus, other], 2, batch_size=4, host_index=1, host_count=2, start_step=2))


def test_workers_change_nothing(corpus, other):
  expected = batches([corpus, other], 5)
  assert same(expected, batches([corpus, other], 5, workers=1))
  assert same(expected[2:], batches([corpus, other], 3, workers=2, start_step=2))


def test_sources_are_mixed_by_weight_and_each_record_comes_once_an_epoch(corpus, other):
  drawn = batches([corpus, other], 30, weights=(1.0, 3.0))
  files = np.array([number_of(clip[0]) // 256 for batch in drawn for clip in batch["frames"][::2]])
  assert (files >= 100).mean() == pytest.approx(0.75, abs=0.02)
  assert [int(source) for batch in drawn for source in batch["source"][::2]] == (files >= 100).astype(int).tolist()
  mine = files[files < 100]
  kept = {number_of(clip.frames[0]) // 256 for clip in eval_clips(corpus, split="train", image_size=SIZE)}
  assert set(mine[: len(kept)]) == kept
  assert mine[: len(kept)].tolist() != mine[len(kept) : 2 * len(kept)].tolist()


def test_weights_by_size_lie_between_those_of_hours_and_equal_ones(corpus, other):
  frames = [len(clip.frames) for place in (corpus, other) for clip in eval_clips(place, split="train", image_size=SIZE)]
  count = sum(1 for _ in eval_clips(corpus, split="train", image_size=SIZE))
  ratio = sum(frames[:count]) / sum(frames[count:])
  assert ratio > 1.3
  for temperature, power in ((1.0, 1.0), (2.0, 0.5), (1e9, 0.0)):
    weights = size_weights([corpus, other], temperature=temperature)
    assert weights[0] / weights[1] == pytest.approx(ratio**power) and sum(weights) == pytest.approx(2)
  for wrong in (0.0, -1.0, float("nan")):
    with pytest.raises(InputError, match="the temperature of a mixture must be above 0"):
      size_weights([corpus, other], temperature=wrong)


def test_windows_fall_everywhere_and_short_records_are_left_out(corpus):
  drawn = batches([corpus], 40, clip_frames=16, batch_size=8)
  numbers = np.array([[number_of(clip[0]) for clip in batch["frames"]] for batch in drawn])
  assert {number // 256 % 3 for number in numbers.flat} == {1, 2}, "20 frames hold no two windows of 16"
  starts = numbers[numbers // 256 % 3 == 2] % 256
  assert set(starts) <= set(range(60 - 16 + 1)) and len(set(starts)) > 40
  assert abs(starts.mean() - (60 - 16) / 2) < 3


def test_smaller_pictures_are_the_same_pictures(corpus):
  large, small = batches([corpus], 2), batches([corpus], 2, image_size=16)
  for a, b in zip(large, small, strict=True):
    shrunk = a["frames"].reshape(8, FRAMES, 16, 2, 16, 2, 3).mean((3, 5))
    assert np.abs(shrunk - b["frames"]).mean() < 3


def test_whole_clips_for_evaluation(corpus):
  clips = list(eval_clips(corpus, split="train", image_size=SIZE))
  for clip in clips:
    frames = len(clip.frames)
    assert clip.waveform.shape == (640 * frames,) and clip.face_box.shape == clip.mouth_box.shape == (frames, 4)
    assert [number_of(image) % 256 for image in clip.frames] == list(range(frames))
    assert clip.lag is None and clip.truth is None and clip.corpus == "folder"
  three = list(eval_clips(corpus, split="train", image_size=16, max_clips=3))
  assert [clip.key for clip in three] == [clips[0].key, clips[(len(clips) - 1) // 2].key, clips[-1].key]
  assert three[0].frames.shape[1:] == (16, 16, 3)

  shares = [
    [clip.key for clip in eval_clips(corpus, split="train", image_size=16, max_clips=5, host_index=host, host_count=3)]
    for host in range(3)
  ]
  five = [clip.key for clip in eval_clips(corpus, split="train", image_size=16, max_clips=5)]
  assert sum(shares, []) == five and [len(share) for share in shares] == [2, 2, 1]


def sampled(directories, count, sampler, **kwargs):
  return batches(directories, count, clip_frames=None, sampler=sampler, **{"audio_context_frames": None} | kwargs)


def file_and_start(clip):
  return divmod(number_of(clip[0]), 256)


def test_single_windows_fall_everywhere(corpus):
  drawn = sampled([corpus], 40, SingleWindow(16), batch_size=7)
  assert drawn[0]["frames"].shape == (7, 16, SIZE, SIZE, 3) and drawn[0]["waveform"].shape == (7, 16 * 640 + 160)
  assert np.concatenate([batch["index"] for batch in drawn]).tolist() == list(range(280))
  found = np.array([file_and_start(clip) for batch in drawn for clip in batch["frames"]])
  longest = found[found[:, 0] % 3 == 2, 1]
  assert set(found[:, 0] % 3) == {0, 1, 2}, "20 frames hold one window of 16"
  assert set(longest) <= set(range(60 - 16 + 1)) and len(set(longest)) > 30


LENGTHS = (25, 30, 60)  # clips have 20, 40 and 60 frames: none is in the second bucket


def test_whole_clips_come_in_buckets_padded_to_their_length(corpus, other):
  whole = {clip.key: clip for path in (corpus, other) for clip in eval_clips(path, split="train", image_size=SIZE)}
  whole = {file_and_start(clip.frames)[0]: clip for clip in whole.values()}
  drawn = sampled([corpus, other], 40, WholeClip(LENGTHS), batch_size=3)
  for batch in drawn:
    padded = batch["frames"].shape[1]
    assert batch["waveform"].shape == (3, 640 * padded + 160) and batch["length"].dtype == np.int32
    for number, length in enumerate(batch["length"]):
      file, start = file_and_start(batch["frames"][number])
      clip = whole[file]
      assert start == 0 and length == len(clip.frames) <= padded == min(each for each in LENGTHS if each >= length)
      np.testing.assert_array_equal(batch["frames"][number, :length], clip.frames)
      np.testing.assert_array_equal(batch["waveform"][number, 80:][: 640 * length], clip.waveform)
      assert not batch["frames"][number, length:].any() and not batch["waveform"][number, 80 + 640 * length :].any()
      assert (batch["mouth_box"][number, length:] == -1).all() and not batch["face_box"][number, length:].any()
  seen = [file_and_start(clip)[0] for batch in drawn for clip in batch["frames"]]
  assert set(seen) == set(whole)
  assert np.mean([file >= 100 for file in seen]) == pytest.approx(2 / 3, abs=0.05), "sources come by their weights"
  for first, last in ((0, 100), (100, 200)):  # and within one, every clip as often
    counts = [seen.count(file) for file in whole if first <= file < last]
    assert max(counts) - min(counts) <= 2, counts


def test_hosts_have_the_same_bucket_at_a_step_and_resume(corpus, other):
  whole = sampled([corpus, other], 12, WholeClip(LENGTHS), batch_size=4)
  shares = [
    sampled([corpus, other], 12, WholeClip(LENGTHS), batch_size=2, host_index=host, host_count=2) for host in range(2)
  ]
  joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*shares, strict=True)]
  assert same(whole, joined) and len({batch["frames"].shape[1] for batch in whole}) == 2
  assert same(whole[5:], sampled([corpus, other], 7, WholeClip(LENGTHS), batch_size=4, start_step=5))


def first_picture(record, start, frames):
  return {"start": np.int32(start), "frames_there": np.int32(frames), "key": np.array([len(record["key"])])}


def test_targets_join_the_batch(corpus):
  for batch in batches([corpus], 3, targets=first_picture):
    assert batch["start"].tolist() == [file_and_start(clip)[1] for clip in batch["frames"]]
    assert batch["key"].shape == (8, 1) and (batch["frames_there"] == FRAMES).all()
  batch = sampled([corpus], 1, WholeClip((64,)), batch_size=5, targets=first_picture)[0]
  assert batch["frames_there"].tolist() == batch["length"].tolist()


@pytest.mark.parametrize(
  ("wrong", "words"),
  [
    ({"batch_size": 3}, "multiple of 2 clips"),
    ({"seed": -1}, "must not be negative"),
    ({"clip_frames": 32}, "must hold the clip"),
    ({"clip_frames": 0}, "must hold the clip"),
    ({"clip_frames": None}, "either clip_frames or a sampler"),
    ({"sampler": SingleWindow(8)}, "either clip_frames or a sampler"),
    ({"clip_frames": None, "sampler": SingleWindow(24), "batch_size": 0}, "multiple of 1 clips"),
    ({"clip_frames": None, "sampler": WholeClip((10, 19))}, "no train clip .* at most 19 frames: the shortest has 20"),
    ({"clip_frames": 60, "audio_context_frames": 64}, "no train clip .* has 120 frames .* the longest has 60"),
    ({"image_size": 64}, "prepare them with --size 64"),
    ({"split": "dev"}, "no split 'dev'"),
    ({"weights": (0.0,)}, "every weight must be positive"),
  ],
  ids=str,
)
def test_wrong_arguments_are_one_sentence(corpus, wrong, words):
  with pytest.raises(InputError, match=words):
    batches([corpus], 1, **wrong)
