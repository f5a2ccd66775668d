"""A checkpoint of the preset `tiny` with random weights, stamped as a training run stamps it."""

from __future__ import annotations

import json

import jax

from configs.pretrain import get_config
from synclipmae_jax import checkpoints
from synclipmae_jax.data.clips import Settings
from synclipmae_jax.models.synclipmae import build_model


def write_tiny(directory, **stamp):
  """Writes it as `directory`, a step; `stamp` changes its preprocessing (None: takes an entry out)."""
  config = json.loads(get_config("tiny").to_json_best_effort())
  size = config["data"]["image_size"]
  preprocessing = Settings(size=size).stamp | {"image_size": size, "embed_visible": "face_topk"} | stamp
  preprocessing = {name: value for name, value in preprocessing.items() if value is not None}
  trainable, _ = build_model(config).init(jax.random.key(0))
  trainable = jax.device_get(trainable)
  checkpoints.save_items(directory, trainable, {"config": config, "preprocessing": preprocessing, "step": 0})
  return directory
