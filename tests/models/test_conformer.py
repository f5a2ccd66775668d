"""models/conformer.py and models/sequence.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synclipmae_jax.models.conformer import SIZES, Conformer, DepthwiseConv
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.sequence import NO_DROPOUT, Dropout, by_key, distances, sinusoids
from synclipmae_jax.types import InputError

FEATURES = 6


def conformer(**options):
  return Functional(lambda rngs: Conformer(FEATURES, **{**SIZES["tiny"], **options}, rngs=rngs))


def tokens(batch, frames, seed=0):
  return jax.random.normal(jax.random.key(seed), (batch, frames, FEATURES))


def apply(model, params, x, lengths, dropout=NO_DROPOUT):
  return jax.jit(lambda params, x, lengths: model.bind(params)(x, lengths, dropout))(params, x, jnp.asarray(lengths))


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_valid_states_depend_neither_on_padding_nor_on_other_examples(norm):
  model = conformer(norm=norm)
  params = model.init(jax.random.key(1))
  x = tokens(2, 9)
  together = apply(model, params, x, [9, 5])
  alone = apply(model, params, x[1:, :5], [5])
  np.testing.assert_allclose(together[1, :5], alone[0], atol=2e-5)
  other = apply(model, params, x.at[1, 5:].set(1e3), [9, 5])
  np.testing.assert_allclose(together[1, :5], other[1, :5], atol=2e-5)
  assert np.abs(together[1, :5] - apply(model, params, x, [9, 6])[1, :5]).max() > 1e-3  # the length matters


def test_all_ways_to_run_the_blocks_agree():
  params = conformer().init(jax.random.key(1))
  x, lengths = tokens(2, 7), [7, 4]
  expected = apply(conformer(), params, x, lengths)
  for options in (dict(unroll=True), dict(remat="full"), dict(remat="dots")):
    np.testing.assert_allclose(apply(conformer(**options), params, x, lengths), expected, atol=1e-5)
  half = apply(conformer(compute_dtype=jnp.bfloat16), params, x, lengths)
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(half.astype(jnp.float32)[0], expected[0], atol=0.15)


def test_a_slow_obvious_block_computes_the_same():
  """One block in numpy, frame by frame and key by key."""
  sizes = {**SIZES["tiny"], "depth": 1}
  model = Functional(lambda rngs: Conformer(FEATURES, **sizes, rngs=rngs))
  params = jax.tree.map(
    lambda leaf: leaf + 0.1 * np.random.default_rng(leaf.size).normal(size=leaf.shape).astype(np.float32),
    model.init(jax.random.key(0)),
  )
  x = tokens(1, 5)
  b = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), params["blocks"])
  d, heads, frames = sizes["width"], sizes["heads"], 5

  def linear(p, y):
    return y @ p["kernel"] + p.get("bias", 0)

  def norm(p, y):
    return (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

  def feed_forward(p, y):
    return linear(p["down"], np.maximum(linear(p["up"], y), 0))

  def attention(p, y):
    q, k, v = np.split(linear(p["qkv"], y), 3, axis=-1)
    out, size = np.zeros_like(q), d // heads
    for h in range(heads):
      own = slice(h * size, (h + 1) * size)
      for i in range(frames):
        logits = []
        for j in range(frames):
          r = (sinusoids(np.array([float(i - j)]), d) @ p["position"]["kernel"])[0, own]
          logits.append((q[i, own] + p["content_bias"][h]) @ k[j, own] + (q[i, own] + p["position_bias"][h]) @ r)
        weights = np.exp(np.array(logits) / np.sqrt(size))
        out[i, own] = weights / weights.sum() @ v[:, own]
    return linear(p["out"], out)

  def convolution(p, y):
    value, gate = np.split(linear(p["gate"], y), 2, axis=-1)
    y, taps = value / (1 + np.exp(-gate)), p["depthwise"]["kernel"]
    filtered = np.zeros_like(y) + p["depthwise"]["bias"]
    for t in range(frames):
      for tap in range(len(taps)):
        if 0 <= (source := t + tap - len(taps) // 2) < frames:
          filtered[t] += y[source] * taps[tap]
    y = norm(p["norm"], filtered)
    return linear(p["out"], y / (1 + np.exp(-y)))

  outer = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  y = linear(outer["projection"], np.asarray(x[0], np.float64)) * np.sqrt(d)
  y = y + feed_forward(b["macaron"], norm(b["norm_macaron"], y)) / 2
  y = y + attention(b["attention"], norm(b["norm_attention"], y))
  y = y + convolution(b["conv"], norm(b["norm_conv"], y))
  y = y + feed_forward(b["mlp"], norm(b["norm_mlp"], y)) / 2
  y = norm(outer["norm"], norm(b["norm_out"], y))
  np.testing.assert_allclose(apply(model, params, x, [5])[0], y, atol=2e-5)


def test_scores_by_distance_are_sorted_by_key():
  n = 4
  by_distance = np.arange(n - 1, -n, -1.0)
  x = jnp.broadcast_to(by_distance, (1, 1, n, 2 * n - 1))
  np.testing.assert_array_equal(by_key(x)[0, 0], np.subtract.outer(np.arange(n), np.arange(n)))
  np.testing.assert_allclose(distances(3, 4)[0], [np.sin(2), np.cos(2), np.sin(0.02), np.cos(0.02)], rtol=1e-6)


def test_the_depthwise_filter_is_a_convolution_in_value_and_gradient():
  model = Functional(lambda rngs: DepthwiseConv(8, 5, compute_dtype=jnp.float32, rngs=rngs))
  params, x = model.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (2, 7, 8))

  def reference(params, x):
    y = [jnp.stack([jnp.convolve(x[b, :, c], params["kernel"][::-1, c], mode="same") for c in range(8)], -1)
         for b in range(2)]  # fmt: skip
    return jnp.stack(y) + params["bias"]

  loss = lambda f: lambda params, x: jnp.sin(f(params, x)).sum()
  ours = jax.value_and_grad(loss(lambda params, x: model.bind(params)(x)), (0, 1))(params, x)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours,
               jax.value_and_grad(loss(reference), (0, 1))(params, x))  # fmt: skip


def test_dropout_belongs_to_the_example():
  model = conformer()
  params, x = model.init(jax.random.key(1)), tokens(3, 6)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), jnp.arange(3))
  noisy = apply(model, params, x, [6, 6, 6], Dropout(0.3, keys))
  clean = apply(model, params, x, [6, 6, 6])
  assert np.abs(noisy - clean).max() > 0.1
  swapped = apply(model, params, x[::-1], [6, 6, 6], Dropout(0.3, keys[::-1]))
  np.testing.assert_allclose(swapped[::-1], noisy, atol=1e-5)
  kept = Dropout(0.25, keys)(jnp.ones((3, 1000)))
  assert set(np.unique(kept)) == {0, np.float32(1 / 0.75)} and abs(float(kept.mean()) - 1) < 0.05


def test_no_gradient_is_lost_or_infinite_where_an_example_is_one_frame_long():
  model = conformer()
  params, x = model.init(jax.random.key(1)), tokens(2, 6)

  def loss(params):
    states = model.bind(params)(x, jnp.array([6, 1]))
    return jnp.square(states[0]).sum() + jnp.sin(states[1, 0]).sum()

  grads = jax.jit(jax.grad(loss))(params)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads["blocks"]["attention"]["position"]))


def test_the_size_of_auto_avsr():
  model = Functional(lambda rngs: Conformer(512, **SIZES["auto_avsr"], norm="batch", epsilon=1e-12, rngs=rngs))
  beside = 12 * 2 * 768 + 513 * 768  # running statistics; the projection of 512 features
  assert round((sum(leaf.size for leaf in jax.tree.leaves(model.abstract)) - beside) / 1e6, 2) == 170.45


def test_wrong_sizes_are_refused():
  with pytest.raises(InputError, match="layer or batch"):
    conformer(norm="group")
  with pytest.raises(ValueError, match="odd number of taps"):
    conformer(kernel=4)
  with pytest.raises(ValueError, match="3 heads"):
    conformer(heads=3)
