from __future__ import annotations

import shutil
import sys
import threading

import numpy as np
import pytest
from footage import write_video
from photograph import picture

from synclipmae_jax.apps import prepare as app
from synclipmae_jax.apps.footage import tell_fallback
from synclipmae_jax.data.faces import litert, sources
from synclipmae_jax.data.media import video
from synclipmae_jax.data.prepare import prepare
from synclipmae_jax.types import InputError


@pytest.fixture
def afresh(monkeypatch):
  """Clears the networks that were loaded before."""
  monkeypatch.setattr(litert, "_threads", threading.local())
  sources.detector.cache_clear()
  yield
  sources.detector.cache_clear()


@pytest.fixture
def damaged(afresh, tmp_path, monkeypatch):
  models = tmp_path / "models"
  shutil.copytree(litert.MODELS, models)
  path = models / "face_landmark.tflite"
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  monkeypatch.setattr(litert, "MODELS", models)
  return path


@pytest.fixture
def film(tmp_path):
  (tmp_path / "raw").mkdir()
  sound = np.random.default_rng(0).normal(0, 0.1, 48000)
  for name in ("a.mp4", "b.mp4"):
    write_video(tmp_path / "raw" / name, [picture((180, 144, 200))] * 75, sound=sound)
  return tmp_path / "raw"


def test_refuses_a_damaged_model(damaged, film):
  info = video.probe(film / "a.mp4")
  with pytest.raises(InputError, match="face_landmark.tflite is damaged"):
    sources.open_faces(film / "a.mp4", "mediapipe", info=info)
  _, notes = sources.open_faces(film / "a.mp4", "auto", info=info)
  assert len(notes) == 1 and "is damaged" in notes[0] and "skimage_lbp" in notes[0]
  damaged.unlink()
  with pytest.raises(InputError, match="face_landmark.tflite cannot be read"):
    litert.check()


def test_prepare_reports_the_fallback_once_without_litert(afresh, film, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
  arguments = ["--raw", str(film), "--out", str(tmp_path / "out"), "--size", "64", "--workers", "1"]
  arguments += ["--sync-model", "none"]
  assert app.main(arguments) == 0
  printed = capsys.readouterr().out
  assert printed.count("skimage_lbp") == 1 and "ai-edge-litert is not installed" in printed
  manifest = prepare(film, tmp_path / "out", size=64, progress=False)
  assert {entry["source"]["faces"] for entry in manifest.entries} == {"skimage_lbp"}
  assert app.main([*arguments, "--faces", "mediapipe"]) == 2
  assert "ai-edge-litert is not installed" in capsys.readouterr().err


def test_other_commands_report_the_fallback_once(damaged, capsys):
  tell_fallback("embed", "auto")
  tell_fallback("embed", "skimage_lbp")
  assert capsys.readouterr().err.count("is damaged") == 1


def test_clips_are_made_again_when_auto_selects_another_detector(film, tmp_path, afresh, monkeypatch):
  with monkeypatch.context() as without:
    without.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    prepare(film, tmp_path / "out", size=64, progress=False)
  litert._threads.__dict__.clear()
  sources.detector.cache_clear()
  manifest = prepare(film, tmp_path / "out", size=64, progress=False)
  assert {entry["source"]["faces"] for entry in manifest.entries} == {"mediapipe"} and manifest.notes == ()


def test_loading_prints_nothing_and_restores_stderr(afresh, capfd):
  litert.check()
  print("after", file=sys.stderr)
  assert capfd.readouterr().err == "after\n"


def test_each_thread_has_its_own_network():
  name = next(iter(litert.SHA256))
  there = []
  thread = threading.Thread(target=lambda: there.append(litert.network(name)))
  thread.start()
  thread.join()
  assert litert.network(name) is litert.network(name) is not there[0]
