"""The kernel for TPUs, interpreted, against JAX's attention; and where it is used."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from synclipmae_jax import sharding
from synclipmae_jax.models import layers, short_attention
from synclipmae_jax.run import hlo

SIZES = [(4, 16, 16, 128, 4), (3, 67, 67, 256, 4), (2, 64, 3, 128, 1), (8, 9, 33, 256, 16)]  # B, N, M, D, heads


def inputs(batch, queries, keys, width, dtype):
  numbers = jax.random.split(jax.random.key(queries), 4)
  shapes = [(batch, queries, width), *[(batch, keys, width)] * 2, (batch, queries, width)]
  return [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(numbers, shapes, strict=True)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize(("batch", "queries", "keys", "width", "heads"), SIZES)
def test_it_and_its_gradient_are_those_of_jax(batch, queries, keys, width, heads, dtype, tolerance):
  q, k, v, given = inputs(batch, queries, keys, width, dtype)

  def kernel(q, k, v):
    return short_attention.short_attention(q, k, v, heads=heads, interpret=True)

  found, back = jax.vjp(kernel, q, k, v)
  expected, expected_back = jax.vjp(lambda q, k, v: layers.attend(q, k, v, heads=heads), q, k, v)
  for one, other in zip((found, *back(given)), (expected, *expected_back(given)), strict=True):
    assert one.dtype == other.dtype and one.shape == other.shape
    one, other = (np.asarray(x, np.float32) for x in (one, other))
    np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())


def test_large_scores_do_not_overflow():
  q, k, v, _ = inputs(1, 8, 8, 128, jnp.float32)
  found = short_attention.short_attention(1e3 * q, k, v, heads=2, interpret=True)
  np.testing.assert_allclose(found, layers.attend(1e3 * q, k, v, heads=2), atol=1e-5)


def mesh(platform, **sizes):
  device = jax.sharding.AbstractDevice(device_kind="some", num_cores=None, platform=platform)
  return AbstractMesh(
    tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), abstract_device=device
  )


@pytest.mark.parametrize(
  ("platform", "batch", "tokens", "keys", "width", "heads", "expected"),
  [
    ("tpu", 32, 256, 256, 512, 16, True),
    ("cpu", 32, 256, 256, 512, 16, False),
    ("gpu", 32, 256, 256, 512, 16, False),
    ("tpu", 30, 256, 256, 512, 16, False),  # does not divide over 8 devices
    ("tpu", 32, 1024, 1024, 512, 16, False),
    ("tpu", 32, 256, 3, 512, 16, False),
    ("tpu", 32, 256, 256, 192, 3, False),  # one and a half times the lanes
    ("tpu", 32, 256, 256, 768, 8, False),  # a head of 96
  ],
)
def test_it_is_used_where_it_pays(platform, batch, tokens, keys, width, heads, expected):
  q, k = (jax.ShapeDtypeStruct((batch, count, width), jnp.bfloat16) for count in (tokens, keys))
  assert short_attention.suits(q, k, heads=heads, mesh=mesh(platform, data=2, fsdp=4)) is expected


def test_on_a_mesh_every_device_does_its_own_examples():
  devices = sharding.make_mesh((("data", 2), ("fsdp", 4)))
  q, k, v, given = inputs(16, 8, 8, 128, jnp.float32)
  place = sharding.batch_sharding(devices)

  @functools.partial(jax.jit, in_shardings=(place,) * 4)
  def gradients(q, k, v, given):
    with jax.sharding.use_abstract_mesh(devices.abstract_mesh):
      out, back = jax.vjp(lambda *x: short_attention.short_attention(*x, heads=4, interpret=True), q, k, v)
      return out, *back(given)

  out, back = jax.vjp(lambda *x: layers.attend(*x, heads=4), q, k, v)
  for found, expected in zip(gradients(q, k, v, given), (out, *back(given)), strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-5)
  text = gradients.lower(q, k, v, given).compile().as_text()
  assert not any(name in text for name in hlo.COLLECTIVES)
