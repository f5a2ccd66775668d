"""What a dubbing model needs beside its own parameters: the autoencoder, and the embedding of its prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from synclipmae_jax import checkpoints
from synclipmae_jax.models.wan.autoencoder import CompiledAutoencoder, wan_functional
from synclipmae_jax.types import InputError

VAE = "vae"  # item of a converted Wan VAE
PROMPT = "prompt_0000"  # of converted text embeddings


def load_autoencoder(config: Mapping[str, Any]) -> tuple[CompiledAutoencoder, dict[str, Any]]:
  """The autoencoder of a configuration (configs/dub.py), and what it is.

  Raises InputError without the weights of a Wan VAE, or if they are of other sizes.
  """
  sizes = {**config["model"]["autoencoder"]}
  kind = sizes.pop("kind")
  if kind != "wan":
    return CompiledAutoencoder(kind, **sizes), {"kind": kind, **sizes}
  if not config["data"]["autoencoder"]:
    raise InputError("the Wan VAE needs its weights: give its converted checkpoint with --config.data.autoencoder=DIR")
  params = checkpoints.find_item(config["data"]["autoencoder"], VAE).load_as(wan_functional(**sizes).abstract)
  return CompiledAutoencoder(kind, params, **sizes), {"kind": kind, **sizes, "sha256": checkpoints.tree_hash(params)}


def read_text(config: Mapping[str, Any]) -> np.ndarray:
  """The first prompt of `data.text`, float16, zero-padded to `data.text_tokens`; zeros without one.

  Raises InputError for embeddings that do not fit.
  """
  data = config["data"]
  shape = (data["text_tokens"], config["model"]["dit"]["text_width"])
  if not data["text"]:
    return np.zeros(shape, np.float16)
  found = np.asarray(checkpoints.load_item(data["text"], "text_embeddings")[PROMPT], np.float32)
  if found.shape[1] != shape[1] or len(found) > shape[0]:
    raise InputError(
      f"the prompt of {data['text']} has {found.shape[0]} tokens of {found.shape[1]} numbers, but at most"
      f" {shape[0]} of {shape[1]} fit: raise --config.data.text_tokens"
    )
  return np.pad(found, ((0, shape[0] - len(found)), (0, 0))).astype(np.float16)
