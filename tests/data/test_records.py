from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from footage import clicks, numbered, write_video

from synclipmae_jax.data import prepare, records
from synclipmae_jax.types import InputError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """Six files of one or two clips, groups of their own."""
  folder = tmp_path_factory.mktemp("records")
  (folder / "raw").mkdir()
  for number in range(6):
    count = 50 + 40 * (number % 2)
    write_video(folder / "raw" / f"{number}.mp4", map(numbered, range(count)), sound=clicks(count / 25, [], noise=0.1))
  prepare.prepare(folder / "raw", folder / "out", faces="full_frame", size=32, max_seconds=2, progress=False)
  return folder / "out"


def test_records_are_the_manifest_in_its_order(prepared):
  lines = [json.loads(line) for line in (prepared / "manifest.jsonl").read_text().splitlines()]
  for split in ("train", "test"):
    source = records.open_records(prepared, split=split)
    expected = [(clip["key"], clip["frames"]) for line in lines if line["split"] == split for clip in line["clips"]]
    assert [(source[i]["key"], source[i]["n_frames"]) for i in range(len(source))] == expected
    assert source.n_frames.tolist() == [frames for _, frames in expected]


def test_what_is_absent_says_so(prepared):
  record = records.open_records(prepared, split="train")[0]
  frames = record["n_frames"]
  assert record["face_box"].shape == (frames, 4) and record["face_box"].dtype == np.float32
  assert (record["mouth_box"] == -1).all() and record["mouth_box"].shape == (frames, 4)
  assert record["landmarks"].shape == (frames, 0, 2) and record["truth"].shape == (frames, 0)
  assert record["has_lag"] == 0 and record["emotion"] == record["speaker"] == record["text_source"] == ""
  assert record["actions"] is None and record["words"] == record["emotion_segments"] == record["action_segments"] == ()
  assert record["truth_names"] == [] and record["text"] == "" and record["landmark_schema"] == ""
  assert record["preprocessing"]["crop"].startswith("square") and record["provenance"]["file"].endswith(".mp4")


def test_an_existing_version_is_left_alone_and_another_manifest_is_another_version(prepared):
  stamp = records.open_records(prepared, split="train").preprocessing
  path = records.find_records(prepared)
  times = {file: file.stat().st_mtime_ns for file in path.iterdir()}
  assert records.write_records(prepared, stamp=stamp) == path
  assert times == {file: file.stat().st_mtime_ns for file in path.iterdir()}
  manifest = prepared / "manifest.jsonl"
  kept = manifest.read_text()
  try:
    manifest.write_text("".join(kept.splitlines(keepends=True)[:3]))
    other = records.write_records(prepared, stamp=stamp)
    assert other != path and records.find_records(prepared) == other
    manifest.unlink()
    with pytest.raises(InputError, match="2 versions"):
      records.find_records(prepared)
    assert records.find_records(path) == path
  finally:
    manifest.write_text(kept)
  assert records.find_records(prepared) == records.find_records(prepared / "records") == path


def test_a_damaged_clip_is_named_before_the_writer_prints_it_all(prepared, tmp_path):
  for name in ("clips", "manifest.jsonl"):
    (tmp_path / name).symlink_to(prepared / name)
  line = json.loads((prepared / "manifest.jsonl").read_text().splitlines()[0])
  line["clips"][0]["frames"] += 1
  (tmp_path / "manifest.jsonl").unlink()
  (tmp_path / "manifest.jsonl").write_text(json.dumps(line) + "\n")
  with pytest.raises(InputError, match="clip 0.mp4#0: face_box is float32"):
    records.write_records(tmp_path, stamp={})
  with pytest.raises(InputError, match="no records"):
    records.find_records(tmp_path)


def test_what_is_not_there_is_one_sentence(prepared, tmp_path):
  with pytest.raises(InputError, match="there are no records"):
    records.open_records(tmp_path, split="train")
  with pytest.raises(InputError, match="no split 'dev': it has"):
    records.open_records(prepared, split="dev")


def test_reading_and_writing_need_neither_tensorflow_nor_jax(prepared):
  code = f"""
import sys
from synclipmae_jax.data import pipeline, prepare, records
source = records.open_records({str(prepared)!r}, split="train")
source[0]
next(pipeline.eval_clips({str(prepared)!r}, split="test", image_size=32))
heavy = {{"jax", "flax", "tensorflow", "torch", "matplotlib", "skimage", "einops"}} & set(sys.modules)
assert not heavy, heavy
"""
  subprocess.run([sys.executable, "-c", code], check=True)


def test_damage_is_one_sentence(prepared, tmp_path):
  shutil.copytree(prepared, tmp_path / "out")
  path = records.find_records(tmp_path / "out")
  shard = next(path.glob("*train.array_record*"))
  whole = shard.read_bytes()
  flipped = bytearray(whole)
  flipped[len(whole) // 3] ^= 255
  for content in (whole[: len(whole) // 2], bytes(flipped)):
    shard.write_bytes(content)
    with pytest.raises(InputError, match="is damaged .*: delete it"):
      source = records.open_records(tmp_path / "out", split="train")
      [source[index] for index in range(len(source))]
  (path / "metadata.json").write_text("{")
  with pytest.raises(InputError, match="is damaged .*: delete it"):
    records.open_records(tmp_path / "out", split="train")


def test_records_of_another_manifest_do_not_count(prepared, tmp_path):
  shutil.copytree(prepared, tmp_path / "out")
  (tmp_path / "out" / "manifest.jsonl").write_text("")
  with pytest.raises(InputError, match="there are no records"):
    records.find_records(tmp_path / "out")


def test_records_of_an_earlier_form_are_refused_by_name_and_made_anew(prepared, tmp_path):
  shutil.copytree(prepared, tmp_path / "out")
  path = records.find_records(tmp_path / "out")
  older = path.with_name("1.0.0")
  path.rename(older)
  description = json.loads((older / "dataset_info.json").read_text())
  (older / "dataset_info.json").write_text(json.dumps(description | {"version": "1.0.0"}))
  for directory in (tmp_path / "out", older):
    with pytest.raises(InputError, match="version 1.0.0, .* 2.0.0 is required: run the same `synclipmae prepare`"):
      records.open_records(directory, split="train")
  renewed = records.write_records(tmp_path / "out", stamp={"size": 32})
  assert records.find_records(tmp_path / "out") == renewed and len(records.open_records(renewed, split="train"))
