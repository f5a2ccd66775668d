"""Speech encoders: the times of their tokens, and windows over whole files."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.tiny_encoders import TINY, compiled, encoder_of, sound

from synclipmae_jax.models.logmel import LogMel
from synclipmae_jax.models.speech_encoder import audio_windows, centre_tokens
from synclipmae_jax.models.wav2vec2 import ALIGNMENTS, KERNELS
from synclipmae_jax.types import SAMPLES_PER_FRAME, InputError, audio_context_samples

ENCODERS = (*ALIGNMENTS, "logmel")


# ---- times of tokens


@pytest.mark.parametrize("kind", ENCODERS)
def test_one_token_per_frame(kind):
  encoder, plain = encoder_of(kind), encoder_of(kind)
  if kind in ("feature_align_corners", "pool2"):
    # Tracing seven convolutions 128 times is slow. `waveform` and `feature` test that their count is this.
    encoder.feature_extractor = lambda x: jnp.zeros((1, (x.shape[1] - 400) // 320 + 1, TINY["conv_width"]))
  for frames in range(1, 129):
    waveform = jax.ShapeDtypeStruct((1, audio_context_samples(frames)), jnp.float32)
    if kind == "logmel" or frames in (1, 2, 128):
      assert jax.eval_shape(plain, waveform).shape == (1, frames, encoder.num_layers, encoder.width)
    else:  # the transformer does not change the length
      tokens = jax.eval_shape(encoder.conv_features, waveform)
      assert tokens.shape[1] == frames * (2 if kind == "pool2" else 1)
  assert encoder.features == encoder.num_layers * encoder.width


@pytest.mark.parametrize("length", [0, 159, 160, 640, audio_context_samples(4) - 1, audio_context_samples(4) + 1])
def test_other_lengths_are_refused(length):
  with pytest.raises(InputError):
    LogMel()(jnp.zeros((1, length)))


def before_transformer(encoder, waveform):
  """One vector per frame from before the layers that mix frames: conv features, or log-mel layer 0."""
  if isinstance(encoder, LogMel):
    return encoder(waveform)[:, :, 0]
  features = encoder.conv_features(waveform)
  if encoder.alignment == "pool2":
    features = (features[:, ::2] + features[:, 1::2]) / 2
  return features


def changes_by_impulse(kind: str, frames: int, positions: np.ndarray, *, mirror: bool = False) -> np.ndarray:
  """[impulse, token]: change of each token by an impulse at each position (in samples from the start of frame 0).

  `mirror` makes every convolution symmetric in time, so that the response of a token is symmetric about its time.
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
  """Time of each token in samples: the middle of its frame, plus the drift of `feature_align_corners`."""
  middle = SAMPLES_PER_FRAME * (np.arange(frames) + 0.5)
  return middle + np.linspace(-160, 160, frames) if kind == "feature_align_corners" else middle


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("frames", [3, 24])
def test_an_impulse_is_heard_at_its_token(kind, frames):
  reach = 100 if kind == "feature_align_corners" else 230  # receptive fields overlap near the ends of a frame
  positions = middle_of_tokens(kind, frames)[:, None].astype(int) + [-reach, 0, reach]
  heard = changes_by_impulse(kind, frames, positions.ravel()).argmax(axis=1)
  np.testing.assert_array_equal(heard.reshape(-1, 3), np.repeat(np.arange(frames)[:, None], 3, axis=1))


@pytest.mark.parametrize("kind", ENCODERS)
def test_tokens_are_centred_on_their_frames(kind):
  frames, tokens = 6, [0, 1, 4, 5]
  positions = np.arange(-70, SAMPLES_PER_FRAME * frames + 70, 10)
  change = changes_by_impulse(kind, frames, positions, mirror=kind != "logmel")
  # Normalisation over the window changes every token a little. The response is the change beyond that of far impulses.
  stands = middle_of_tokens(kind, frames)
  far = np.abs(positions[:, None] - stands) > SAMPLES_PER_FRAME
  response = np.clip(change - np.max(change, axis=0, where=far, initial=0), 0, None)
  centre = (response * (positions[:, None] + 0.5)).sum(axis=0) / response.sum(axis=0)
  tolerance = 32 if kind in ("feature_align_corners", "logmel") else 8  # samples of 640
  np.testing.assert_allclose(centre[tokens], stands[tokens], atol=tolerance)


# ---- any encoder


@pytest.mark.parametrize("kind", ["waveform", "logmel"])
def test_gain_and_offset_have_no_effect_and_silence_is_finite(kind):
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
  total, starts = 26, (0, 8, 20)  # clips at the start, in the middle and near the end
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
