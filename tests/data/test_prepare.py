"""What `data.prepare` takes and refuses, and what its manifest says."""

from __future__ import annotations

import json
import os
import struct
from fractions import Fraction

import numpy as np
import pytest
from footage import numbered, write_video
from preparing import SIZE, by_file, run, talk

from synclipmae_jax.apps import prepare as app
from synclipmae_jax.data import corpora
from synclipmae_jax.data.corpora.splits import by_hash
from synclipmae_jax.types import InputError


@pytest.fixture(scope="module")
def bad_folder(tmp_path_factory):
  """Bad files of all kinds, and two good ones."""
  raw = tmp_path_factory.mktemp("raw")
  (raw / "sub").mkdir()
  good = talk(raw / "sub" / "good é.mp4", options={"movflags": "faststart"})
  data = good.read_bytes()
  (raw / "missing.mp4").symlink_to(raw / "nowhere.mp4")
  (raw / "zero.mp4").touch()
  (raw / "text.mp4").write_text("this is no video, whatever its name says\n" * 50)
  (raw / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:10,\n{good}\n#EXT-X-ENDLIST\n")
  (raw / "concat.mkv").write_text(f"ffconcat version 1.0\nfile '{good}'\n")
  (raw / "notes.txt").write_text("not a video")
  os.mkfifo(raw / "pipe.mp4")
  talk(raw / "mute.mp4", sound=False)
  write_video(raw / "silence.mp4", map(numbered, range(75)), sound=np.zeros(48000, np.float32))
  talk(raw / "three.mp4", count=3)
  (raw / "cut.mp4").write_bytes(data[: len(data) * 6 // 10])
  talk(raw / "headless.mp4")
  (raw / "headless.mp4").write_bytes((raw / "headless.mp4").read_bytes()[:-3000])  # its index was at the end
  talk(raw / "cut.mkv", count=150)
  (raw / "cut.mkv").write_bytes((raw / "cut.mkv").read_bytes()[: (raw / "cut.mkv").stat().st_size // 2])
  claims = bytearray(data)
  for box in (b"stts", b"stsz"):
    at = claims.index(box) + 12  # of the number of frames
    claims[at : at + 4] = (10**9).to_bytes(4, "big")
  (raw / "billion.mp4").write_bytes(claims)
  claims = bytearray(talk(raw / "billion.mkv").read_bytes())
  at = claims.index(b"\x44\x89\x88") + 3  # of the duration in milliseconds
  claims[at : at + 8] = struct.pack(">d", 40e9)
  (raw / "billion.mkv").write_bytes(claims)
  scratched = bytearray(data)
  for at in range(len(data) // 4, len(data) * 3 // 4, 300):
    scratched[at] ^= 255
  (raw / "scratched.mp4").write_bytes(scratched)
  talk(raw / "rows.mp4")
  np.savez(raw / "rows.faces.npz", boxes=np.zeros((7, 4)))
  (raw / os.fsdecode(b"latin-\xe9.mp4")).write_bytes(data)
  return raw


EXPECTED = {
  "missing.mp4": "missing",
  "zero.mp4": "empty",
  "text.mp4": "cannot be read",
  "list.mp4": "cannot be read",
  "concat.mkv": "cannot be read",
  "notes.txt": "not a video file",
  "pipe.mp4": "not a regular file",
  "mute.mp4": "no sound track",
  "silence.mp4": "silent",
  "three.mp4": "too short: 3 frames",
  "cut.mp4": "truncated|damaged",
  "headless.mp4": "cannot be read",
  "cut.mkv": "truncated|damaged",
  "scratched.mp4": "damaged",
  "billion.mp4": "cannot be read",
  "billion.mkv": "truncated",
}


def test_every_bad_file_is_refused_with_its_reason_and_the_rest_goes_on(bad_folder, tmp_path, capsys):
  status = app.main(
    [
      "--raw",
      str(bad_folder),
      "--out",
      str(tmp_path),
      "--faces",
      "full_frame",
      "--size",
      str(SIZE),
      "--sync-model",
      "none",
    ]
  )
  printed = capsys.readouterr().out
  assert status == 0
  lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
  found = {line["file"]: line for line in lines}
  assert set(found) == {*EXPECTED, "sub/good é.mp4", "latin-\\xe9.mp4", "rows.mp4"}
  for name, reason in EXPECTED.items():
    assert found[name]["outcome"] == "rejected" and not found[name]["clips"], name
    assert any(part in found[name]["reason"] for part in reason.split("|")), (name, found[name]["reason"])
    assert name in printed
  assert [line["file"] for line in lines if line["outcome"] == "accepted"] == [
    "latin-\\xe9.mp4", "rows.mp4", "sub/good é.mp4",
  ]  # fmt: skip
  assert f"3 of {len(lines)} files accepted" in printed
  assert not list((tmp_path / "clips").glob(".*")), "nothing is left half-made"


def test_no_face_and_wrong_face_files_are_said(bad_folder, tmp_path):
  raw = tmp_path / "raw"
  raw.mkdir()
  for name in ("rows.mp4", "rows.faces.npz"):
    (raw / name).symlink_to(bad_folder / name)
  (raw / "faceless.mp4").symlink_to(bad_folder / "sub" / "good é.mp4")
  found = by_file(run(raw, tmp_path / "out", faces="auto"))
  assert "no face" in found["faceless.mp4"]["reason"]
  assert "7 rows, the video 75 frames" in found["rows.mp4"]["reason"]
  assert app.main(["--raw", str(raw), "--out", str(tmp_path / "out"), "--size", str(SIZE), "--json"]) == 1


def test_wrong_arguments_are_one_sentence(tmp_path, capsys):
  for arguments, words in [
    (["--raw", str(tmp_path / "none")], "is not a folder"),
    (["--raw", str(tmp_path)], "there is no file in"),
    (["--raw", str(tmp_path), "--size", "33"], "even number"),
    (["--raw", str(tmp_path), "--min-seconds", "5", "--max-seconds", "2"], "0.04 <= min <= max"),
    (["--raw", str(tmp_path), "--min-seconds", "0.01", "--max-seconds", "0.01"], "0.04 <= min <= max"),
    (["--raw", str(tmp_path), "--workers", "0"], "at least 1"),
  ]:
    assert app.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error and error.count("\n") == 1


def test_small_faces_are_refused_and_enlarged_ones_flagged(tmp_path):
  (tmp_path / "raw").mkdir()
  talk(tmp_path / "raw" / "a.mp4")  # 64 pixels
  summary = run(tmp_path / "raw", tmp_path / "out", size=96).summary()
  assert json.loads(json.dumps(summary))["upscaled_clips"] == 1
  assert "too small" in run(tmp_path / "raw", tmp_path / "large", size=256).entries[0]["reason"]


def test_splits_follow_groups_and_never_divide_one(tmp_path):
  for person in range(40):
    (tmp_path / f"p{person}").mkdir()
    for name in ("a.mp4", "b.mp4"):
      (tmp_path / f"p{person}" / name).touch()
  items = list(corpora.load("folder")(tmp_path))
  splits = {}
  for item in items:
    splits.setdefault(item.split_group, set()).add(item.split)
  assert len(splits) == 40 and all(len(found) == 1 for found in splits.values())
  for held_out in ("val", "test"):
    assert 1 <= sum(found == {held_out} for found in splits.values()) <= 12
  (tmp_path / "new").mkdir()
  (tmp_path / "new" / "c.mp4").touch()
  assert {item.key: item.split for item in corpora.load("folder")(tmp_path) if item.split_group != "new"} == {
    item.key: item.split for item in items
  }


@pytest.mark.parametrize("files, splits", [("ab", {"train", "test"}), ("abc", {"train", "val", "test"})])
def test_a_few_files_fill_the_splits(tmp_path, files, splits):
  for name in files:
    (tmp_path / f"{name}.mp4").touch()
  assert {item.split for item in corpora.load("folder")(tmp_path)} == splits


@pytest.mark.parametrize("count", range(1, 8))
def test_hashed_groups_always_leave_some_for_training(count):
  for draw in range(200):
    found = list(by_hash((f"{draw} {number}" for number in range(count)), test=0.1, val=0.1).values())
    if count > 1:
      assert set(found) == ({"train", "test"} if count == 2 else {"train", "val", "test"})


def test_an_unknown_corpus_is_refused(tmp_path):
  with pytest.raises(InputError, match="unknown corpus"):
    corpora.load("imagenet")


def test_every_container_is_prepared_and_what_was_noted_is_in_the_manifest(tmp_path):
  (tmp_path / "raw").mkdir()
  frame = Fraction(1, 25)
  talk(tmp_path / "raw" / "a.mpg", codec="mpeg1video", sound_codec="mp2", time_base=frame)
  talk(tmp_path / "raw" / "b.flv")
  talk(tmp_path / "raw" / "c.avi", codec="mpeg4", sound_codec="pcm_s16le", time_base=frame)
  joined = talk(tmp_path / "raw" / "d.ts")
  joined.write_bytes(joined.read_bytes() * 2)
  found = by_file(run(tmp_path / "raw", tmp_path / "out"))
  assert {entry["outcome"] for entry in found.values()} == {"accepted"}
  assert [found[name]["source"]["notes"] for name in ("a.mpg", "b.flv", "c.avi")] == [[], [], []]
  assert "starts again" in found["d.ts"]["source"]["notes"][0]
  assert sum(clip["frames"] for clip in found["d.ts"]["clips"]) == pytest.approx(150, abs=4)


def test_the_sound_track_is_a_setting(tmp_path, capsys):
  talk((tmp_path / "raw").mkdir() or tmp_path / "raw" / "a.mp4")
  assert by_file(run(tmp_path / "raw", tmp_path / "out", audio_track=1))["a.mp4"]["outcome"] == "accepted"
  assert "there is no track 2" in by_file(run(tmp_path / "raw", tmp_path / "out", audio_track=2))["a.mp4"]["reason"]
  assert app.main(["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "b"), "--audio-track", "0"]) == 2
  assert "counted from 1" in capsys.readouterr().err
