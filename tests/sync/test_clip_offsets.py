"""Offsets of prepared clips by the model of the package: measured, corrected or refused, stored and continued."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pytest

from synclipmae_jax import SyncLipMAE
from synclipmae_jax.data import records
from synclipmae_jax.data.media.audio import encode_flac
from synclipmae_jax.data.prepare import prepare
from synclipmae_jax.data.quality import IN_SYNC, Gates
from synclipmae_jax.data.synthtalk.clip import make_clip
from synclipmae_jax.data.synthtalk.corpus import write_clip
from synclipmae_jax.sync.offsets import ClipOffsets, LipOffsets
from synclipmae_jax.types import SAMPLES_PER_FRAME

SETTINGS = dict(corpus="folder", faces="precomputed", size=96, progress=False)


@pytest.fixture(scope="module")
def model():
  loaded = SyncLipMAE.load()
  return ClipOffsets(loaded.embedder, loaded.calibration)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
  """Files of unknown lag: two late or early ones, one in sync, and one with the sound of another."""
  made, raw = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("raw")
  lags = {}
  for index in (0, 1, 3):
    clip = make_clip(index, seed=6, split="test", seconds=5.0)
    write_clip(clip, made, size=112)
    lags[f"{index}.mp4"] = clip.lag
    for end in (".mp4", ".faces.npz"):
      shutil.copy(made / f"{clip.key}{end}", raw / f"{index}{end}")
  shutil.copy(raw / "0.faces.npz", raw / "foreign.faces.npz")
  with contextlib.ExitStack() as stack:
    seen, heard = (stack.enter_context(av.open(str(raw / name))) for name in ("0.mp4", "1.mp4"))
    out = stack.enter_context(av.open(str(raw / "foreign.mp4"), "w"))
    streams = {
      source: out.add_stream_from_template(source) for source in (seen.streams.video[0], heard.streams.audio[0])
    }
    for source, stream in streams.items():
      for packet in source.container.demux(source):
        if packet.dts is not None:
          packet.stream = stream
          out.mux(packet)
  assert sorted(abs(lag) > IN_SYNC for lag in lags.values()) == [False, True, True]
  return raw, lags


def test_offsets_are_measured_corrected_and_stored(raw, model, tmp_path):
  folder, lags = raw
  out = tmp_path / "out"
  found = {entry["file"]: entry for entry in prepare(folder, out, offset_model=lambda: model, **SETTINGS).entries}
  for name, lag in lags.items():
    (clip,) = found[name]["clips"]
    assert clip["quality"]["offset"] == pytest.approx(lag, abs=1) and clip["quality"]["offset_confidence"] > 0.5
    assert clip["frames"] == (125 if abs(lag) <= IN_SYNC else 125 - abs(clip["offset"]))
  (foreign,) = found["foreign.mp4"]["clips"]
  assert foreign["quality"]["sync"] < 0.5 < min(found[name]["clips"][0]["quality"]["sync"] for name in lags)
  assert "offset" not in foreign, "nothing is corrected that is not sure"

  manifest = (out / "manifest.jsonl").read_bytes()
  answers = {path: path.stat().st_mtime_ns for path in out.glob("clips/*/offsets.json")}
  assert len(answers) == 4
  strict = prepare(folder, out, offset_model=lambda: model, gates=Gates(max_offset=2, min_sync=0.5), **SETTINGS)
  outcomes = {entry["file"]: (entry["outcome"], entry["reason"]) for entry in strict.entries}
  for name, lag in lags.items():
    assert (outcomes[name][0] == "rejected") == (abs(lag) > 2 + IN_SYNC or "--max-offset" in outcomes[name][1])
  assert "--min-sync is 0.5" in outcomes["foreign.mp4"][1]
  next(iter(answers)).unlink()  # as if the run had been stopped before this file
  prepare(folder, out, offset_model=lambda: model, **SETTINGS)
  assert (out / "manifest.jsonl").read_bytes() == manifest
  after = {path: path.stat().st_mtime_ns for path in answers}
  assert sum(after[path] != answers[path] for path in answers) == 1, "the other answers are kept"


def test_corrected_records_are_in_sync(raw, model, tmp_path):
  folder, lags = raw
  late = next(name for name, lag in lags.items() if abs(lag) > IN_SYNC)
  only = tmp_path / "raw"
  only.mkdir()
  for path in folder.glob(f"{late.removesuffix('.mp4')}.*"):
    shutil.copy(path, only)
  prepare(only, tmp_path / "out", offset_model=lambda: model, **SETTINGS)
  found = records.open_records(tmp_path / "out", split="train")
  record = found[0]
  assert len(found) == 1
  assert record["provenance"]["corrected_offset"] == pytest.approx(lags[late], abs=1)
  stem = tmp_path / "00"
  stem.with_suffix(".mp4").write_bytes(record["mp4"])
  stem.with_suffix(".flac").write_bytes(record["flac"])
  np.savez(stem.with_suffix(".npz"), face_box=record["face_box"], mouth_box=record["mouth_box"])
  (answer,) = model([(0, stem)])
  assert abs(answer["offset"]) <= IN_SYNC and answer["offset_confidence"] > 0.5


@pytest.mark.parametrize("offset", [6, -9])
def test_lips_alone_tell_the_offset(tmp_path, offset):
  """Lips that open with the level of the sound, `offset` frames late; a clip without landmarks is not known."""
  rng, frames = np.random.default_rng(0), 150
  level = np.repeat(rng.uniform(0, 1, frames), SAMPLES_PER_FRAME)
  sound = 0.3 * level * np.sin(2 * np.pi * 1500 * np.arange(len(level)) / 16000)
  opening = np.roll(level[::SAMPLES_PER_FRAME], offset) + rng.normal(0, 0.3, frames)
  points = np.full((frames, 68, 2), 0.5, np.float32)
  points[:, 50:53, 1] = 0.6
  points[:, 56:59, 1] = 0.65 + 0.05 * opening[:, None]
  boxes = dict(face_box=np.tile(np.float32([0.2, 0.2, 0.8, 0.8]), (frames, 1)))
  for name, landmarks, schema in (("00", points, "mediapipe68"), ("01", points[:, :0], "")):
    (tmp_path / f"{name}.mp4").touch()
    (tmp_path / f"{name}.flac").write_bytes(encode_flac(sound))
    np.savez(tmp_path / f"{name}.npz", landmarks=landmarks, landmark_schema=schema, **boxes)
  told, unknown = LipOffsets()([(0, tmp_path / "00"), (200, tmp_path / "01")])
  assert told["offset"] == offset and told["offset_confidence"] > 0.5 and told["sync"] > 0.5
  assert unknown == {"offset": None, "offset_confidence": 0.0, "sync": None}


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_measures_ends_in_the_same_bytes(raw, tmp_path):
  folder, _ = raw
  command = lambda out: [sys.executable, "-m", "synclipmae_jax.apps.prepare", "--raw", str(folder), "--out", str(out),
                         "--corpus", "folder", "--size", "96", "--workers", "1", "--json"]  # fmt: skip
  subprocess.run(command(tmp_path / "whole"), check=True, stdout=subprocess.DEVNULL)
  process = subprocess.Popen(command(tmp_path / "killed"), stdout=subprocess.DEVNULL)
  while not list((tmp_path / "killed").glob("clips/*/offsets.json")) and process.poll() is None:
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  process.wait()
  subprocess.run(command(tmp_path / "killed"), check=True, stdout=subprocess.DEVNULL)
  names = lambda out: sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
  assert names(tmp_path / "whole") == names(tmp_path / "killed")
  for name in names(tmp_path / "whole"):
    if name.name not in ("done.json", ".lock") and "json" in name.suffix or name.suffix in (".mp4", ".flac"):
      assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name
  assert json.loads((tmp_path / "killed" / "manifest.jsonl").read_text().splitlines()[0])["clips"]
