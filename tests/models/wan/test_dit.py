"""The Wan transformer with the VACE blocks at a tiny size: rotary embedding, hints, padding, gradients."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synclipmae_jax import sharding
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.wan.dit import Dit, patchify, rope_table, rotate, sinusoid
from synclipmae_jax.models.wan.vace import Vace, wan_vace
from synclipmae_jax.types import InputError

GRID = (2, 2, 3)  # tokens
TEXT = 6
BLOCK = dict(width=24, heads=2, mlp_width=32)


@functools.cache
def models(depth: int = 3, stride: int = 2, **options) -> dict[str, Functional]:
  """Tiny modules with hints for blocks 0, stride, 2 * stride, ..."""
  dit = dict(BLOCK, depth=depth, text_width=10, text_length=TEXT, time_features=16)
  vace = dict(BLOCK, depth=math.ceil(depth / stride), stride=stride, context_channels=96)
  return {
    "dit": Functional(lambda rngs: Dit(**dit, **options, rngs=rngs)),
    "vace": Functional(lambda rngs: Vace(**vace, **options, rngs=rngs)),
  }


def drawn(functionals: dict[str, Functional], seed: int = 0) -> dict:
  """All parameters random, including those initialised to 0 or 1. NumPy draws them, without compilation."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    values = rng.standard_normal(leaf.shape, np.float32)
    match str(path[-1].key):
      case "kernel":
        return values / np.float32(math.sqrt(leaf.shape[-2]))
      case "scale":
        return 1 + values / 4
    return values / 4

  return jax.tree_util.tree_map_with_path(draw, {item: f.abstract for item, f in functionals.items()})


def inputs(batch: int = 2, text: int = 4, seed: int = 1) -> tuple:
  rng = np.random.default_rng(seed)
  shape = (batch, GRID[0], 2 * GRID[1], 2 * GRID[2])
  draw = lambda *shape: jnp.float32(rng.standard_normal(shape))
  return draw(*shape, 16), draw(*shape, 96), draw(batch, text, 10), jnp.linspace(900, 7.5, batch)


def forward(functionals, params, *args, **options):
  return wan_vace(functionals["dit"].bind(params["dit"]), functionals["vace"].bind(params["vace"]), *args, **options)


@functools.cache
def _jitted(**sizes):
  return jax.jit(functools.partial(forward, models(**sizes)))


def output(params, *args, scale=1.0, addition=0.0, depth=3, stride=2, **sizes) -> np.ndarray:
  """Output of the model, compiled once per size."""
  scale = np.broadcast_to(np.float32(scale), math.ceil(depth / stride))
  addition = np.broadcast_to(np.float32(addition), (1, math.prod(GRID), BLOCK["width"]))
  function = _jitted(depth=depth, stride=stride, **sizes)
  return np.asarray(function(params, *args, scale=scale, addition=addition))


