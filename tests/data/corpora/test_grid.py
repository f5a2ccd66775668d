from __future__ import annotations

import itertools
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from footage import clicks, numbered, write_video
from shared import shared

from synclipmae_jax.apps import prepare as app
from synclipmae_jax.data import corpora, prepare, records
from synclipmae_jax.data.corpora import grid
from synclipmae_jax.data.media import audio
from synclipmae_jax.data.pipeline import Source, eval_clips, train_batches
from synclipmae_jax.types import InputError, Segment

ALIGN = "0 12500 sil\n12500 25000 bin\n25000 30000 sp\n30000 37500 blue\n37500 50000 sil\n"
WORDS = (Segment(0.5, 1.0, "bin"), Segment(1.2, 1.5, "blue"))


def listed(raw, corpus="grid"):
  return {item.key: item for item in corpora.load(corpus)(raw)}


def write(path, content=""):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(content)


def talk(path, *, count=50, **kwargs):
  path.parent.mkdir(parents=True, exist_ok=True)
  sound = clicks(count / 25, [], noise=0.1, rate=kwargs.get("rate", 16000))
  return write_video(path, map(numbered, range(count)), sound=sound, **kwargs)


def one_batch(out, split):
  stream = train_batches(
    [Source(directory=out)], split=split, seed=0, batch_size=2, clip_frames=8, audio_context_frames=16, image_size=32
  )
  return next(stream)


def test_the_name_of_a_file_is_its_sentence():
  assert grid.sentence("bbaf2n") == "bin blue at f two now"
  assert grid.sentence("LRWZZA") == "lay red with z zero again"
  assert not any(map(grid.sentence, ("", "bbaf2", "bbaf2nn", "bbaw2n", "xbaf2n", "bbaf0n", "intro1")))


@pytest.mark.parametrize(
  ("video", "align"),
  [
    ("s1/bbaf2n.mpg", "s1/align/bbaf2n.align"),
    ("s1/bbaf2n.mpg", "align/s1/bbaf2n.align"),
    ("s1/bbaf2n.mpg", "alignments/s1/bbaf2n.align"),
    ("s1/bbaf2n.mpg", "alignments/s1/align/bbaf2n.align"),
    ("s1/bbaf2n.mpg", "s1/bbaf2n.align"),
    ("video/s1/bbaf2n.mpg", "align/s1/bbaf2n.align"),
    ("s1/video/mpg_6000/bbaf2n.mpg", "s1/align/bbaf2n.align"),
    ("GRID/S1/bbaf2n.mpg", "GRID/S1/align/bbaf2n.align"),
  ],
)
def test_word_times_are_found_in_their_usual_places(tmp_path, video, align):
  write(tmp_path / video)
  write(tmp_path / align, ALIGN)
  other = "align/s2/bbaf2n.align"  # of another speaker, who says the same
  write(tmp_path / other, ALIGN.replace("bin", "set"))
  (item,) = listed(tmp_path, "auto").values()
  assert (item.corpus, item.key, item.speaker, item.identity, item.split_group) == ("grid", video, "s1", "s1", "s1")
  assert item.words == WORDS and item.text == "bin blue" and item.text_source == "human" and item.lag == 0
  assert item.provenance["alignment"] == align


def test_without_word_times_the_name_says_the_text_and_the_manifest_says_why(tmp_path):
  for name in ("bbaf2n", "lwbf2n", "intro", "sgib8n"):
    write(tmp_path / "s3" / f"{name}.mpg")
  write(tmp_path / "s3" / "audio" / "bbaf2n.wav")
  write(tmp_path / "s3" / "align" / "lwbf2n.align", "0 100 bin\n200 red\n")
  write(tmp_path / "s3" / "align" / "sgib8n.align", "0 100 set\n50 200 green\n")
  found = listed(tmp_path)
  assert set(found) == {f"s3/{name}.mpg" for name in ("bbaf2n", "lwbf2n", "intro", "sgib8n")}
  assert found["s3/bbaf2n.mpg"].provenance["alignment"] == "missing"
  for name, said in (("lwbf2n", "lay white by f two now"), ("sgib8n", "set green in b eight now")):
    assert found[f"s3/{name}.mpg"].text == said and found[f"s3/{name}.mpg"].words == ()
    assert "is no alignment of GRID" in found[f"s3/{name}.mpg"].provenance["alignment"]
  assert found["s3/intro.mpg"].text == "" and found["s3/intro.mpg"].speaker == "s3"


