"""A checkpoint of the preset `tiny` with random weights and the stamp of a training run."""

from __future__ import annotations

import json

import jax

from configs.pretrain import get_config
from synclipmae_jax import checkpoints
from synclipmae_jax.data.clips import Settings
from synclipmae_jax.models.synclipmae import build_model


def write_tiny(directory, **stamp):
  """Writes the checkpoint to the step `directory`; `stamp` changes entries of its preprocessing (None: deletes one)."""
  config = json.loads(get_config("tiny").to_json_best_effort())
  size = config["data"]["image_size"]
  preprocessing = Settings(size=size).stamp | {"image_size": size, "embed_visible": "face_topk"} | stamp
  preprocessing = {name: value for name, value in preprocessing.items() if value is not None}
  trainable, _ = build_model(config).init(jax.random.key(0))
  trainable = jax.device_get(trainable)
  checkpoints.save_items(directory, trainable, {"config": config, "preprocessing": preprocessing, "step": 0})
  return directory
