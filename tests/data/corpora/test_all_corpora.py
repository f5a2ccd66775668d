"""What holds for every corpus."""

from __future__ import annotations

import os
import shutil
from collections import Counter

import pytest
from footage import clicks, numbered, write_video
from trees import MAKERS, write

from synclipmae_jax.apps import prepare as app
from synclipmae_jax.data import corpora, prepare
from synclipmae_jax.data.corpora.splits import OVERLAP
from synclipmae_jax.data.pipeline import Source, eval_clips, train_batches
from synclipmae_jax.types import InputError

SPLITS = {"train", "val", "test"}


def listed(raw, corpus="auto", **kwargs):
  found = list(corpora.load(corpus, **kwargs)(raw))
  assert len({item.key for item in found}) == len(found), "keys are unique"
  return {item.key: item for item in found}


@pytest.mark.parametrize("name", MAKERS)
def test_a_corpus_is_recognised_and_no_subject_stands_on_two_sides(name, tmp_path):
  found = listed(MAKERS[name](tmp_path)).values()
  assert {item.corpus for item in found} == {name}
  splits, groups = {}, {}
  for item in found:
    groups.setdefault(item.identity, set()).add(item.split_group)
    if item.split != OVERLAP:
      splits.setdefault(item.split_group, set()).add(item.split)
  assert all(len(sides) == 1 for sides in splits.values())
  assert all(len(of_subject) == 1 for of_subject in groups.values()), "a subject is in one group"
  assert set.union(*splits.values()) == SPLITS
  sides = Counter(item.split for item in found)
  assert sides["train"] == max(sides.values())
  assert not any(item.split == OVERLAP for item in found) or name in ("lrs2", "lrs3")


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "folder"])
def test_a_corpus_in_a_further_folder_is_the_same(name, tmp_path):
  plain = listed(MAKERS[name](tmp_path / "plain"))
  outer = "My “Corpus” – ümlaut 'n' Ж"
  shutil.copytree(tmp_path / "plain", tmp_path / "outer" / outer)
  deeper = listed(tmp_path / "outer")
  assert len(deeper) == len(plain)
  for key, item in plain.items():
    twin = deeper.get(f"{outer}/{key}") or deeper[key]  # missing files stand in the given folder
    same = ("split", "identity", "emotion", "actions", "words", "text", "corpus")
    assert all(getattr(twin, field) == getattr(item, field) for field in same)


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "folder"])
def test_hidden_files_and_unfinished_downloads_are_no_clips(name, tmp_path):
  plain = listed(MAKERS[name](tmp_path), name)
  clip = next(item.path for item in plain.values() if item.path.exists())
  for other in (f"._{clip.name}", f"{clip.name}.part", f"{clip.stem}.temp.mp4", f"{clip.stem}.f137.mp4", "Thumbs.db"):
    write(clip.with_name(other))
  write(clip.parent / ".cache" / clip.name)
  assert listed(tmp_path, name).keys() == plain.keys()


@pytest.mark.parametrize("name", ["hdtf", "hallo3", "ravdess", "mead", "lrs3"])
def test_archives_without_videos_are_said(name, tmp_path):
  write(tmp_path / "parts" / "data.tgz.part-aa")
  write(tmp_path / "parts" / "data.tgz.part-ab")
  with pytest.raises(InputError, match=r"archives and no videos: unpack data.tgz.part-aa first"):
    listed(tmp_path, name)


@pytest.mark.parametrize("name", MAKERS)
def test_names_that_are_not_text_do_not_stop_a_corpus(name, tmp_path):
  plain = listed(MAKERS[name](tmp_path), name)
  folder = next(item.path for item in plain.values() if item.path.exists()).parent
  for odd in (b"caf\xe9 \xff.mp4", b"-rf.mp4", b"a\nb.mp4", b"12:30 \"q\" 'p'.mp4"):
    with open(os.path.join(os.fsencode(folder), odd), "wb"):
      pass
  found = listed(tmp_path, name)
  assert found.keys() >= plain.keys() or name == "folder"
  assert all(item.key.encode() and item.split for item in found.values())


def test_random100_holds_out_whole_groups(tmp_path):
  for video in range(300):
    for n in range(2 if video else 7):
      write(tmp_path / f"person{video}" / f"{n}.mp4")
  found = listed(tmp_path, "folder", split="random100").values()
  sides = Counter(item.split for item in found)
  assert 100 <= sides["test"] <= 106 and 100 <= sides["val"] <= 106 and sides.total() == 605
  assert len({(item.split_group, item.split) for item in found}) == 300
  assert {item.split for item in listed(MAKERS["lrs3"](tmp_path / "l"), "lrs3", split="random100").values()} >= SPLITS
  for wrong, words in (("random100", "48 files of 24 groups leave none for training"), ("thirds", "unknown rule")):
    with pytest.raises(InputError, match=words):
      listed(MAKERS["vfhq"](tmp_path / "v"), "vfhq", split=wrong)


def test_the_rule_is_an_argument_of_prepare(tmp_path, capsys):
  arguments = ["--raw", str(MAKERS["vfhq"](tmp_path / "raw")), "--out", str(tmp_path / "out"), "--split", "random100"]
  assert app.main(arguments) == 2 and not (tmp_path / "out").exists()
  assert "random100 holds out 100 files for validation and 100 for testing" in capsys.readouterr().err


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
  """Two seconds, of which every corpus gets a copy in each split."""
  path = tmp_path_factory.mktemp("footage") / "a.mp4"
  return write_video(path, map(numbered, range(50)), sound=clicks(2, [], noise=0.1)).read_bytes()


@pytest.mark.parametrize("name", MAKERS)
def test_a_corpus_goes_from_raw_files_to_a_batch(name, tmp_path, footage):
  raw, out = MAKERS[name](tmp_path / "raw"), tmp_path / "out"
  chosen = {item.split: item for item in listed(raw).values() if item.path.exists() and item.split in SPLITS}
  for item in chosen.values():
    item.path.write_bytes(footage)
  manifest = prepare.prepare(raw, out, faces="full_frame", size=32, progress=False)
  assert {entry["file"] for entry in manifest.entries if entry["outcome"] == "accepted"} == {
    item.key for item in chosen.values()
  }
  for split, item in chosen.items():
    (clip,) = eval_clips(out, split=split, image_size=32)
    fields = ("corpus", "identity", "speaker", "text", "emotion", "actions", "appearance")
    assert all(getattr(clip, field) == getattr(item, field) for field in fields)
    shape = dict(seed=0, batch_size=2, clip_frames=8, audio_context_frames=16, image_size=32)
    assert next(train_batches([Source(directory=out)], split=split, **shape))["frames"].shape == (2, 8, 32, 32, 3)
