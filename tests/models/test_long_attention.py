"""JAX's flash attention as it is called here, interpreted, against JAX's attention; and where it is used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absent_chips import mesh
from jax.experimental import pallas as pl

from synclipmae_jax.models import layers, long_attention


@pytest.mark.slow
def test_it_and_its_gradient_are_those_of_jax(monkeypatch):
  call = pl.pallas_call
  monkeypatch.setattr(pl, "pallas_call", lambda *args, **options: call(*args, **{**options, "interpret": True}))
  numbers = jax.random.split(jax.random.key(0), 4)
  q, k, v, given = (
    jax.random.normal(key, (1, count, 256)) for key, count in zip(numbers, (256, 128, 128, 256), strict=True)
  )
  found, back = jax.vjp(lambda *x: long_attention.long_attention(*x, heads=2), q, k, v)
  expected, expected_back = jax.vjp(lambda *x: layers.attend(*x, heads=2), q, k, v)
  for one, other in zip((found, *back(given)), (expected, *expected_back(given)), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize(
  ("platform", "batch", "queries", "keys", "width", "heads", "expected"),
  [
    ("tpu", 8, 7168, 7168, 1536, 12, True),
    ("tpu", 8, 7168, 512, 1536, 12, True),  # to the text
    ("cpu", 8, 7168, 7168, 1536, 12, False),
    ("tpu", 7, 7168, 7168, 1536, 12, False),  # does not divide over 8 devices
    ("tpu", 8, 256, 256, 1536, 12, False),
    ("tpu", 8, 7169, 7169, 1536, 12, False),
    ("tpu", 8, 7168, 7168, 512, 16, False),  # a head of 32
  ],
)
def test_it_is_used_where_it_can_be(platform, batch, queries, keys, width, heads, expected):
  q, k = (jax.ShapeDtypeStruct((batch, count, width), jnp.bfloat16) for count in (queries, keys))
  assert long_attention.suits(q, k, heads=heads, mesh=mesh(platform, data=2, fsdp=4)) is expected
