"""The log-mel front end."""

from __future__ import annotations

import functools

import librosa
import numpy as np
from flax import nnx
from models.tiny_encoders import compiled, sound

from synclipmae_jax.models.logmel import CONTEXTS, SLOTS, LogMel, _mel_filters, log_mel
from synclipmae_jax.types import audio_context_samples


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
    assert heard.max() < 1.3 * heard.max(axis=1).min()  # the level of a constant tone is constant


def test_the_filters_are_those_of_librosa():
  for bands in (26, 40, 80):
    filters = librosa.filters.mel(sr=16_000, n_fft=512, n_mels=bands, fmin=60, fmax=7_600, norm=None)
    np.testing.assert_array_equal(_mel_filters(bands), (filters / filters.sum(axis=1, keepdims=True)).T)


def test_log_mel_layers_are_means_of_hops_over_increasing_spans():
  waveform, bands = sound(12), 8
  encoder = LogMel(bands=bands)
  states = np.asarray(compiled(encoder)(waveform))
  unit = (waveform - waveform.mean()) / waveform.std()
  hops = np.asarray(compiled(functools.partial(log_mel, bands=bands))(unit))[0]
  for layer, context in enumerate(CONTEXTS):
    span = 2 * context + 1
    for token in (0, 6, 11):
      at = np.arange(SLOTS * (token - context), SLOTS * (token + context + 1))
      heard = hops[np.clip(at, 0, len(hops) - 1)]  # beyond the window the first or last hop is repeated
      expected = heard.reshape(SLOTS, span, bands).mean(axis=1).ravel()
      np.testing.assert_allclose(states[0, token, layer], expected, atol=1e-4)
  # Neighbouring tokens differ less with a longer span.
  steps = np.square(np.diff(states[0, 4:-4], axis=0)).mean(axis=(0, 2))
  assert (np.diff(steps) < 0).all()


def test_log_mel_has_no_parameters():
  assert nnx.to_pure_dict(nnx.state(LogMel())) == {}
