"""models/layers.py: GELU in both dtypes, which the parity tests do not cover."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from synclipmae_jax.models.layers import attend, gelu


def test_gelu_and_its_gradient_are_exact():
  x = np.linspace(-6, 6, 2_001)
  slope = ndtr(x) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
  np.testing.assert_allclose(gelu(jnp.float32(x)), x * ndtr(x), atol=2e-6)
  np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(jnp.float32(x)), slope, atol=2e-6)


@pytest.mark.parametrize("x", [-2.0, -3.0, -4.0])
def test_gelu_keeps_the_tail_in_bfloat16(x):
  got = gelu(jnp.bfloat16(x))
  assert got.dtype == jnp.bfloat16 and float(got) == pytest.approx(x * ndtr(x), rel=0.1)


def test_the_gradient_of_gelu_in_bfloat16_is_that_of_jax():
  x, given = (jax.random.normal(key, (64,), jnp.bfloat16) for key in jax.random.split(jax.random.key(0)))
  found, expected = (jax.vjp(f, x)[1](given)[0] for f in (gelu, lambda x: jax.nn.gelu(x, approximate=False)))
  np.testing.assert_array_equal(found, expected)


def test_attention_in_float32_and_its_gradient_are_those_of_jax():
  q, k, v, given = (
    3 * jax.random.normal(key, (2, count, 32))
    for key, count in zip(jax.random.split(jax.random.key(0), 4), (7, 5, 5, 7), strict=True)
  )
  split = lambda x: x.reshape(*x.shape[:2], 4, 8)
  theirs = lambda q, k, v: jax.nn.dot_product_attention(split(q), split(k), split(v)).reshape(q.shape)
  found, back = jax.vjp(lambda *x: attend(*x, heads=4), q, k, v)
  expected, expected_back = jax.vjp(theirs, q, k, v)
  for one, other in zip((found, *back(given)), (expected, *expected_back(given)), strict=True):
    np.testing.assert_allclose(one, other, atol=2e-6 * np.abs(other).max())