def test_speakers_are_divided_and_none_stands_on_two_sides(tmp_path):
  speakers = [f"s{number}" for number in range(1, 35) if number != 21]
  for speaker, name in itertools.product(speakers, ("bbaf2n", "lwbf2n")):
    write(tmp_path / speaker / "video" / f"{name}.mpg")
  splits = {}
  for item in listed(tmp_path).values():
    splits.setdefault(item.speaker, set()).add(item.split)
  assert all(len(found) == 1 for found in splits.values()) and set(splits) == set(speakers)
  counts = {split: sum(found == {split} for found in splits.values()) for split in ("train", "val", "test")}
  assert counts["train"] >= 24 and min(counts.values()) >= 2
  three = tmp_path / "three"
  for speaker in ("s1", "s2", "s3"):
    write(three / speaker / "bbaf2n.mpg")
  assert {item.split for item in listed(three).values()} == {"train", "val", "test"}


def test_another_folder_is_not_taken_for_grid(tmp_path):
  write(tmp_path / "s1" / "holiday.mp4")
  write(tmp_path / "ann" / "bbaf2n.mp4")
  assert {item.corpus for item in listed(tmp_path, "auto").values()} == {"folder"}


def prepared(raw, out, **kwargs):
  manifest = prepare.prepare(raw, out, **{"faces": "full_frame", "size": 32, "progress": False} | kwargs)
  return {entry["file"]: entry for entry in manifest.entries}


def test_from_the_distributed_layout_to_a_batch(tmp_path):
  raw, out = tmp_path / "raw", tmp_path / "out"
  for speaker in ("s1", "s2", "s3"):
    talk(
      raw / speaker / "bbaf2n.mpg", codec="mpeg1video", sound_codec="mp2", rate=44100, layout="stereo",
      time_base=Fraction(1, 25),
    )  # fmt: skip
    write(raw / "align" / speaker / "bbaf2n.align", ALIGN)
  found = prepared(raw, out)
  assert {entry["outcome"] for entry in found.values()} == {"accepted"}
  for split in ("train", "val", "test"):
    (clip,) = eval_clips(out, split=split, image_size=32)
    assert clip.corpus == "grid" and clip.words == WORDS and clip.text == "bin blue" and clip.lag == 0
    assert one_batch(out, split)["frames"].shape == (2, 8, 32, 32, 3)


@pytest.fixture
def packed(tmp_path):
  raw = tmp_path / "raw"
  for name in ("s1/bbaf2n", "s1/lwbf2n", "others/swiz3n"):
    talk(raw / f"{name}.mp4")
  write(
    raw / "clips.tsv",
    "file\tspeaker\tsplit\ttext\n"
    "s1/bbaf2n.mp4\ts1\ttrain\tbin blue at f two now\n"
    "s1/lwbf2n.mp4\ts1\tval\tlay white by f two now\n"
    "others/swiz3n.mp4\trG\ttest\t\n",
  )
  write(
    raw / "words.tsv",
    "clip\tstart_s\tend_s\tword\nbbaf2n\t0.5\t1.0\tbin\nbbaf2n\t1.2\t1.5\tblue\nlwbf2n\t0.25\t0.5\tlay\n",
  )
  write(raw / "original" / "bbaf2n.mpg")
  return raw


def test_from_the_packed_layout_to_a_batch(packed, tmp_path, capsys):
  arguments = ["--raw", packed, "--out", tmp_path / "out", "--faces", "full_frame", "--size", "32", "--workers", "1"]
  assert app.main([*map(str, arguments), "--corpus", "grid", "--sync-model", "none"]) == 0
  assert "3 of 3 files accepted" in (printed := capsys.readouterr().out)
  assert "files with labels: speaker 3, text 3, words 2" in printed
  expected = {"train": ("s1", "bin blue", WORDS), "val": ("s1", "lay", (Segment(0.25, 0.5, "lay"),)),
              "test": ("rG", "set white in z three now", ())}  # fmt: skip
  for split, known in expected.items():
    (clip,) = eval_clips(tmp_path / "out", split=split, image_size=32)
    assert (clip.speaker, clip.text, clip.words) == known and clip.identity == clip.speaker
    assert (clip.corpus, clip.lag, clip.text_source) == ("grid", 0, "human")
    assert one_batch(tmp_path / "out", split)["frames"].shape == (2, 8, 32, 32, 3)
  items = listed(packed, "auto")
  assert items.keys() == listed(packed).keys(), "recognised, and files outside the table are not read"
  splits = {(item.split_group, item.split) for item in items.values()}
  assert len(splits) == len({group for group, _ in splits}), "no group stands on two sides"


