"""Where the clips of a run come from: which records, which split, and what is said of them."""

import importlib.util
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from footage import write_video

from synclipmae_jax.data.pipeline import eval_clips
from synclipmae_jax.data.prepare import prepare
from synclipmae_jax.data.records import find_records
from synclipmae_jax.run import sources
from synclipmae_jax.run.clock import Clock
from synclipmae_jax.tasks.mixture import source_names
from synclipmae_jax.types import InputError

SPEC = importlib.util.spec_from_file_location("pretrain", Path(__file__).parents[2] / "configs" / "pretrain.py")
CONFIG = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(CONFIG)


def records(folder, files):
  (folder / "raw").mkdir(parents=True)
  for number in range(files):
    rng = np.random.default_rng(number)
    images = (np.kron(rng.integers(0, 256, (8, 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8)) for _ in range(50))
    sound = rng.normal(0, 0.2, 640 * 50).astype(np.float32)
    write_video(folder / "raw" / f"{number}.mkv", images, sound=sound, sound_codec="flac")
  prepare(folder / "raw", folder, faces="full_frame", size=32, progress=False)
  return folder


def config_of(*directories, weight=None):
  config = CONFIG.get_config("tiny")
  config.data.synthtalk.update(dict(train=2, val=3, test=2, seconds=2.0, weight=weight))
  config.data.sources = tuple((str(directory), 1.0) for directory in directories) or None
  return config


@pytest.fixture(scope="module")
def given(tmp_path_factory):
  """Records of a folder of six videos, at least one in every split."""
  return records(tmp_path_factory.mktemp("given") / "mine", 6)


def test_synthtalk_and_other_records_are_mixed_and_both_measured(given, tmp_path):
  config = config_of(given, weight=2.0)
  config.data.eval_clips = 3
  clips = sources.open_clips(config, tmp_path, Clock())
  assert [(Path(one.directory).name, one.weight) for one in clips.sources] == [("prepared", 2.0), ("mine", 1.0)]
  assert (clips.val.split, clips.test.split, clips.val.remark, clips.test.remark) == ("val", "test", "", "")
  corpora = lambda found: [clip.corpus for clip in found]
  assert corpora(clips.val.clips) == ["synthtalk", "synthtalk", "folder"]  # two of three; one of at least one
  assert corpora(clips.test.clips) == ["synthtalk", "synthtalk", "folder"]
  assert {key[:2] for key in (clip.key for clip in clips.val.clips)} == {"0/", "1/"}
  assert not {clip.identity for clip in clips.val.clips} & {clip.identity for clip in clips.test.clips}
  assert set(corpora(clips.shown)) == set(corpora(clips.train_clips())) == {"synthtalk", "folder"}
  batches = list(itertools.islice(clips.train_batches(0, host_index=0, host_count=1), 2))
  assert batches[0]["frames"].shape[0] == config.train.batch_clips
  assert {int(source) for batch in batches for source in batch["source"]} == {0, 1}
  assert source_names(config.to_dict()) == ("synthtalk", "mine")
  shares = [
    list(sources.read_clips(config, sources.find_splits(clips.sources, "val"), host_index=host, host_count=2))
    for host in range(2)
  ]
  assert [clip.key for share in shares for clip in share] == [clip.key for clip in clips.val.clips]


def test_sources_without_a_weight_have_one_by_their_size(given, tmp_path):
  small = records(tmp_path / "small", 3)
  config = config_of(given, small)
  config.data.sources = ((str(given), None), (str(small), None), (str(small), 3.0))
  weights = lambda: [one.weight for one in sources.find_sources(config, tmp_path / "run", Clock())]
  hours = [sum(len(clip.frames) for clip in eval_clips(each, split="train", image_size=32)) for each in (given, small)]
  assert weights()[0] / weights()[1] == pytest.approx((hours[0] / hours[1]) ** 0.5)
  assert sum(weights()[:2]) == pytest.approx(2) and weights()[2] == 3.0
  config.data.temperature = 1.0
  assert weights()[0] / weights()[1] == pytest.approx(hours[0] / hours[1])
  config.data.sources = ((str(given), None),)
  assert weights() == [1.0]


def test_without_a_weight_the_given_records_stand_alone(given, tmp_path):
  clips = sources.open_clips(config_of(given), tmp_path, Clock())
  assert [one.directory for one in clips.sources] == [str(given)] and not (tmp_path / "data").exists()
  assert all("/" not in clip.key for clip in clips.val.clips)


def test_records_of_two_preparations_are_refused_by_both_names_before_any_work(given, tmp_path):
  other = tmp_path / "other"
  shutil.copytree(given, other)
  metadata = find_records(other) / "metadata.json"
  stored = json.loads(metadata.read_text())
  stored["preprocessing"] |= {"crop": "another rule", "size": 96}
  metadata.write_text(json.dumps(stored))
  with pytest.raises(InputError, match=f"{re.escape(str(given))} and {re.escape(str(other))} .*crop .* another rule"):
    sources.open_clips(config_of(given, other, weight=1.0), tmp_path / "run", Clock())
  assert not (tmp_path / "run").exists()


def test_records_without_a_split_val_are_watched_at_their_test_split_and_it_is_said(tmp_path):
  bare = records(tmp_path / "bare", 2)
  clips = sources.open_clips(config_of(bare), tmp_path / "run", Clock())
  assert clips.val.split == clips.test.split == "test" and clips.val.clips is clips.test.clips
  assert clips.test.remark == f"without a split 'val' the run looked at {bare} at its test clips while it trained"
