"""The start of the paper's run at tiny size: donors' files -> conversion -> main."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from convert.random_weights import donor_weights
from safetensors.numpy import load_file, save_file

from synclipmae_jax.checkpoints import load_item

ROOT = Path(__file__).parents[2]


def command(module, *words):
  words = [sys.executable, "-m", f"synclipmae_jax.{module}", *map(str, words)]
  return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True, timeout=500).stdout


@pytest.mark.slow
def test_pretraining_starts_from_converted_donors_and_its_encoders_are_exported(tmp_path):
  encoder = dict(image_size=64, patch=8, width=32, depth=2, heads=2, mlp_width=64, class_token=True)
  speech = dict(width=32, depth=2, heads=2, mlp_width=64, conv_width=16, pos_kernel=16, pos_groups=4)
  files = {name: tmp_path / f"{name}.safetensors" for name in ("sapiens", "wav2vec2")}
  tensors = {"sapiens": donor_weights("sapiens", encoder), "wav2vec2": donor_weights("wav2vec2", speech)}
  for name, file in files.items():
    save_file(tensors[name], file)
    command("convert", name, "--src", file, "--dst", tmp_path / name, "--verify")

  said = command(
    "main", "--config=configs/pretrain.py:tiny", f"--workdir={tmp_path / 'run'}", "--config.train.steps=2",
    "--config.model.speech_encoder.kind=wav2vec2", "--config.model.visual_encoder.class_token",
    "--config.init.require=('visual_encoder', 'speech_encoder')",
    f"--config.init.visual_encoder={tmp_path / 'sapiens'}", f"--config.init.speech_encoder={tmp_path / 'wav2vec2'}",
  )  # fmt: skip
  assert "position resized from 8 x 8 to 4 x 4" in said and "freshly initialised: prompt_tokens" in said
  report = json.loads((tmp_path / "run" / "initialisation.json").read_text())
  assert not report["speech_encoder"]["fresh"] and not report["visual_encoder"]["left_out"]
  trained = load_item(tmp_path / "run", "visual_encoder")
  np.testing.assert_array_equal(trained["class_position"], tensors["sapiens"]["pos_embed"][0, :1])
  assert not np.array_equal(trained["class_token"], tensors["sapiens"]["cls_token"][0])  # it was trained

  for name in files:
    command("convert", "export", name, "--src", tmp_path / "run", "--dst", tmp_path / "back" / f"{name}.safetensors")
  back = load_file(tmp_path / "back" / "sapiens.safetensors")
  assert back.keys() == tensors["sapiens"].keys() | {"prompt_tokens"}
  np.testing.assert_array_equal(back["layers.1.attn.qkv.weight"], trained["blocks"]["attention"]["qkv"]["kernel"][1].T)
  frozen = load_file(tmp_path / "back" / "wav2vec2.safetensors")
  key = "encoder.layers.1.attention.k_proj.weight"
  np.testing.assert_array_equal(frozen[key], tensors["wav2vec2"][key])