@pytest.mark.parametrize(
  ("name", "old", "new", "words"),
  [
    ("clips.tsv", "speaker", "person", r"clips.tsv, line 2: the columns must be file, speaker, split, text"),
    ("clips.tsv", "\trG\ttest\t", "", "line 4: the columns must be"),
    ("clips.tsv", "others/swiz3n", "../../swiz3n", "names a file outside its folder"),
    ("clips.tsv", "others/swiz3n", "s2/bbaf2n", "which of the files called bbaf2n"),
    ("words.tsv", "0.5\t1.0", "0.5\tone", "the times of bbaf2n are no numbers"),
    ("words.tsv", "0.5\t1.0", "1.5\t1.0", "words holds 'bin' from 1.5 to 1.0 s"),
    ("words.tsv", "bin", "\udcff", "cannot be read"),
  ],
  ids=str,
)
def test_damaged_tables_are_one_sentence(packed, name, old, new, words):
  content = (packed / name).read_text()
  assert old in content
  (packed / name).write_text(content.replace(old, new), errors="surrogateescape")
  with pytest.raises(InputError, match=words):
    listed(packed)


def some_of(real: Path, raw: Path, chosen):
  """The packed corpus with some of its files, by links."""
  head, *rows = (real / "clips.tsv").read_text().splitlines()
  rows = [row for row in rows if row.split("\t")[0] in chosen]
  write(raw / "clips.tsv", "\n".join([head, *rows]) + "\n")
  shutil.copy(real / "words.tsv", raw)
  for name in chosen:
    (raw / name).parent.mkdir(exist_ok=True)
    (raw / name).symlink_to(real / name)


def test_real_clips_packed(tmp_path):
  real = shared("real/grid")
  some_of(real, tmp_path / "raw", ["s1/bbaf2n.mp4", "s1/bbaf3s.mp4", "s1/bbal6n.mp4", "others/swiz3n.mp4"])
  found = prepared(tmp_path / "raw", tmp_path / "out", faces="auto", size=64)
  assert {entry["outcome"] for entry in found.values()} == {"accepted"}
  for split, count in (("train", 2), ("val", 1), ("test", 1)):
    assert len(records.open_records(tmp_path / "out", split=split)) == count
    assert one_batch(tmp_path / "out", split)["frames"].shape == (2, 8, 32, 32, 3)
  trained = records.open_records(tmp_path / "out", split="train")
  for record in (trained[index] for index in range(len(trained))):
    assert len(record["words"]) == 6 and record["text"] == grid.sentence(record["key"][3:9])
    sound = np.abs(audio.decode_flac(record["flac"]))
    spoken = np.zeros(len(sound), bool)
    for start, end, _ in record["words"]:
      spoken[round(start * 16000) : round(end * 16000)] = True
    assert sound[spoken].mean() > 4 * sound[~spoken].mean(), "words are where there is sound"


def test_real_files_as_distributed(tmp_path):
  real = shared("real/grid/original")
  for name in ("bbaf2n", "lwbf2n"):
    (tmp_path / "raw" / "s1").mkdir(parents=True, exist_ok=True)
    (tmp_path / "raw" / "s1" / f"{name}.mpg").symlink_to(real / f"{name}.mpg")
  (tmp_path / "raw" / "align" / "s1").mkdir(parents=True)
  (tmp_path / "raw" / "align" / "s1" / "bbaf2n.align").symlink_to(real / "bbaf2n.align")
  items = listed(tmp_path / "raw", "auto")
  assert [word.label for word in items["s1/bbaf2n.mpg"].words] == "bin blue at f two now".split()
  assert items["s1/bbaf2n.mpg"].words[0] == Segment(0.95, 1.18, "bin")
  assert items["s1/lwbf2n.mpg"].text == "lay white by f two now"
  found = prepared(tmp_path / "raw", tmp_path / "out", faces="auto", size=64)
  assert found["s1/bbaf2n.mpg"]["outcome"] == "accepted"
  assert one_batch(tmp_path / "out", "train")["frames"].shape == (2, 8, 32, 32, 3)
