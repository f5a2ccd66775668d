"""Runs of `data.prepare` that are repeated, interrupted, killed, or out of disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from preparing import SIZE, by_file, run, talk

from synclipmae_jax.apps import prepare as app
from synclipmae_jax.data import clips, corpora, engines, prepare, records, storage
from synclipmae_jax.data.media import video, watchdog
from synclipmae_jax.types import InputError


def test_a_second_run_does_only_what_changed(tmp_path):
  raw, out = tmp_path / "raw", tmp_path / "out"
  raw.mkdir()
  for name in ("a.mp4", "b.mp4"):
    talk(raw / name)
  (raw / "c.mp4").write_text("no")
  first = run(raw, out)
  stamp = {path: path.stat().st_mtime_ns for path in out.glob("clips/*/done.json")}
  again = run(raw, out)
  assert again.entries == first.entries and again.records == first.records
  assert stamp == {path: path.stat().st_mtime_ns for path in out.glob("clips/*/done.json")}
  talk(raw / "b.mp4", count=100)
  changed = run(raw, out)
  redone = [path for path in stamp if path.stat().st_mtime_ns != stamp[path]]
  assert len(redone) == 1 and redone[0].parent.name.startswith("b.mp4")
  assert by_file(changed)["b.mp4"]["clips"][0]["frames"] == 100
  assert changed.records != first.records and records.find_records(out) == changed.records
  next(out.glob("clips/a.mp4*/00.flac")).unlink()  # the user removed it
  assert run(raw, out).entries == changed.entries


def test_an_interrupted_file_leaves_nothing_and_is_done_next_time(tmp_path, monkeypatch, capsys):
  talk((tmp_path / "raw").mkdir() or tmp_path / "raw" / "a.mp4")

  def interrupt(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(video.ClipWriter, "write", interrupt)
    arguments = f"--raw {tmp_path / 'raw'} --out {tmp_path / 'out'} --faces full_frame --size 32".split()
    arguments += ["--sync-model", "none"]
    assert app.main(arguments) == 130
  assert "the same command continues" in capsys.readouterr().err
  assert not list((tmp_path / "out" / "clips").iterdir()) and not (tmp_path / "out" / "manifest.jsonl").exists()
  assert app.main(arguments) == 0


def test_what_nobody_foresaw_stops_one_file_and_a_full_disk_stops_the_run(tmp_path, monkeypatch, capsys):
  talk((tmp_path / "raw").mkdir() or tmp_path / "raw" / "a.mp4")
  talk(tmp_path / "raw" / "b.mp4")
  write = video.ClipWriter.write

  def fails(error):
    def once(self, image, armed=[True]):  # noqa: B006 (one list for all calls)
      if armed:
        armed.clear()
        raise error
      write(self, image)

    return once

  with monkeypatch.context() as patch:
    patch.setattr(video.ClipWriter, "write", fails(RuntimeError("odd")))
    found = by_file(run(tmp_path / "raw", tmp_path / "out"))
  assert found["a.mp4"]["reason"] == "unexpected RuntimeError: odd" and found["b.mp4"]["outcome"] == "accepted"
  assert by_file(run(tmp_path / "raw", tmp_path / "out"))["a.mp4"]["outcome"] == "accepted", "tried again"
  with monkeypatch.context() as patch:
    patch.setattr(video.ClipWriter, "write", fails(OSError(28, "No space left on device")))
    arguments = f"--raw {tmp_path / 'raw'} --out {tmp_path / 'full'} --faces full_frame --size 32 --workers 1".split()
    arguments += ["--sync-model", "none"]
    assert app.main(arguments) == 2
  assert "No space left" in capsys.readouterr().err and not list((tmp_path / "full" / "clips").iterdir())


class Deadly(type(Path())):
  """A path that ends the process that unpickles it, as a crash of a decoder does."""

  def __reduce__(self):
    return os._exit, (1,)


def _hang():
  watchdog.end_process_after(0.5)
  with watchdog.watched():
    time.sleep(100)


class Endless(type(Path())):
  """A path whose reading does not return."""

  def __reduce__(self):
    return _hang, ()


@pytest.mark.parametrize("kind", [Deadly, Endless])
def test_a_file_that_kills_its_worker_is_refused_and_the_others_are_done(tmp_path, kind):
  (tmp_path / "raw").mkdir()
  (tmp_path / "out" / "clips").mkdir(parents=True)
  for name in ("a.mp4", "b.mp4", "c.mp4"):
    talk(tmp_path / "raw" / name)
  items = [item for item in corpora.load("folder")(tmp_path / "raw")]
  items[1] = corpora.SourceItem(**{**vars(items[1]), "path": kind(items[1].path)})
  settings = clips.Settings(size=SIZE, faces="full_frame")
  with (
    storage.places(tmp_path / "raw", tmp_path / "out", one_process=False) as places,
    engines.engine("local", workers=2) as run,
  ):
    found = {entry["file"]: entry for entry in prepare._run(items, settings, places, run)}
  assert {name: entry["outcome"] for name, entry in found.items()} == {
    "a.mp4": "accepted", "b.mp4": "rejected", "c.mp4": "accepted",
  }  # fmt: skip
  assert "ended the process" in found["b.mp4"]["reason"] and "did not return" in found["b.mp4"]["reason"]


@pytest.mark.slow
def test_ctrl_c_with_workers_keeps_what_is_done(tmp_path):
  raw, out = tmp_path / "raw", tmp_path / "out"
  raw.mkdir()
  for number in range(12):
    talk(raw / f"{number:02d}.mp4", count=500)
  command = [sys.executable, "-m", "synclipmae_jax.apps.prepare", "--raw", raw, "--out", out, "--faces", "full_frame",
             "--size", "64", "--workers", "2", "--json", "--sync-model", "none"]  # fmt: skip
  listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs inherit it ignored
  process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
  while not list(out.glob("clips/*/done.json")):
    time.sleep(0.05)
  process.send_signal(signal.SIGINT)
  _, error = process.communicate(timeout=30)
  assert process.returncode == 130 and "the same command continues" in error and "Traceback" not in error
  done = len(list(out.glob("clips/*/done.json")))
  assert 0 < done < 12 and not list(out.glob("clips/.*"))
  finished = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
  assert json.loads(finished.stdout)["accepted"] == 12


def test_two_runs_do_not_share_a_folder_and_links_in_a_circle_end(tmp_path, capsys):
  raw, out = tmp_path / "raw", tmp_path / "out"
  raw.mkdir()
  talk(raw / "a.mp4")
  (raw / "circle.mp4").symlink_to("circle.mp4")
  talk(raw / ("long" * 62 + ".mp4"))  # there is no room for .faces.npz in a name
  out.mkdir()
  with prepare._alone(out), pytest.raises(InputError, match="another run is preparing"):
    run(raw, out)
  found = by_file(run(raw, out, faces="auto"))
  assert "symbolic links" in found["circle.mp4"]["reason"] and "no face" in found["long" * 62 + ".mp4"]["reason"]
  (tmp_path / "loop").symlink_to("loop")
  assert app.main(["--raw", str(tmp_path / "loop"), "--out", str(out)]) == 2
  assert "is not a folder" in capsys.readouterr().err


def test_a_killed_run_leaves_no_worker(tmp_path):
  raw, out = tmp_path / "raw", tmp_path / "out"
  raw.mkdir()
  for name in ("a.mp4", "b.mp4"):
    talk(raw / name, count=500)
  command = [sys.executable, "-m", "synclipmae_jax.apps.prepare", "--raw", raw, "--out", out, "--faces", "full_frame",
             "--size", "64", "--workers", "2", "--sync-model", "none"]  # fmt: skip
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
  deadline = time.monotonic() + 60
  while not list(out.glob("clips/.*")) and time.monotonic() < deadline:
    time.sleep(0.02)
  process.kill()
  process.communicate(timeout=20)  # the workers hold the pipe: it closes when the last of them has gone
