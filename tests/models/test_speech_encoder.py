"""Speech encoders: tokens stand where the video's frames stand, arithmetic equals an independent float64 one."""

from __future__ import annotations

import functools
import math
import pathlib
import runpy

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import transformers
from flax import nnx
from scipy.special import erf

from synclipmae_jax.models.audio_adapter import AudioAdapter
from synclipmae_jax.models.logmel import CONTEXTS, SLOTS, LogMel, log_mel
from synclipmae_jax.models.speech_encoder import audio_windows, centre_tokens, normalise
from synclipmae_jax.models.wav2vec2 import ALIGNMENTS, KERNELS, STRIDES, Wav2Vec2, halve_rate
from synclipmae_jax.types import SAMPLES_PER_FRAME, InputError, audio_context_samples

TINY = dict(width=32, depth=2, heads=4, mlp_width=48, conv_width=16, pos_kernel=16, pos_groups=4)
ENCODERS = (*ALIGNMENTS, "logmel")


def drawn(make):
  """The module with every parameter, biases and scales too, drawn at random (by NumPy: nothing to compile)."""
  module = nnx.eval_shape(make)
  rng = np.random.default_rng(1)

  def draw(path, leaf):
    values = rng.standard_normal(leaf.shape, np.float32)
    match str(path[-2].key):
      case "kernel":
        fan_in = math.prod(leaf.shape[:-1]) / (leaf.shape[0] if "blocks" in str(path) else 1)
        return values / np.float32(math.sqrt(fan_in))
      case "scale":
        return 1 + values / 4
      case "bias":
        return values / 4

  nnx.update(module, jax.tree_util.tree_map_with_path(draw, nnx.state(module)))
  return module


def encoder_of(kind: str, **changes):
  """A tiny encoder of one alignment, or the log-mel front end."""
  if kind == "logmel":
    return LogMel(**changes)
  return drawn(lambda: Wav2Vec2(rngs=nnx.Rngs(0), alignment=kind, **(TINY | changes)))


def sound(frames: int, *, windows: int = 1, seed: int = 0) -> np.ndarray:
  shape = windows, audio_context_samples(frames)
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def compiled(function):
  """One jitted closure over a module: its parameters are constants here, which is fine for tiny ones."""
  return jax.jit(lambda waveform: function(waveform))


# ---- tokens stand where the frames stand


