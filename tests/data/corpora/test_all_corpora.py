"""What holds for every corpus."""

from __future__ import annotations

import os
import shutil
from collections import Counter

import pytest
from trees import MAKERS, write

from synclipmae_jax.apps import prepare as app
from synclipmae_jax.data import corpora
from synclipmae_jax.data.corpora.splits import OVERLAP
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
