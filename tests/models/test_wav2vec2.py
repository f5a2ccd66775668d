"""wav2vec 2.0 and its resampling filter against independent float64 NumPy."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models.numpy_layers import dense, gelu, layer_norm
from models.tiny_encoders import TINY, compiled, encoder_of, sound

from synclipmae_jax.models.wav2vec2 import ALIGNMENTS, KERNELS, STRIDES, Wav2Vec2, halve_rate
from synclipmae_jax.types import InputError, audio_context_samples


def test_halving_the_rate_keeps_low_and_removes_high_frequencies():
  n = np.arange(audio_context_samples(40))

  def level(hertz):
    out = np.asarray(halve_rate(jnp.asarray(np.sin(2 * np.pi * hertz * n / 16_000), jnp.float32)[None]))[0]
    return math.sqrt(2) * out[200:-200].std()

  for hertz in (50, 440, 1_000, 3_000, 3_300):
    assert level(hertz) == pytest.approx(1, abs=2e-3)
  for hertz in (4_050, 4_500, 5_000, 6_000, 7_900):
    assert level(hertz) < 2e-4
  constant = np.asarray(halve_rate(jnp.ones((1, len(n)))))[0]
  assert len(constant) == len(n) // 2
  np.testing.assert_allclose(constant[40:-40], 1, atol=1e-6)


def test_halving_the_rate_does_not_shift():
  # The output has the phase of the tone midway between two input samples.
  n = np.arange(audio_context_samples(10))
  tone = np.sin(2 * np.pi * 700 * (n + 0.5) / 16_000 + 0.3)
  out = np.asarray(halve_rate(jnp.asarray(tone, jnp.float32)[None]))[0]
  expected = np.sin(2 * np.pi * 700 * (np.arange(len(out)) + 0.5) / 8_000 + 0.3)
  np.testing.assert_allclose(out[40:-40], expected[40:-40], atol=3e-4)
  # The response to an impulse of two samples is symmetric about output 300.
  pulse = np.zeros((1, len(n)), np.float32)
  pulse[0, 600:602] = 1
  out = np.asarray(halve_rate(jnp.asarray(pulse)))[0]
  np.testing.assert_allclose(out[300 - 40 : 300], out[300 + 40 : 300 : -1], atol=1e-7)
  assert out.argmax() == 300


def convolve(x, kernel, stride):
  """[n, t, i] with [k, i, o], no padding, one output at a time."""
  k = len(kernel)
  steps = range(0, x.shape[1] - k + 1, stride)
  return np.stack([np.einsum("nki,kio->no", x[:, i : i + k], kernel) for i in steps], axis=1)


def decimate(waveform):
  """Output k is the windowed sinc centred between samples 2k and 2k + 1."""
  offset = np.arange(128) - 63.5
  taps = np.sinc(0.45625 * offset) * np.kaiser(128, 8.0)
  padded = np.pad(waveform, ((0, 0), (63, 63)))
  return np.stack([padded[:, i : i + 128] @ taps for i in range(0, waveform.shape[1], 2)], axis=1) / taps.sum()


def reference_features(p, waveform):
  x = waveform[..., None]
  for i, stride in enumerate(STRIDES):
    x = convolve(x, p["feature_extractor"][f"conv_{i}"]["kernel"], stride)
    if i == 0:
      norm = p["feature_extractor"]["norm"]
      x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
      x = x * norm["scale"] + norm["bias"]
    x = gelu(x)
  return x


def reference_states(p, features, *, heads, groups):
  """[n, t, conv] -> [n, t, depth + 1, c], with the embedding output first (transformers `hidden_states`)."""
  x = dense(layer_norm(features, p["norm_features"]), p["projection"])
  kernel, per = p["positional_conv"]["kernel"], x.shape[-1] // groups
  k = len(kernel)
  padded = np.pad(x, ((0, 0), (k // 2, k // 2 - 1), (0, 0)))
  parts = [slice(g * per, (g + 1) * per) for g in range(groups)]
  position = np.concatenate([convolve(padded[..., part], kernel[..., part], 1) for part in parts], axis=-1)
  x = layer_norm(x + gelu(position + p["positional_conv"]["bias"]), p["norm"])
  states = [x]
  for i in range(len(p["blocks"]["mlp"]["up"]["bias"])):
    block = jax.tree.map(lambda leaf, i=i: leaf[i], p["blocks"])
    q, k, v = np.split(dense(x, block["attention"]["qkv"]), 3, axis=-1)
    mixed = []
    for h in range(heads):
      part = slice(h * x.shape[-1] // heads, (h + 1) * x.shape[-1] // heads)
      logits = q[..., part] @ k[..., part].swapaxes(1, 2) / math.sqrt(part.stop - part.start)
      weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
      mixed.append(weights / weights.sum(axis=-1, keepdims=True) @ v[..., part])
    x = layer_norm(x + dense(np.concatenate(mixed, axis=-1), block["attention"]["out"]), block["norm_attention"])
    x = layer_norm(x + dense(gelu(dense(x, block["mlp"]["up"])), block["mlp"]["down"]), block["norm_mlp"])
    states.append(x)
  return np.stack(states, axis=2)


@pytest.mark.parametrize("kind", ALIGNMENTS)
def test_wav2vec2_equals_numpy(kind):
  encoder = encoder_of(kind, include_embedding_output=True)
  p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), nnx.to_pure_dict(nnx.state(encoder)))
  waveform = sound(4, windows=2)
  unit = waveform.astype(np.float64) - waveform.mean(axis=1, keepdims=True)
  unit /= unit.std(axis=1, keepdims=True)
  features = reference_features(p, decimate(unit) if kind == "waveform" else unit[:, 40:-40])
  if kind == "feature":
    features = (features[:, ::2] + features[:, 1::2]) / 2
  if kind == "feature_align_corners":
    at = np.linspace(0, features.shape[1] - 1, 4)
    low = np.minimum(at.astype(int), features.shape[1] - 2)
    part = (at - low)[:, None]
    features = features[:, low] * (1 - part) + features[:, low + 1] * part
  expected = reference_states(p, features, heads=TINY["heads"], groups=TINY["pos_groups"])
  if kind == "pool2":
    expected = (expected[:, ::2] + expected[:, 1::2]) / 2
  states = np.asarray(compiled(encoder)(waveform))
  assert states.shape == (2, 4, 3, 32) == (2, 4, encoder.num_layers, encoder.width)
  np.testing.assert_allclose(states, expected, atol=1e-5 * np.abs(expected).max())
  if kind == "waveform":  # the other switches: without embedding output, with an unrolled loop
    without = compiled(encoder_of(kind, unroll=True))(waveform)
    np.testing.assert_allclose(without, states[:, :, 1:], atol=1e-5)


def test_base_has_the_parameters_of_wav2vec2_base():
  state = jax.eval_shape(lambda: nnx.to_pure_dict(nnx.state(Wav2Vec2(rngs=nnx.Rngs(0)))))
  leaves = jax.tree.leaves(state)
  # Without the embedding of the spectrogram mask and the 128 gains folded into the positional kernel.
  assert sum(leaf.size for leaf in leaves) == 94_371_712 - 768 - 128
  assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
  assert state["blocks"]["attention"]["qkv"]["kernel"].shape == (12, 768, 3 * 768)
  assert state["positional_conv"]["kernel"].shape == (128, 48, 768)
  assert [state["feature_extractor"][f"conv_{i}"]["kernel"].shape[0] for i in range(7)] == list(KERNELS)


def test_unknown_alignment_is_refused():
  with pytest.raises(InputError, match="pool2"):
    Wav2Vec2(rngs=nnx.Rngs(0), alignment="pool3", **TINY)