@pytest.mark.parametrize("kind", ENCODERS)
def test_as_many_tokens_as_frames(kind):
  encoder, plain = encoder_of(kind), encoder_of(kind)
  if kind in ("feature_align_corners", "pool2"):
    # Seven convolutions take long to trace 128 times; `waveform` and `feature` show that they count like this.
    encoder.feature_extractor = lambda x: jnp.zeros((1, (x.shape[1] - 400) // 320 + 1, TINY["conv_width"]))
  for frames in range(1, 129):
    waveform = jax.ShapeDtypeStruct((1, audio_context_samples(frames)), jnp.float32)
    if kind == "logmel" or frames in (1, 2, 128):
      assert jax.eval_shape(plain, waveform).shape == (1, frames, encoder.num_layers, encoder.width)
    else:  # the transformer keeps the length it is given
      tokens = jax.eval_shape(encoder.conv_features, waveform)
      assert tokens.shape[1] == frames * (2 if kind == "pool2" else 1)
  assert encoder.features == encoder.num_layers * encoder.width


@pytest.mark.parametrize("length", [0, 159, 160, 640, audio_context_samples(4) - 1, audio_context_samples(4) + 1])
def test_other_lengths_are_refused(length):
  with pytest.raises(InputError):
    LogMel()(jnp.zeros((1, length)))


def before_transformer(encoder, waveform):
  """One vector per frame from before anything that mixes frames on purpose: conv features, or log-mel layer 0."""
  if isinstance(encoder, LogMel):
    return encoder(waveform)[:, :, 0]
  features = encoder.conv_features(waveform)
  if encoder.alignment == "pool2":
    features = (features[:, ::2] + features[:, 1::2]) / 2
  return features


def changes_by_impulse(kind: str, frames: int, positions: np.ndarray, *, mirror: bool = False) -> np.ndarray:
  """[impulse, token]: how much an impulse at each position (samples, 0 where frame 0 begins) changes each token.

  `mirror` makes every convolution symmetric in time, so that a token hears symmetrically about where it stands.
  """
  encoder = encoder_of(kind)
  if mirror:
    for i in range(len(KERNELS)):
      conv = getattr(encoder.feature_extractor, f"conv_{i}")
      conv.kernel[...] = (conv.kernel[...] + conv.kernel[::-1]) / 2
  quiet = np.repeat((0.001 if mirror else 0.05) * sound(frames), len(positions) + 1, axis=0)
  quiet[np.arange(len(positions)), 80 + positions] += 1
  features = np.asarray(compiled(lambda waveform: before_transformer(encoder, waveform))(quiet), np.float64)
  return np.abs(features[:-1] - features[-1]).sum(axis=-1)


def middle_of_tokens(kind: str, frames: int) -> np.ndarray:
  """Where each token stands, in samples: in the middle of its frame, but for the drift of `feature_align_corners`."""
  middle = SAMPLES_PER_FRAME * (np.arange(frames) + 0.5)
  return middle + np.linspace(-160, 160, frames) if kind == "feature_align_corners" else middle


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("frames", [3, 24])
def test_an_impulse_is_heard_at_its_token(kind, frames):
  reach = 100 if kind == "feature_align_corners" else 230  # near its ends a frame shares receptive fields
  positions = middle_of_tokens(kind, frames)[:, None].astype(int) + [-reach, 0, reach]
  heard = changes_by_impulse(kind, frames, positions.ravel()).argmax(axis=1)
  np.testing.assert_array_equal(heard.reshape(-1, 3), np.repeat(np.arange(frames)[:, None], 3, axis=1))


@pytest.mark.parametrize("kind", ENCODERS)
def test_tokens_are_centred_on_their_frames(kind):
  frames, tokens = 6, [0, 1, 4, 5]
  positions = np.arange(-70, SAMPLES_PER_FRAME * frames + 70, 10)
  change = changes_by_impulse(kind, frames, positions, mirror=kind != "logmel")
  # Normalisation over the window hears every impulse a little, everywhere: what exceeds the far ones is hearing.
  stands = middle_of_tokens(kind, frames)
  far = np.abs(positions[:, None] - stands) > SAMPLES_PER_FRAME
  response = np.clip(change - np.max(change, axis=0, where=far, initial=0), 0, None)
  centre = (response * (positions[:, None] + 0.5)).sum(axis=0) / response.sum(axis=0)
  tolerance = 32 if kind in ("feature_align_corners", "logmel") else 8  # samples of 640
  np.testing.assert_allclose(centre[tokens], stands[tokens], atol=tolerance)


# ---- halving the rate


def test_halving_the_rate_keeps_what_is_below_and_stops_what_is_above():
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
  # A tone comes out with the phase it has midway between each two samples.
  n = np.arange(audio_context_samples(10))
  tone = np.sin(2 * np.pi * 700 * (n + 0.5) / 16_000 + 0.3)
  out = np.asarray(halve_rate(jnp.asarray(tone, jnp.float32)[None]))[0]
  expected = np.sin(2 * np.pi * 700 * (np.arange(len(out)) + 0.5) / 8_000 + 0.3)
  np.testing.assert_allclose(out[40:-40], expected[40:-40], atol=3e-4)
  # An impulse of two samples is symmetric about their middle, output 300.
  pulse = np.zeros((1, len(n)), np.float32)
  pulse[0, 600:602] = 1
  out = np.asarray(halve_rate(jnp.asarray(pulse)))[0]
  np.testing.assert_allclose(out[300 - 40 : 300], out[300 + 40 : 300 : -1], atol=1e-7)
  assert out.argmax() == 300


# ---- wav2vec2 against float64 NumPy


def gelu(x):
  return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def layer_norm(x, p, epsilon=1e-5):
  x = x - x.mean(axis=-1, keepdims=True)
  return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]


def dense(x, p):
  return x @ p["kernel"] + p["bias"]


def convolve(x, kernel, stride):
  """[n, t, i] with [k, i, o], no padding, one output at a time."""
  k = len(kernel)
  steps = range(0, x.shape[1] - k + 1, stride)
  return np.stack([np.einsum("nki,kio->no", x[:, i : i + k], kernel) for i in steps], axis=1)


def decimate(waveform):
  """Output k is the windowed sinc between samples 2k and 2k + 1."""
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
  """[n, t, conv] -> [n, t, depth + 1, c], the embedding output first (transformers `hidden_states`)."""
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
  if kind == "waveform":  # the other switches: no embedding output, and an unrolled loop
    without = compiled(encoder_of(kind, unroll=True))(waveform)
    np.testing.assert_allclose(without, states[:, :, 1:], atol=1e-5)


def test_base_has_the_parameters_of_wav2vec2_base():
  state = jax.eval_shape(lambda: nnx.to_pure_dict(nnx.state(Wav2Vec2(rngs=nnx.Rngs(0)))))
  leaves = jax.tree.leaves(state)
  # Without the spectrogram mask's embedding and the 128 gains folded into the positional kernel.
  assert sum(leaf.size for leaf in leaves) == 94_371_712 - 768 - 128
  assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
  assert state["blocks"]["attention"]["qkv"]["kernel"].shape == (12, 768, 3 * 768)
  assert state["positional_conv"]["kernel"].shape == (128, 48, 768)
  assert [state["feature_extractor"][f"conv_{i}"]["kernel"].shape[0] for i in range(7)] == list(KERNELS)


def test_unknown_alignment_is_refused():
  with pytest.raises(InputError, match="pool2"):
    Wav2Vec2(rngs=nnx.Rngs(0), alignment="pool3", **TINY)


# ---- any encoder


@pytest.mark.parametrize("kind", ["waveform", "logmel"])
def test_gain_and_offset_do_not_matter_and_silence_is_finite(kind):
  waveform = 0.1 * sound(6)
  same, quieter, offset, silent = compiled(encoder_of(kind))(
    np.concatenate([waveform, 0.3 * waveform, waveform + 0.2, np.zeros_like(waveform)])
  )
  np.testing.assert_allclose(quieter, same, atol=2e-3)
  np.testing.assert_allclose(offset, same, atol=2e-3)
  assert np.isfinite(silent).all()


def test_bfloat16_follows_float32():
  waveform = sound(8)
  full = np.asarray(compiled(encoder_of("waveform", depth=1))(waveform)).ravel()
  half = compiled(encoder_of("waveform", depth=1, compute_dtype=jnp.bfloat16))(waveform)
  assert half.dtype == jax.eval_shape(LogMel(compute_dtype=jnp.bfloat16), waveform).dtype == jnp.bfloat16
  assert np.corrcoef(full, np.asarray(half, np.float32).ravel())[0, 1] > 0.999


# ---- whole files


def cut(file, **frames):
  return np.asarray(jax.jit(functools.partial(audio_windows, **frames))(file))


@pytest.mark.parametrize(
  "kind, audio_frames, clip_frames",
  [("waveform", 12, 4), ("logmel", 12, 4), ("logmel", 9, 4), ("logmel", 4, 4)],
)
def test_a_token_is_the_same_in_its_file_and_in_its_own_clip(kind, audio_frames, clip_frames):
  total, starts = 26, (0, 8, 20)  # clips at the beginning, in the middle, near the end
  file = 0.1 * np.random.default_rng(3).standard_normal((1, SAMPLES_PER_FRAME * total)).astype(np.float32)
  windows = cut(file, audio_frames=audio_frames, clip_frames=clip_frames)
  assert windows.shape == (1, 7, audio_context_samples(audio_frames))

  def clip(start):  # cut out of the file by hand
    at = np.arange(windows.shape[-1]) + SAMPLES_PER_FRAME * (start - (audio_frames - clip_frames) // 2) - 80
    inside = (at >= 0) & (at < file.shape[1])
    return np.where(inside, file[0, np.clip(at, 0, file.shape[1] - 1)], 0).astype(np.float32)

  states = compiled(encoder_of(kind))(np.concatenate([windows[0], [clip(start) for start in starts]]))
  tokens = centre_tokens(states[None, :7], clip_frames=clip_frames, total_frames=total)[0]
  own = centre_tokens(states[7:, None], clip_frames=clip_frames, total_frames=clip_frames)
  assert tokens.shape == (total, *states.shape[2:])
  for row, start in enumerate(starts):
    np.testing.assert_allclose(tokens[start : start + clip_frames], own[row], atol=1e-5)


def test_windows_of_a_file_shorter_than_a_clip():
  windows = cut(np.ones((1, SAMPLES_PER_FRAME * 3), np.float32), audio_frames=8, clip_frames=4)
  assert windows.shape == (1, 1, audio_context_samples(8))
  assert windows.sum() == SAMPLES_PER_FRAME * 3
  np.testing.assert_array_equal(np.flatnonzero(windows[0])[[0, -1]], [80 + 2 * 640, 80 + 5 * 640 - 1])


@pytest.mark.parametrize("samples, audio_frames, clip_frames", [(641, 8, 4), (0, 8, 4), (6400, 4, 8), (6400, 4, 0)])
def test_windows_that_do_not_fit_are_refused(samples, audio_frames, clip_frames):
  with pytest.raises(InputError):
    audio_windows(jnp.zeros((1, samples)), audio_frames=audio_frames, clip_frames=clip_frames)


# ---- log-mel


def test_log_mel_of_noise_and_tones():
  def power(waveform):
    hops = compiled(functools.partial(log_mel, bands=40))(waveform.astype(np.float32))
    return np.exp(5 * np.asarray(hops)[0, 4:-4] - 6)

  np.testing.assert_allclose(power(sound(60)).mean(axis=0), 1, atol=0.2)
  edges = librosa.mel_frequencies(42, fmin=60, fmax=7_600)
  n = np.arange(audio_context_samples(3))
  for hertz in (300, 1_000, 2_500, 6_000):
    heard = power(np.sin(2 * np.pi * hertz * n / 16_000)[None])
    assert set(heard.argmax(axis=1)) == {np.abs(edges[1:-1] - hertz).argmin()}
    assert heard.max() < 1.3 * heard.max(axis=1).min()  # a steady tone has a steady level


def test_log_mel_layers_are_the_hops_at_growing_spans():
  waveform, bands = sound(12), 8
  encoder = LogMel(bands=bands)
  states = np.asarray(compiled(encoder)(waveform))
  unit = (waveform - waveform.mean()) / waveform.std()
  hops = np.asarray(compiled(functools.partial(log_mel, bands=bands))(unit))[0]
  for layer, context in enumerate(CONTEXTS):
    span = 2 * context + 1
    for token in (0, 6, 11):
      at = np.arange(SLOTS * (token - context), SLOTS * (token + context + 1))
      heard = hops[np.clip(at, 0, len(hops) - 1)]  # beyond the window, its first or last hop
      expected = heard.reshape(SLOTS, span, bands).mean(axis=1).ravel()
      np.testing.assert_allclose(states[0, token, layer], expected, atol=1e-4)
  # A longer span is smoother: neighbouring tokens differ less.
  steps = np.square(np.diff(states[0, 4:-4], axis=0)).mean(axis=(0, 2))
  assert (np.diff(steps) < 0).all()


def test_log_mel_has_no_parameters():
  assert nnx.to_pure_dict(nnx.state(LogMel())) == {}


# ---- adapter


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


def test_the_paper_preset_has_the_sizes_of_wav2vec2_base():
  """transformers' configuration is that of the released model; it needs no torch."""
  released = transformers.Wav2Vec2Config()
  config = runpy.run_path(str(pathlib.Path(__file__).parents[2] / "configs" / "pretrain.py"))["get_config"]("paper")
  sizes = config.model.speech_encoder.wav2vec2
  assert (released.conv_kernel, released.conv_stride) == (tuple(KERNELS), tuple(STRIDES))
  assert set(released.conv_dim) == {sizes.conv_width} and sizes.width == released.hidden_size
  assert (sizes.depth, sizes.heads) == (released.num_hidden_layers, released.num_attention_heads)
  assert sizes.mlp_width == released.intermediate_size
  assert sizes.pos_kernel == released.num_conv_pos_embeddings
  assert sizes.pos_groups == released.num_conv_pos_embedding_groups


def test_sound_is_normalised_as_for_the_released_model():
  sound = np.float32(0.3 + 0.1 * np.random.default_rng(0).standard_normal((2, 4_000)))
  extract = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
  expected = extract(list(sound), sampling_rate=16_000, return_tensors="np").input_values
  np.testing.assert_allclose(normalise(jnp.asarray(sound)), expected, atol=1e-5)
