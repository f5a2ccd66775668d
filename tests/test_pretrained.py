from __future__ import annotations

import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_checkpoint import write_tiny

from synclipmae_jax import SyncLipMAE
from synclipmae_jax.types import SAMPLES_PER_FRAME, InputError

rng = np.random.default_rng(0)
FRAMES = rng.integers(0, 255, (20, 32, 32, 3), dtype=np.uint8)
SOUND = rng.normal(0, 0.1, 20 * SAMPLES_PER_FRAME).astype(np.float32)


@pytest.fixture(scope="module")
def step(tmp_path_factory):
  return write_tiny(tmp_path_factory.mktemp("checkpoint") / "0")


@pytest.fixture(scope="module")
def model(step):
  return SyncLipMAE.load(step)


def cosine(a, b):
  return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_embed_returns_the_tokens_of_the_model(model):
  tokens = model.embed(FRAMES, SOUND)
  direct = jax.jit(model.embedder.model.embed)(model.embedder.params, model.embedder.params, FRAMES[None], SOUND[None])
  for name in ("identity", "vocal", "ambient", "audio"):
    np.testing.assert_allclose(getattr(tokens, name), getattr(direct, name)[0], atol=1e-5)
  assert tokens.times[-1] == 19 / 25 and tokens.face_box.shape == (20, 4)


def test_embed_refuses_other_shapes(model):
  with pytest.raises(InputError, match=r"uint8 \[T, 32, 32, 3\], not float32"):
    model.embed(FRAMES.astype(np.float32), SOUND)
  with pytest.raises(InputError, match="20 frames need a waveform of 12800 samples"):
    model.embed(FRAMES, SOUND[:-1])
  with pytest.raises(InputError, match="floating, in"):
    model.embed(FRAMES, np.zeros(len(SOUND), np.int16))
  with pytest.raises(InputError, match="no frame"):
    model.embed(FRAMES[:0], SOUND[:0])


def test_a_checkpoint_keeps_its_settings_and_notes_synthetic_training_data(model, tmp_path):
  other = SyncLipMAE.load(write_tiny(tmp_path / "0", embed_visible="all"))
  assert (model.embedder.model.embed_visible, other.embedder.model.embed_visible) == ("face_topk", "all")
  assert "this checkpoint was trained on synthetic faces only" in model.notes
  assert "its confidence is not calibrated" in model.notes


@pytest.mark.parametrize(
  "stamp, complaint",
  [
    ({"fps": 30}, "fps 30, here 25"),
    ({"crop": "tight"}, "crop 'tight', here 'square"),
    ({"sample_rate": None}, "sample_rate None, here 16000"),
    ({"image_size": None}, "a stamp that cannot be read"),
    ({"image_size": 36}, "does not describe a model|does not fit"),
  ],
)
def test_other_preprocessing_is_refused_by_name(tmp_path, stamp, complaint):
  with pytest.raises(InputError, match=complaint):
    SyncLipMAE.load(write_tiny(tmp_path / "0", **stamp))


@pytest.mark.parametrize(
  "change, complaint",
  [
    (lambda meta: "{", "meta.json that cannot be read"),
    (lambda meta: "[1]", "meta.json that cannot be read"),
    (lambda meta: {**meta, "calibration": [1]}, "calibration that cannot be read"),
    (lambda meta: {**meta, "calibration": {"right": [10**400]}}, "calibration that cannot be read"),
    (lambda meta: {**meta, "preprocessing": meta["preprocessing"] | {"image_size": 0}}, "does not describe a model"),
  ],
)
def test_an_invalid_meta_json_is_refused(step, tmp_path, change, complaint):
  shutil.copytree(step, tmp_path / "0")
  path, manifest = tmp_path / "0" / "meta.json", tmp_path / "0" / "checksums.json"
  changed = change(json.loads(path.read_text()))
  path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
  sums = {**json.loads(manifest.read_text()), "meta.json": hashlib.sha256(path.read_bytes()).hexdigest()}
  manifest.write_text(json.dumps(sums))
  with pytest.raises(InputError, match=complaint):
    SyncLipMAE.load(tmp_path / "0")


def test_a_damaged_step_is_skipped_without_output_on_stdout(step, tmp_path, capsys):
  for name in "01":
    shutil.copytree(step, tmp_path / "checkpoints" / name)
  with (tmp_path / "checkpoints" / "1" / "meta.json").open("a") as file:
    file.write(" ")
  assert SyncLipMAE.load(tmp_path).name.endswith("checkpoints/0")
  out, err = capsys.readouterr()
  assert out == "" and "checkpoint 1 is damaged" in err


def test_a_missing_checkpoint_raises_one_sentence(tmp_path):
  with pytest.raises(InputError, match="no complete checkpoint"):
    SyncLipMAE.load(tmp_path)


def test_sync_loss_is_one_minus_the_cosine_at_the_lag(model):
  tokens = model.embed(FRAMES, SOUND)
  pixels, sound = jnp.float32(FRAMES[None]) / 255, jnp.asarray(SOUND[None])
  pairs = {
    0: (tokens.audio, tokens.vocal), 2: (tokens.audio[:-2], tokens.vocal[2:]), -3: (tokens.audio[3:], tokens.vocal[:-3])
  }  # fmt: skip
  for lag, (audio, vocal) in pairs.items():
    expected = 1 - cosine(audio, vocal).mean()
    np.testing.assert_allclose(model.sync_loss(pixels, sound, lag=lag), expected, atol=1e-5)
  with pytest.raises(ValueError, match="floating"):
    model.sync_loss(jnp.asarray(FRAMES[None]), sound)
  with pytest.raises(ValueError, match="must be shorter than the clip"):
    model.sync_loss(pixels, sound, lag=20)
  with pytest.raises(ValueError, match="20 frames need audio"):
    model.sync_loss(pixels, sound[:, :-1])


def test_descending_the_sync_loss_raises_the_cosine(model):
  step = jax.jit(jax.value_and_grad(lambda pixels: model.sync_loss(pixels, jnp.asarray(SOUND[None]))))
  pixels = jnp.asarray(FRAMES[None], jnp.float32) / 255
  before, gradient = step(pixels)
  assert gradient.shape == pixels.shape and np.isfinite(gradient).all()
  assert (jnp.abs(gradient).max(axis=(0, 2, 3, 4)) > 0).all()  # every frame gets a gradient
  for _ in range(10):
    value, gradient = step(pixels)
    pixels = jnp.clip(pixels - 0.5 * gradient / jnp.linalg.norm(gradient), 0, 1)
  after, _ = step(pixels)
  assert after < before - 0.05
