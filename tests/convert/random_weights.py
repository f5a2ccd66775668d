"""Random weights by key: equal on every machine and in any order, scaled so that activations stay moderate."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from synclipmae_jax.convert import donor
from synclipmae_jax.convert.rules import invert
from synclipmae_jax.sharding import tree_paths

_SCALE = re.compile(r"gamma$")
_GAIN = re.compile(r"(weight_g|original0)$")


def random_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
  """float32: norm scales 1 + 0.1 n, gains of weight norm |1 + 0.1 n|, biases and tables 0.1 n, others n / sqrt(fan in).

  A norm's scale is a vector called `weight`, or anything called `gamma`.
  """
  weights = {}
  for key, shape in shapes.items():
    value = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if _GAIN.search(key):
      value = np.abs(1 + 0.1 * value)
    elif _SCALE.search(key) or (key.endswith("weight") and len(shape) == 1):
      value = 1 + 0.1 * value
    elif len(shape) < 2 or shape[0] == 1:
      value = 0.1 * value
    else:
      value = value / math.sqrt(math.prod(shape[1:]))
    weights[key] = np.asarray(value, np.float32)
  return weights


def donor_weights(name: str, sizes: Mapping[str, Any], naming: int = 0) -> dict[str, np.ndarray]:
  """Tensors of a donor's file with random values; shapes from the modules through the inverse rules."""
  that = donor.load(name)
  leaves = {
    path: np.broadcast_to(np.float32(0), leaf.shape)
    for item, module in that.modules(**sizes).items()
    for path, leaf in tree_paths({item: module.abstract})
    if path != "visual_encoder/prompt_tokens"
  }
  makers = invert(that.namings[naming].rules, leaves)
  return random_weights({key: make().shape for key, make in makers.items()})
