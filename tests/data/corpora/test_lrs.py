from __future__ import annotations

import pytest
from trees import TRANSCRIPT, YOUTUBE, lrs2, lrs3, write

from synclipmae_jax.data import corpora
from synclipmae_jax.data.corpora import transcripts
from synclipmae_jax.data.corpora.splits import OVERLAP, assign
from synclipmae_jax.types import InputError, Segment


def listed(raw, corpus="auto"):
  return {item.key: item for item in corpora.load(corpus)(raw)}


def test_a_transcript_has_its_text_and_the_times_of_its_words(tmp_path):
  path = write(tmp_path / "00001.txt", b"\xef\xbb\xbf" + TRANSCRIPT.replace("\n", "\r\n").encode())
  assert transcripts.read(path) == {
    "text": "so we went", "text_source": "human", "provenance": {"transcript": "00001.txt"},
    "words": (Segment(0.1, 0.32, "so"), Segment(0.4, 0.5, "we"), Segment(0.5, 0.9, "went")),
  }  # fmt: skip
  assert transcripts.read(write(path, "Text:  IT'S TIME\nConf:  3\n"))["text"] == "it's time"
  assert transcripts.read(tmp_path / "none.txt") == {"provenance": {"transcript": "missing"}}


@pytest.mark.parametrize(
  ("old", "new", "text", "words"),
  [
    ("Text:", "Texte:", "", "does not begin with its text"),
    ("Text:  SO {WE} WENT", "\udcff", "", "cannot be read"),
    ("0.10 0.32", "0.32 0.10", "so we went", "damaged times"),
    ("0.10 0.32", "0.45 0.46", "so we went", "they do not ascend"),
    ("SO 0.10 0.32 7.1", "SO 0.10", "so we went", "damaged times"),
    ("0.10", "ten", "so we went", "damaged times"),
  ],
)
def test_what_is_damaged_in_a_transcript_is_named_and_the_rest_is_kept(tmp_path, old, new, text, words):
  assert old in TRANSCRIPT
  path = write(tmp_path / "a.txt", TRANSCRIPT.replace(old, new).encode("utf-8", "surrogateescape"))
  known = transcripts.read(path)
  assert known.get("text", "") == text and not known.get("words") and words in known["provenance"]["transcript"]


def test_the_folders_of_lrs3_are_its_split_and_a_tested_talk_is_nowhere_else(tmp_path):
  found = listed(lrs3(tmp_path))
  assert len(found) == 16 + 12 + 5
  assert {item.split for key, item in found.items() if key.startswith("test/")} == {"test"}
  both = YOUTUBE[19]
  assert found[f"test/{both}/00001.mp4"].split == "test" and found[f"trainval/{both}/00001.mp4"].split == OVERLAP
  assert {item.split for key, item in found.items() if both not in key and "test/" not in key} == {"train", "val"}
  item = found[f"pretrain/{YOUTUBE[0]}/00001.mp4"]
  assert (item.text, item.text_source, len(item.words), item.split_group) == ("so we went", "human", 3, YOUTUBE[0])


def test_the_lists_of_lrs2_are_its_split(tmp_path):
  raw = lrs2(tmp_path)
  tested = "253541569906879"
  (raw / "main" / f"{tested}1" / "00002.mp4").unlink()
  write(raw / "main" / f"{tested}1" / "00009.mp4")
  found = listed(raw)
  assert len(found) == 24 + 2
  assert {item.split for key, item in found.items() if key.startswith(f"main/{tested}")} == {"test"}
  missing = found[f"main/{tested}1/00002.mp4"]
  assert not missing.path.exists() and missing.text == "so we went" and f"main/{tested}1/00009.mp4" not in found
  assert found[f"pretrain/{tested}0/00008.mp4"].split == OVERLAP
  pretrained = found["pretrain/0535415699068790/00007.mp4"]
  assert pretrained.split == "train" and pretrained.words[0] == Segment(0.1, 0.32, "so")
  for name in ("train", "val", "test", "pretrain"):
    (raw / f"{name}.txt").unlink()
  unlisted = listed(raw)
  assert len(unlisted) == 26 and {item.split for item in unlisted.values()} == {"train", "val", "test"}


@pytest.mark.parametrize("line", ["../../etc/passwd", "12/../../x", "12", "/a/1"])
def test_a_list_of_lrs2_names_files_of_its_own(tmp_path, line):
  write(lrs2(tmp_path) / "val.txt", f"{line}\n")
  with pytest.raises(InputError, match=r"val.txt is no list of LRS2: it names"):
    listed(tmp_path, "lrs2")


def test_an_official_split_that_divides_a_group_keeps_what_is_held_out():
  files = [
    ("a", "train"),
    ("a", "val"),
    ("a", "test"),
    ("b", "train"),
    ("b", "val"),
    ("c", "train"),
    ("c", ""),
    ("d", ""),
  ]
  assert assign(files)[:7] == [OVERLAP, OVERLAP, "test", OVERLAP, "val", "train", "train"]
  assert assign([]) == [] and assign([("a", "odd")]) == ["odd"]
