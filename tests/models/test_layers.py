"""models/layers.py: GELU in both dtypes, which the parity tests do not cover."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from synclipmae_jax.models.layers import gelu


def test_gelu_and_its_gradient_are_exact():
  x = np.linspace(-6, 6, 2_001)
  slope = ndtr(x) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
  np.testing.assert_allclose(gelu(jnp.float32(x)), x * ndtr(x), atol=2e-6)
  np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(jnp.float32(x)), slope, atol=2e-6)


@pytest.mark.parametrize("x", [-2.0, -3.0, -4.0])
def test_gelu_keeps_the_tail_in_bfloat16(x):
  got = gelu(jnp.bfloat16(x))
  assert got.dtype == jnp.bfloat16 and float(got) == pytest.approx(x * ndtr(x), rel=0.1)