def reference(params, latents, context, text, t, *, scale, stride) -> np.ndarray:
  """The same in float64 NumPy: one block at a time, rotation by complex numbers, nothing fused."""
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  latents, context, text, t = (np.asarray(x, np.float64) for x in (latents, context, text, t))
  dit, vace = params["dit"], params["vace"]
  batch, heads, head_width = len(latents), BLOCK["heads"], BLOCK["width"] // BLOCK["heads"]
  dense = lambda x, p: x @ p["kernel"] + p["bias"]
  silu = lambda x: x / (1 + np.exp(-x))
  gelu = lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
  mlp = lambda x, p, activation: dense(activation(dense(x, p["up"])), p["down"])
  norm = lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  rms = lambda x, p: x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * p["scale"]

  def tokens(x):
    frames, rows, columns = GRID
    x = x.reshape(batch, frames, rows, 2, columns, 2, -1).transpose(0, 1, 2, 4, 3, 5, 6)
    return x.reshape(batch, math.prod(GRID), -1)

  side = 2 * (head_width // 6)
  turns = [
    place.reshape(-1, 1) * 10000.0 ** -(np.arange(0, axis, 2) / axis)
    for place, axis in zip(np.indices(GRID), (head_width - 2 * side, side, side), strict=True)
  ]
  turns = np.exp(1j * np.concatenate(turns, axis=1))[:, None]

  def attend(q, k, v, p, turns=1):
    q, k = rms(q, p["norm_query"]), rms(k, p["norm_key"])
    q, k, v = (x.reshape(batch, -1, heads, head_width) for x in (q, k, v))
    q, k = ((x[..., ::2] + 1j * x[..., 1::2]) * turns for x in (q, k))
    weights = np.exp(np.einsum("bqhd,bkhd->bhqk", q, k.conj()).real / math.sqrt(head_width))
    weights /= weights.sum(-1, keepdims=True)
    return dense(np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, -1, BLOCK["width"]), p["out"])

  def block(x, p):
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = np.split(of_time + p["modulation"], 6, axis=1)
    qkv = np.split(dense(norm(x) * (1 + scale) + shift, p["attention"]["qkv"]), 3, axis=-1)
    x = x + gate * attend(*qkv, p["attention"], turns)
    query = dense(norm(x) * p["norm_cross"]["scale"] + p["norm_cross"]["bias"], p["cross"]["query"])
    x = x + attend(query, *np.split(dense(words, p["cross"]["key_value"]), 2, axis=-1), p["cross"])
    return x + mlp_gate * mlp(norm(x) * (1 + mlp_scale) + mlp_shift, p["mlp"], gelu)

  at = lambda blocks, i: jax.tree.map(lambda leaf: leaf[i], blocks)
  words = mlp(np.pad(text, ((0, 0), (0, TEXT - text.shape[1]), (0, 0))), dit["text_embedding"], gelu)
  angles = t[:, None].astype(np.float64) * 10000.0 ** -(np.arange(8) / 8)
  time = mlp(np.concatenate([np.cos(angles), np.sin(angles)], axis=1), dit["time_embedding"], silu)
  of_time = dense(silu(time), dit["time_projection"]).reshape(batch, 6, -1)
  x = dense(tokens(latents), dit["patch_embedding"])
  path = dense(dense(tokens(context), vace["patch_embedding"]), vace["before_projection"]) + x
  hints = []
  for i in range(len(scale)):
    path = block(path, at(vace["blocks"], i))
    hints.append(scale[i] * dense(path, at(vace["blocks"], i)["after_projection"]))
  for i in range(len(dit["blocks"]["modulation"])):
    x = block(x, at(dit["blocks"], i))
    x = x if i % stride else x + hints[i // stride]
  shift, scale = np.split(time[:, None] + dit["head"]["modulation"], 2, axis=1)
  x = dense(norm(x) * (1 + scale) + shift, dit["head"]["projection"])
  x = x.reshape(batch, *GRID, 2, 2, 16).transpose(0, 1, 2, 4, 3, 5, 6)
  return x.reshape(latents.shape)


def without_hints(params: dict) -> dict:
  silent = jax.tree.map(np.zeros_like, params["vace"]["blocks"]["after_projection"])
  return params | {"vace": params["vace"] | {"blocks": params["vace"]["blocks"] | {"after_projection": silent}}}


# ---- positions and time


@pytest.mark.parametrize("head_width, pairs", [(128, (22, 21, 21)), (12, (2, 2, 2)), (16, (4, 2, 2))])
def test_rotary_channels_are_split_among_time_rows_and_columns(head_width, pairs):
  cos, sin = (table.reshape(4, 3, 5, -1) for table in rope_table((4, 3, 5), head_width))
  assert cos.shape[-1] == head_width // 2 and cos.dtype == np.float32
  angles = np.unwrap(np.arctan2(sin, cos).astype(np.float64), axis=0)
  angles = np.unwrap(np.unwrap(angles, axis=1), axis=2)
  for axis, part in enumerate(np.split(np.arange(head_width // 2), np.cumsum(pairs)[:-1])):
    steps = np.diff(angles[..., part], axis=axis)
    speeds = 10000.0 ** -(np.arange(len(part)) / len(part))
    np.testing.assert_allclose(steps, np.broadcast_to(speeds, steps.shape), rtol=1e-3, atol=1e-6)
    for other in {0, 1, 2} - {axis}:
      assert np.ptp(cos[..., part], axis=other).max() == 0


def test_rotation_is_that_of_complex_pairs_and_depends_on_distance_only():
  grid, heads, head_width = (3, 4, 4), 2, 16
  rng = np.random.default_rng(0)
  q, k = rng.standard_normal((2, 1, 1, heads, head_width))
  rope = rope_table(grid, head_width)
  turned = [
    np.asarray(rotate(jnp.broadcast_to(x.reshape(1, 1, -1), (1, 48, heads * head_width)), rope, heads=heads))
    for x in (q, k)
  ]
  q_turned, k_turned = (x.reshape(48, heads, head_width) for x in turned)
  logits = np.einsum("ihd,jhd->hij", q_turned, k_turned)
  turns = rope[0].astype(np.complex128) + 1j * rope[1]
  pairs = lambda x: x[0, 0, :, ::2] + 1j * x[0, 0, :, 1::2]
  expected = np.einsum("hd,id,hd,jd->hij", pairs(q), turns, pairs(k).conj(), turns.conj()).real
  np.testing.assert_allclose(logits, expected, atol=1e-5)
  place = np.indices(grid).reshape(3, -1).T
  apart: dict[tuple, list] = {}
  for i in range(48):
    for j in range(48):
      apart.setdefault(tuple(place[i] - place[j]), []).append(logits[:, i, j])
  assert len(apart) == 5 * 7 * 7
  for values in apart.values():
    np.testing.assert_allclose(values, np.broadcast_to(values[0], np.shape(values)), atol=1e-5)
  assert np.std([values[0] for values in apart.values()]) > 0.1


def test_sinusoid_is_exact_to_float32():
  t = np.concatenate([np.linspace(0, 1000, 997), [999.5, 987.654, 0.3]]).astype(np.float32)
  angles = t[:, None].astype(np.float64) * 10000.0 ** -(np.arange(128) / 128)
  found = np.asarray(jax.jit(lambda t: sinusoid(t, 256))(t))
  np.testing.assert_allclose(found, np.concatenate([np.cos(angles), np.sin(angles)], axis=-1), atol=3e-7)


# ---- hints


@pytest.mark.parametrize(
  "sizes",
  [
    dict(depth=3, stride=2),  # one group and a remainder of one block
    dict(depth=4, stride=2, unroll=True),
    dict(depth=1, stride=1, compute_dtype=jnp.bfloat16),
  ],
)
def test_the_model_equals_numpy(sizes):
  params = drawn(models(**sizes))
  args, stride = inputs(), sizes["stride"]
  scale = np.linspace(0.5, 1.5, math.ceil(sizes["depth"] / stride))
  expected = reference(params, *args, scale=scale, stride=stride)
  found = output(params, *args, scale=scale, **sizes)
  assert found.dtype == np.float32 and expected.std() > 0.3
  tolerance = 0.05 if "compute_dtype" in sizes else 1e-5
  np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def test_vace_blocks_without_hints_change_nothing():
  params = drawn(models())
  latents, context, text, t = inputs()
  silent = without_hints(params)
  plain = output(silent, latents, context, text, t)
  np.testing.assert_array_equal(output(silent, latents, 0 * context, text, t), plain)
  np.testing.assert_array_equal(output(params, latents, context, text, t, scale=0.0), plain)
  assert np.abs(output(params, latents, context, text, t) - plain).max() > 0.1
  first = output(params, latents, context, text, t, scale=np.array([1.0, 0.0], np.float32))
  assert np.abs(first - plain).max() > 0.1
  # New VACE blocks have no effect and ignore the context, because both projections are initialised to zero.
  init = lambda key: dict(sharding.tree_paths(models()["vace"].init(key)))
  zeros = jax.jit(lambda key: {path: leaf for path, leaf in init(key).items() if "_projection" in path})(
    jax.random.key(0)
  )
  assert len(zeros) == 4 and not any(np.any(leaf) for leaf in zeros.values())


def test_an_addition_is_added_to_the_embedded_context():
  params = drawn(models())
  latents, context, text, t = inputs()
  change = jnp.float32(np.random.default_rng(5).standard_normal((1, *context.shape[1:])))
  addition = np.asarray(patchify(change)) @ params["vace"]["patch_embedding"]["kernel"]
  assert addition.shape == (1, math.prod(GRID), 24)
  found = output(params, latents, context, text, t, addition=addition)
  np.testing.assert_allclose(found, output(params, latents, context + change, text, t), atol=2e-5)


def test_vace_trains_with_a_frozen_backbone():
  functionals = models(depth=2, stride=1, remat="full")
  params = drawn(functionals)

  @jax.jit
  def gradient(vace, dit):
    return jax.grad(lambda vace: jnp.square(forward(functionals, {"dit": dit, "vace": vace}, *inputs())).mean())(vace)

  whole = gradient(params["vace"], params["dit"])
  moved = {path: np.abs(leaf).max() for path, leaf in sharding.tree_paths(whole)}
  assert all(np.isfinite(size) and size > 0 for size in moved.values()), moved
  # The slope along the gradient, by central difference.
  length = math.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(whole)))

  def loss(step):
    vace = jax.tree.map(lambda leaf, slope: np.float64(leaf) + step / length * np.float64(slope), params["vace"], whole)
    return np.square(reference(params | {"vace": vace}, *inputs(), scale=np.ones(2), stride=1)).mean()

  assert (loss(1e-4) - loss(-1e-4)) / 2e-4 == pytest.approx(length, rel=1e-4)
  # If the hints are zero, only their projections have a gradient.
  start = gradient(without_hints(params)["vace"], params["dit"])
  moved = {path for path, leaf in sharding.tree_paths(start) if np.abs(leaf).max() > 0}
  assert moved == {"blocks/after_projection/kernel", "blocks/after_projection/bias"}


# ---- inputs


def test_text_is_padded_with_zeros():
  dit = models()["dit"].bind(drawn(models())["dit"])
  text = inputs(text=TEXT)[2].at[:, 4:].set(0)
  embedded = jax.jit(lambda text: dit.condition(jnp.zeros(2), text, grid=GRID).text)
  assert embedded(text[:, :4]).shape == (2, TEXT, 24)
  np.testing.assert_array_equal(embedded(text[:, :4]), embedded(text))


@pytest.mark.parametrize(
  "cut, words",
  [
    (lambda latents, context, text: (latents[:, :, 1:], context, text), "3 x 6"),
    (lambda latents, context, text: (latents, context[:, 1:], text), "context"),
    (lambda latents, context, text: (latents, context, jnp.concatenate([text, text], axis=1)), "8 tokens"),
  ],
)
def test_inputs_that_do_not_fit_are_refused(cut, words):
  latents, context, text, t = inputs()
  functionals = models()
  with pytest.raises(InputError, match=words):
    jax.eval_shape(lambda params: forward(functionals, params, *cut(latents, context, text), t), drawn(functionals))


def test_hints_for_another_depth_are_refused():
  functionals = {"dit": models(depth=4)["dit"], "vace": models(depth=6)["vace"]}
  with pytest.raises(ValueError, match="4 blocks take 2 hints, one per 2 blocks, not 3"):
    jax.eval_shape(lambda params: forward(functionals, params, *inputs()), drawn(functionals))
