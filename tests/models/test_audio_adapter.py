"""The audio adapter against independent float64 NumPy."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx
from models.numpy_layers import dense, gelu, layer_norm
from models.tiny_encoders import compiled, drawn

from synclipmae_jax.models.audio_adapter import AudioAdapter
from synclipmae_jax.types import InputError


@pytest.mark.parametrize("layers", ["all", "last"])
def test_adapter_equals_numpy(layers):
  states = np.random.default_rng(0).standard_normal((2, 3, 4, 6)).astype(np.float32) + 5
  in_features = 24 if layers == "all" else 6
  adapter = drawn(lambda: AudioAdapter(rngs=nnx.Rngs(0), in_features=in_features, width=8, layers=layers))
  p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), nnx.to_pure_dict(nnx.state(adapter)))
  x = (states.reshape(2, 3, 24) if layers == "all" else states[:, :, -1]).astype(np.float64)
  expected = dense(gelu(dense(layer_norm(x, p["norm"], epsilon=1e-6), p["hidden"])), p["out"])
  np.testing.assert_allclose(compiled(adapter)(states), expected, atol=1e-5)


def test_adapter_refuses_other_layers():
  with pytest.raises(InputError, match="last"):
    AudioAdapter(rngs=nnx.Rngs(0), in_features=6, width=8, layers="first")
