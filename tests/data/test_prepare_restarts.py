"""Outputs of `data.prepare` do not depend on when and where it ran: killed runs, several hosts, another size."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import pytest
from array_record.python.array_record_module import ArrayRecordReader
from preparing import contents, run, talk
from tensorflow_datasets.proto import tf_example_pb2

from synclipmae_jax.types import InputError


@pytest.fixture
def raw(tmp_path):
  """Eight files of eight people, one of which is bad."""
  for number in range(8):
    (tmp_path / "raw" / f"p{number}").mkdir(parents=True)
    talk(tmp_path / "raw" / f"p{number}" / "a.mp4", count=60 + number)
  (tmp_path / "raw" / "p3" / "a.mp4").write_text("no video")
  return tmp_path / "raw"


def test_four_hosts_with_a_quarter_of_the_files_each_give_the_records_of_one(raw, tmp_path):
  """The folders of clips of the hosts, put together, are those of one run: it only writes the records."""
  one, whole = tmp_path / "one", tmp_path / "whole"
  run(raw, one)
  for host in range(4):
    part = tmp_path / f"raw{host}"
    for number in (host, host + 4):
      (part / f"p{number}").mkdir(parents=True)
      os.link(raw / f"p{number}" / "a.mp4", part / f"p{number}" / "a.mp4")
    run(part, tmp_path / f"out{host}")
    shutil.copytree(tmp_path / f"out{host}" / "clips", whole / "clips", dirs_exist_ok=True)
  before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
  run(raw, whole)
  assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items()), "no clip is made again"
  assert contents(whole) == contents(one)


def test_the_fields_of_a_record_have_one_order_in_every_process(tmp_path):
  talk((tmp_path / "raw").mkdir() or tmp_path / "raw" / "a.mp4")
  (shard,) = run(tmp_path / "raw", tmp_path / "out").records.glob("*.array_record*")
  content = ArrayRecordReader(str(shard)).read([0])[0]
  fields = tf_example_pb2.Example.FromString(content)
  assert len(fields.features.feature) > 20 and content == fields.SerializeToString(deterministic=True)


@pytest.mark.slow
def test_killed_at_any_moment_and_started_again_the_output_is_the_same_to_the_last_byte(raw, tmp_path):
  def command(out):
    options = ["--faces", "full_frame", "--size", "32", "--workers", "2", "--sync-model", "none", "--json"]
    return [sys.executable, "-m", "synclipmae_jax.apps.prepare", "--raw", raw, "--out", out, *options]

  subprocess.run(command(tmp_path / "whole"), check=True, stdout=subprocess.DEVNULL)
  out, kills = tmp_path / "killed", 0
  while True:
    process = subprocess.Popen(command(out), stdout=subprocess.DEVNULL)
    seen, changes = None, 0
    while process.poll() is None and changes <= 2 * kills + 1:  # each time a little later
      now = sorted(os.walk(out))  # passes over what goes meanwhile
      changes, seen = changes + (seen is not None and now != seen), now
      time.sleep(0.002)
    if process.poll() is not None:
      assert process.returncode == 0
      break
    process.kill()
    process.wait()
    kills += 1
    time.sleep(1)  # its workers end with it
  assert kills >= 3
  assert contents(out) == contents(tmp_path / "whole")


def test_a_second_run_on_another_size_is_refused_by_name(tmp_path):
  talk((tmp_path / "raw").mkdir() or tmp_path / "raw" / "a.mp4")
  out = tmp_path / "out"
  run(tmp_path / "raw", out, size=32)
  before = contents(out)
  with pytest.raises(InputError, match=f"{out} holds clips of 32 pixels, not 48: name another folder"):
    run(tmp_path / "raw", out, size=48)
  assert contents(out) == before
