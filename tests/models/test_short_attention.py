"""The kernel for TPUs, interpreted, against JAX's attention; and where it is used."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absent_chips import mesh

from synclipmae_jax import sharding
from synclipmae_jax.models import layers, short_attention
from synclipmae_jax.run import hlo


def inputs(batch, tokens, width, dtype=jnp.float32):
  """Queries, keys and values; and a gradient of the result."""
  one, other = jax.random.split(jax.random.key(tokens))
  rows = batch * tokens
  return jax.random.normal(one, (rows, 3 * width), dtype), jax.random.normal(other, (rows, width), dtype)


def attend(qkv, *, tokens, heads):
  sequences = qkv.reshape(-1, tokens, qkv.shape[-1])
  return layers.attend(*jnp.split(sequences, 3, axis=-1), heads=heads).reshape(len(qkv), -1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize(
  ("batch", "tokens", "width", "heads"), [(4, 16, 128, 4), (8, 68, 256, 4), (2, 64, 128, 1), (16, 9, 256, 16)]
)
def test_it_and_its_gradient_are_those_of_jax(batch, tokens, width, heads, dtype, tolerance):
  qkv, given = inputs(batch, tokens, width, dtype)
  found, back = jax.vjp(
    functools.partial(short_attention.short_attention, tokens=tokens, heads=heads, interpret=True), qkv
  )
  expected, expected_back = jax.vjp(functools.partial(attend, tokens=tokens, heads=heads), qkv)
  pairs = [(found, expected)]
  pairs += zip(*(jnp.split(way(given)[0], 3, axis=-1) for way in (back, expected_back)), strict=True)
  for one, other in pairs:
    assert one.dtype == other.dtype and one.shape == other.shape
    one, other = (np.asarray(x, np.float32) for x in (one, other))
    np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())


def test_large_scores_do_not_overflow():
  qkv, _ = inputs(1, 8, 128)
  qkv = qkv.at[..., :128].multiply(1e3)
  found = short_attention.short_attention(qkv, tokens=8, heads=2, interpret=True)
  np.testing.assert_allclose(found, attend(qkv, tokens=8, heads=2), atol=1e-5)


@pytest.mark.parametrize(
  ("platform", "batch", "tokens", "width", "heads", "expected"),
  [
    ("tpu", 32, 256, 512, 16, True),
    ("cpu", 32, 256, 512, 16, False),
    ("gpu", 32, 256, 512, 16, False),
    ("tpu", 30, 256, 512, 16, False),  # does not divide over 8 devices
    ("tpu", 32, 68, 1024, 16, True),  # four sequences are whole tiles
    ("tpu", 16, 68, 1024, 16, True),  # two are not, but they are all
    ("tpu", 48, 68, 1024, 16, False),
    ("tpu", 32, 1024, 512, 16, False),
    ("tpu", 32, 256, 192, 3, False),  # one and a half times the lanes
    ("tpu", 32, 256, 768, 8, False),  # a head of 96
  ],
)
def test_it_is_used_where_it_can_be(platform, batch, tokens, width, heads, expected):
  qkv = jax.ShapeDtypeStruct((batch * tokens, 3 * width), jnp.bfloat16)
  assert short_attention.suits(qkv, tokens=tokens, heads=heads, mesh=mesh(platform, data=2, fsdp=4)) is expected


def test_on_a_mesh_every_device_does_its_own_examples():
  devices = sharding.make_mesh((("data", 2), ("fsdp", 4)))
  qkv, given = inputs(16, 8, 128)
  place = sharding.batch_sharding(devices)

  @functools.partial(jax.jit, in_shardings=(place, place))
  def gradients(qkv, given):
    with jax.sharding.use_abstract_mesh(devices.abstract_mesh):
      out, back = jax.vjp(functools.partial(short_attention.short_attention, tokens=8, heads=4, interpret=True), qkv)
      return out, *back(given)

  out, back = jax.vjp(functools.partial(attend, tokens=8, heads=4), qkv)
  for found, expected in zip(gradients(qkv, given), (out, *back(given)), strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-5)
  text = gradients.lower(qkv, given).compile().as_text()
  assert not any(name in text for name in hlo.COLLECTIVES)
