"""A run of configs/videomae.py from its configuration to the features of its encoder; those of a converted donor."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from convert.random_weights import donor_weights
from safetensors.numpy import save_file

from synclipmae_jax import checkpoints
from synclipmae_jax.convert.conversion import convert
from synclipmae_jax.run import jobs
from synclipmae_jax.run.feature_encoders import load_encoder
from synclipmae_jax.run.video_encoders import load_video_encoder
from synclipmae_jax.types import InputError

SPEC = importlib.util.spec_from_file_location("videomae", Path(__file__).parents[2] / "configs" / "videomae.py")
CONFIG = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(CONFIG)


@pytest.mark.slow
def test_a_run_and_its_features(tmp_path, capsys):
  config = CONFIG.get_config("marlin_tiny")
  assert jobs.run(config, tmp_path) is None
  report = json.loads((tmp_path / "eval.json").read_text())["videomae"]
  assert report["split"] == "test" and report["clips"] == 6 and report["explained"] < 1
  assert "Masked pixels of 6 clips of the split test: R²" in capsys.readouterr().out
  assert {"video_encoder", "video_decoder", "critic"} < set(checkpoints.list_items(tmp_path))
  steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert {"reconstruction", "adversarial", "critic"} <= steps[0].keys()

  frames = np.random.default_rng(0).integers(0, 256, (20, 48, 48, 3), dtype=np.uint8)
  features = load_video_encoder(tmp_path).embed(frames)
  assert features.shape == (3, 32) and np.isfinite(features).all()
  pairs = load_video_encoder(tmp_path, pool="pair").embed(frames)
  assert pairs.shape == (12, 32)
  probed = load_encoder("marlin", str(tmp_path))
  assert (probed.name, probed.image_size, probed.row_frames, probed.names) == ("MARLIN", 32, 2, ("tubes",))
  boxes = dict(face_box=np.zeros((20, 4), np.float32), mouth_box=np.zeros((20, 4), np.float32))
  np.testing.assert_array_equal(probed.features(frames, **boxes)["tubes"], pairs)
  with pytest.raises(InputError, match="is of MARLIN: give --config.encoder.kind=marlin"):
    load_encoder("videomae", str(tmp_path))


def test_features_of_a_converted_donor(tmp_path):
  """MARLIN: 16 frames at a stride of 2, of the face."""
  sizes = dict(
    patch=8, epsilon=1e-5, position_table=True, image_size=32, frames=16, width=64, depth=1, heads=1, mlp_width=64,
    normalise=False,
  )  # fmt: skip
  save_file(donor_weights("marlin", {"encoder": sizes}, 1), tmp_path / "marlin.safetensors")
  convert("marlin", src=tmp_path / "marlin.safetensors", dst=tmp_path / "marlin")
  model = load_video_encoder(tmp_path / "marlin")
  frames = np.random.default_rng(0).integers(0, 256, (64, 40, 40, 3), dtype=np.uint8)
  box = np.tile(np.float32([0.3, 0.3, 0.7, 0.7]), (64, 1))
  features = model.embed(frames, box)
  assert features.shape == (2, 64)
  unseen = frames.copy()
  unseen[1::2], unseen[:, :, :4] = 0, 0
  np.testing.assert_array_equal(model.embed(unseen, box), features)
  with pytest.raises(InputError, match="boxes are needed"):
    model.embed(frames)
  probed = load_encoder("marlin", str(tmp_path / "marlin"))
  assert probed.row_frames == 4 and probed.features(frames, face_box=box, mouth_box=box)["tubes"].shape == (16, 64)


def test_another_checkpoint_is_refused(tmp_path):
  checkpoints.save_items(tmp_path / "other", {"video_encoder": {"bias": np.zeros(3, np.float32)}}, {"config": {}})
  with pytest.raises(InputError, match="does not describe a video encoder"):
    load_video_encoder(tmp_path / "other")
