from __future__ import annotations

import numpy as np
import pytest
from footage import clicks, numbered, write_video

from synclipmae_jax.data import prepare, records
from synclipmae_jax.data.features import write_features, write_resumably
from synclipmae_jax.types import InputError

SPLITS = ("train", "test")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  folder = tmp_path_factory.mktemp("features")
  (folder / "raw").mkdir()
  for number in range(4):
    count = 50 + 5 * number
    write_video(folder / "raw" / f"{number}.mp4", map(numbered, range(count)), sound=clicks(count / 25, [], noise=0.1))
  prepare.prepare(folder / "raw", folder / "out", faces="full_frame", size=32, progress=False)
  return folder / "out"


def features(prepared, split, *, value=1.0, read=None):
  """Tokens whose values tell the clip; `read` notes what was asked for."""
  opened = records.open_records(prepared, split=split)
  for index, key in enumerate(opened.keys):
    if read is not None:
      read.append(key)
    vocal = np.full((opened.n_frames[index], 8), value + index, np.float16)
    yield key, {"vocal": vocal, "audio": np.full((len(vocal), 4), value, np.float32)}


def write(prepared, directory, *, checkpoint="abc", value=1.0, read=None):
  examples = {split: features(prepared, split, value=value, read=read) for split in SPLITS}
  return write_features(directory, examples, clips=prepared, checkpoint=checkpoint)


def test_features_are_opened_as_clips_are(prepared, tmp_path):
  path = write(prepared, tmp_path / "cache")
  for split in SPLITS:
    clips, opened = records.open_records(prepared, split=split), records.open_records(tmp_path / "cache", split=split)
    assert opened.directory == path and len(opened) == len(clips) and list(opened.keys) == list(clips.keys)
    assert opened.n_frames.tolist() == clips.n_frames.tolist()
    assert opened.made_of == {"checkpoint": "abc", **clips.made_of} and opened.preprocessing == clips.preprocessing
    for index in range(len(opened)):
      record = opened[index]
      assert record["key"] == clips.keys[index] and record["vocal"].dtype == np.float16
      assert record["audio"].dtype == np.float32 and record["audio"].shape == (clips.n_frames[index], 4)
      np.testing.assert_array_equal(record["vocal"], np.full((clips.n_frames[index], 8), 1 + index))


def test_no_split_is_kept_in_memory(prepared, tmp_path, monkeypatch):
  # Above this size TFDS's own builders ask for TensorFlow.
  monkeypatch.setattr("tensorflow_datasets.core.shuffle.MAX_MEM_BUFFER_SIZE", 0)
  write(prepared, tmp_path)
  assert records.open_records(tmp_path, split="train")[1]["vocal"][0, 0] == 2


def test_features_are_written_once_and_anew_for_another_checkpoint_or_other_records(prepared, tmp_path):
  cache, read = tmp_path / "cache", []
  path = write(prepared, cache)
  assert write(prepared, cache, read=read) == path and not read
  other = write(prepared, cache, checkpoint="def", value=5.0)
  assert other != path and not path.exists()
  assert records.open_records(cache, split="train")[0]["audio"][0, 0] == 5
  manifest = prepared / "manifest.jsonl"
  kept = manifest.read_text()
  try:
    manifest.write_text(kept + "\n".join(kept.splitlines()[:1]).replace("0.mp4#0", "again.mp4#0") + "\n")
    records.write_records(prepared, stamp=records.open_records(other, split="train").preprocessing)
    renewed = write(prepared, cache, checkpoint="def", value=7.0)
    assert renewed != other and not other.exists()
    assert records.open_records(cache, split="train")[0]["audio"][0, 0] == 7
  finally:
    manifest.write_text(kept)


def test_an_interrupted_call_leaves_nothing_and_the_next_writes_all(prepared, tmp_path):
  def stops():
    yield next(features(prepared, "train"))
    raise KeyboardInterrupt

  cache = tmp_path / "cache"
  with pytest.raises(KeyboardInterrupt):
    write_features(cache, {"train": stops()}, clips=prepared, checkpoint="abc")
  with pytest.raises(InputError, match="no records"):
    records.open_records(cache, split="train")
  write_features(cache, {"train": features(prepared, "train")}, clips=prepared, checkpoint="abc")
  assert len(records.open_records(cache, split="train")) == len(records.open_records(prepared, split="train"))
  assert len(list(cache.iterdir())) == 1 and len(list(cache.glob("*/features/*"))) == 1


def wrong_examples(prepared):
  good = list(features(prepared, "train"))
  (key, arrays), (last, tokens) = good[0], good[-1]
  double = {**tokens, "vocal": np.zeros((3, 8), np.float32)}
  empty = {**tokens, "audio": np.full((3, 4), np.nan, np.float32)}
  return {
    r"features 0 .* are of 'x', the clip is": [("x", arrays), *good[1:]],
    r"are of None, the clip is": good[:-1],
    r"are of 'more', the clip is None": [*good, ("more", arrays)],
    r"have another form than .* 'vocal': \"float32": [*good[:-1], (last, double)],
    r"are not finite: audio": [*good[:-1], (last, empty)],
    r"no features of the split 'train'": [],
    r"arrays of numbers .* not key": [(key, {"key": np.zeros((3, 4))})],
  }  # fmt: skip


@pytest.mark.parametrize("number", range(7))
def test_features_that_do_not_fit_are_one_sentence_and_nothing_is_kept(prepared, tmp_path, number):
  words, examples = list(wrong_examples(prepared).items())[number]
  with pytest.raises(InputError, match=words):
    write_features(tmp_path, {"train": examples}, clips=prepared, checkpoint="abc")
  with pytest.raises(InputError, match="no records"):
    records.open_records(tmp_path, split="train")


def test_costly_features_go_on_where_they_were_interrupted(prepared, tmp_path):
  lengths = {split: records.open_records(prepared, split=split).n_frames for split in SPLITS}
  made, total = [], sum(map(len, lengths.values()))

  def write_costly(stop, checkpoint="abc"):
    def make(split):
      def of(index):
        if len(made) == stop:
          raise KeyboardInterrupt
        made.append((split, index))
        return {"vocal": np.full((lengths[split][index], 2), index, np.float16), "none": np.zeros((0, 3), np.float32)}

      return of

    return write_resumably(tmp_path, {split: make(split) for split in SPLITS}, clips=prepared, checkpoint=checkpoint)

  with pytest.raises(KeyboardInterrupt):
    write_costly(total - 1)
  assert len(made) == total - 1
  path = write_costly(None)
  assert len(made) == len(set(made)) == total  # none was made twice
  assert [each.name for each in tmp_path.iterdir()] == [path.parents[1].name]
  for split in SPLITS:
    opened = records.open_records(tmp_path, split=split)
    for index in range(len(opened)):
      assert (opened[index]["vocal"] == index).all() and opened[index]["none"].shape == (0, 3)
  made.clear()
  write_costly(0)
  with pytest.raises(KeyboardInterrupt):
    write_costly(0, checkpoint="other")
