"""A dubbing model with random weights, and the encoder that it names."""

from __future__ import annotations

import json

import jax
import numpy as np

from configs.dub import get_config
from synclipmae_jax import checkpoints
from synclipmae_jax.inference.trained import load_trained
from synclipmae_jax.inference.wan import load_autoencoder
from synclipmae_jax.tasks.dub import from_config
from tests.tiny_checkpoint import write_tiny

SIDE = 32


def write_dubber(folder):
  """Writes `folder`/encoder and `folder`/dubber."""
  write_tiny(folder / "encoder" / "0")
  embedder = load_trained(folder / "encoder" / "0").embedder
  config = get_config("tiny").unlock()
  config.data.update(dict(image_size=SIDE, token_width=embedder.model.width))
  config.evaluation.update(dict(steps=2, control_guidance=1.0))
  plain = json.loads(config.to_json_best_effort())
  shapes, _ = jax.eval_shape(from_config(plain).init, jax.random.key(0))
  rng = np.random.default_rng(0)
  # Not the model's own start, with which every drive gives the same picture.
  lively = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(x.dtype), shapes)
  _, of_vae = load_autoencoder(plain)
  origin = {"encoder": "tiny", "encoder_sha256": checkpoints.tree_hash(embedder.params), "autoencoder": of_vae}
  plain_scale = {"mean": [0.0] * embedder.model.width, "deviation": 0.1}
  origin["tokens"] = {"audio": plain_scale, "video": plain_scale}
  meta = {"task": "dub", "config": plain, "step": 0, "preprocessing": {"dubbing": {**origin, "image_size": SIDE}}}
  checkpoints.save_items(folder / "dubber" / "0", lively, meta)
  return folder
