"""A model made ready for `sync` gives the tokens of the model itself, and its file may be missing, damaged or old."""

from __future__ import annotations

import os

import numpy as np
import pytest
from tiny_checkpoint import write_tiny

from synclipmae_jax.checkpoints.format import MANIFEST
from synclipmae_jax.checkpoints.reading import resolve_step
from synclipmae_jax.inference.blocks import DEMO
from synclipmae_jax.pretrained import SyncLipMAE
from synclipmae_jax.sync import ready
from synclipmae_jax.types import SAMPLES_PER_FRAME


@pytest.fixture(scope="module")
def step(tmp_path_factory):
  """A checkpoint of a tiny model."""
  place = tmp_path_factory.mktemp("tiny") / "checkpoint"
  write_tiny(place)
  return resolve_step(place)


@pytest.fixture(scope="module")
def model(step):
  return SyncLipMAE.load(step)


@pytest.fixture(scope="module")
def kept(model, step, tmp_path_factory):
  """A folder with the file of the model, and the loads that it took."""
  folder, loads = tmp_path_factory.mktemp("ready"), []

  def load():
    loads.append(1)
    return model

  first = ready.make_ready(load, step=step, folder=folder)
  first.encoder._programs.result()
  return folder, loads, load, first


def test_the_second_model_is_read_and_has_the_tokens_of_the_first(model, step, kept):
  folder, loads, load, first = kept
  second = ready.make_ready(load, step=step, folder=folder)
  assert loads == [1] and len(list(folder.iterdir())) == 1
  random, own = np.random.default_rng(0), model.embedder
  frames = random.integers(0, 256, (3, own.image_size, own.image_size, 3), np.uint8)
  boxes = dict(face_box=np.float32([[0.2, 0.2, 0.8, 0.9]] * 3), mouth_box=np.float32([[0.4, 0.6, 0.6, 0.8]] * 3))
  sound = random.normal(0, 0.1, SAMPLES_PER_FRAME * (own.block_frames + 2 * own.audio_context)).astype(np.float32)
  wanted, lips = own.encode_frames(frames, **boxes)
  for each in (first, second):
    found, of_lips = each.encoder.encode_frames(frames, **boxes)
    for name in ("identity", "vocal", "ambient"):
      np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=1e-5)
    np.testing.assert_allclose(of_lips, lips, atol=1e-5)
    np.testing.assert_allclose(each.encoder.encode_sound(sound), own.encode_sound(sound), atol=1e-5)
    assert each.encoder.shape == own.shape and each.calibration == model.calibration
    assert (each.name, each.notes) == (model.name, model.notes)


def test_the_file_is_enough(step, kept, monkeypatch):
  """Nothing is compiled and no model is loaded."""
  folder, _, _, first = kept
  monkeypatch.setattr(ready, "_made", lambda *_: pytest.fail("compiled"))
  found = ready.make_ready(lambda: pytest.fail("loaded"), step=step, folder=folder)
  assert set(found.encoder._programs.result()) == set(first.encoder._programs.result())


def test_a_damaged_file_and_a_folder_that_is_none_are_no_error(step, kept, tmp_path, monkeypatch):
  folder, loads, load, _ = kept
  (whole,) = folder.iterdir()
  before = len(loads)
  monkeypatch.setattr(ready, "_made", lambda model, step, path: {"path": path})  # nothing is compiled
  for number, content in enumerate((b"", whole.read_bytes()[:1000], b"PK" + os.urandom(100))):
    (tmp_path / whole.name).write_bytes(content)
    made = ready.make_ready(load, step=step, folder=tmp_path)
    assert len(loads) == before + number + 1 and made.name
    assert made.encoder._programs.result() == {"path": tmp_path / whole.name}
  assert ready.make_ready(load, step=step, folder=None).encoder._programs.result() == {"path": None}


def test_a_place_that_cannot_be_written_is_no_error(model, step, tmp_path):
  (tmp_path / "file").touch()
  assert len(ready._made(model, step, tmp_path / "file" / "model.npz")) == 5
  assert len(list(tmp_path.iterdir())) == 1


def test_a_model_that_is_too_large_to_keep_uses_the_cache_of_jax(model, step, tmp_path, monkeypatch):
  monkeypatch.setattr(ready, "LARGEST", 0)
  monkeypatch.setattr(ready, "_without_jax_cache", lambda: pytest.fail("compiled without it"))
  assert len(ready._made(model, step, tmp_path / "model.npz")) == 5
  assert not list(tmp_path.iterdir())


def test_programs_that_cannot_be_read_are_made_anew(step, kept, tmp_path):
  """Another jax under the same name, or another device: the thread finds out, and loads the model."""
  folder, loads, load, _ = kept
  (whole,) = folder.iterdir()
  with np.load(whole) as stored:
    ready._write(tmp_path / whole.name, {**stored, "frames": np.zeros(10, np.uint8)})
  broken, before = (tmp_path / whole.name).stat().st_size, len(loads)
  found = ready.make_ready(load, step=step, folder=tmp_path)
  assert set(found.encoder._programs.result()) == {"frames", "lips", "mirror", "sound", "zoom"}
  assert len(loads) == before + 1 and (tmp_path / whole.name).stat().st_size > broken


def test_a_model_of_another_step_is_not_kept_under_the_name_of_this_one(model, step, tmp_path):
  """The newest step is damaged: the one before it is loaded."""
  (tmp_path / "newest").mkdir()
  (tmp_path / "newest" / MANIFEST).write_text("{}")
  found = ready.make_ready(lambda: model, step=tmp_path / "newest", folder=tmp_path / "kept")
  assert found.name == model.name and len(found.encoder._programs.result()) == 5
  assert not (tmp_path / "kept").exists()


def test_other_sources_versions_and_checkpoints_have_other_names(tmp_path, monkeypatch):
  (tmp_path / MANIFEST).write_text("{}")
  assert ready.MANIFEST == MANIFEST
  keys = [ready._key(DEMO), ready._key(tmp_path)]
  monkeypatch.setenv("JAX_ENABLE_X64", "1")
  keys.append(ready._key(DEMO))
  monkeypatch.setattr(ready.importlib.metadata, "version", lambda name: "9.9")
  keys.append(ready._key(DEMO))
  monkeypatch.setattr(ready.Path, "read_text", lambda self: "flags : avx9")
  keys.append(ready._key(DEMO))
  monkeypatch.setattr(ready, "_PACKAGE", tmp_path)
  keys.append(ready._key(DEMO))
  assert len(set(keys)) == len(keys) and ready._key(DEMO) == keys[-1]


def test_the_files_used_longest_ago_go_first(tmp_path, monkeypatch):
  monkeypatch.setattr(ready, "BOUND", 5000)
  for number in range(4):
    ready._write(tmp_path / f"{number}.npz", {"x": np.zeros(1500, np.uint8)})
    os.utime(tmp_path / f"{number}.npz", (1000 + number,) * 2)
  ready._write(tmp_path / "4.npz", {"x": np.zeros(1500, np.uint8)})
  assert sorted(path.name for path in tmp_path.iterdir()) == ["3.npz", "4.npz"]
