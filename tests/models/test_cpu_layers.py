"""models/cpu_layers.py: the same values and gradients as flax's layers, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from synclipmae_jax.models import layers


def _values_and_gradients(module, x, given):
  graph, params = nnx.split(module)
  out, back = jax.vjp(lambda params, x: nnx.merge(graph, params)(x), params, x)
  return jax.tree.leaves((out, back(given)))


def _agree(ours, theirs, x, width, *, tolerance=2e-5):
  for leaf, other in zip(*(jax.tree.leaves(nnx.state(module)) for module in (ours, theirs)), strict=True):
    np.testing.assert_array_equal(leaf, other)
  given = jax.random.normal(jax.random.key(7), (*x.shape[:-1], width))
  for one, other in zip(*(_values_and_gradients(module, x, given) for module in (ours, theirs)), strict=True):
    assert one.shape == other.shape and one.dtype == other.dtype
    np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12), (12,)])
@pytest.mark.parametrize("width", [8, 12, 40])  # narrower and wider than the input
def test_dense(shape, width):
  ours = layers.Linear(12, width, compute_dtype=jnp.float32, rngs=nnx.Rngs(0))
  theirs = nnx.Linear(12, width, kernel_init=layers.XAVIER, rngs=nnx.Rngs(0))
  for module in (ours, theirs):
    module.bias[...] = jnp.linspace(-1, 1, width)
  _agree(ours, theirs, jax.random.normal(jax.random.key(1), shape), width)


@pytest.mark.parametrize("offset", [0.0, 300.0])  # flax's fast variance is wrong by 6e-2 with an offset
@pytest.mark.parametrize("shape", [(64, 48), (2, 3, 48)])
def test_layer_norm(shape, offset):
  ours = layers.LayerNorm(48, epsilon=1e-3, rngs=nnx.Rngs(0))
  theirs = nnx.LayerNorm(48, epsilon=1e-3, use_fast_variance=False, rngs=nnx.Rngs(0))
  for module in (ours, theirs):
    module.scale[...], module.bias[...] = jnp.linspace(0.5, 2, 48), jnp.linspace(-1, 1, 48)
  _agree(ours, theirs, offset + jax.random.normal(jax.random.key(1), shape), 48, tolerance=2e-5 + 1e-6 * offset)


def test_parameters_in_half_precision():
  module = layers.Linear(4, 6, compute_dtype=jnp.float32, rngs=nnx.Rngs(0))
  module.kernel.set_value(module.kernel[...].astype(jnp.float16))
  x, graph = jnp.ones((2, 4)), nnx.graphdef(module)
  gradient = jax.grad(lambda params: nnx.merge(graph, params)(x).sum())(nnx.state(module))
  assert module(x).dtype == jnp.float32 and gradient["kernel"].dtype == jnp.float16
