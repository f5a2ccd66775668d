"""A log-mel front end with the interface of the speech encoder, for use without wav2vec 2.0 weights.

It has no parameters, no pretraining and no language model. The embedded demo checkpoint uses it. Results measured with
it do not apply to the paper's audio branch.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from flax import nnx
from jaxtyping import Array, Float

from synclipmae_jax.models import flops
from synclipmae_jax.models.speech_encoder import frames_of, normalise
from synclipmae_jax.types import AUDIO_MARGIN, SAMPLE_RATE, SAMPLES_PER_FRAME

SLOTS = 8  # hops per frame, and spans per token
HOP = SAMPLES_PER_FRAME // SLOTS  # 5 ms
WINDOW = 5 * HOP  # 25 ms
CONTEXTS = (0, 1, 2, 4)  # context frames on each side of a token's own frame, one entry per layer
FFT = 512
# White noise of unit variance has power 1 in every band. Energy more than 50 dB below that is codec noise.
FLOOR = 1e-5


class LogMel(nnx.Module):
  """Four "layers" of log-mel energies of increasing context: [N, 640 * Ta + 160] -> [N, Ta, 4, 8 * bands].

  A token of layer i covers its frame and `CONTEXTS[i]` = 0, 1, 2, 4 frames on each side. This interval is divided into
  8 equal spans, and each span is the mean of its 5-ms hops: 1 hop (5 ms) in layer 0, 9 hops (45 ms) in layer 3.
  The waveform is normalised to zero mean and unit variance per window, and the energies are scaled by fixed constants,
  so the result does not depend on sound outside the window. Context beyond the window repeats the first or last hop.
  """

  def __init__(self, *, bands: int = 40, compute_dtype=jnp.float32):
    self.bands, self.compute_dtype = bands, compute_dtype
    self.num_layers = len(CONTEXTS)
    self.width = SLOTS * bands
    self.features = self.num_layers * self.width

  @jax.named_scope("speech_encoder")
  def __call__(self, waveform: Float[Array, "n samples"]) -> Float[Array, "n ta 4 c"]:
    """Features of N windows, approximately of zero mean and unit variance on speech.

    Raises InputError if the length of the windows is not 640 * Ta + 160 samples.
    """
    frames = frames_of(waveform)
    hops = log_mel(normalise(waveform), bands=self.bands)

    def layer(context):
      span = 2 * context + 1
      at = SLOTS * (np.arange(frames)[:, None] - context) + np.arange(SLOTS * span)
      heard = jnp.take(hops, at, axis=1, mode="clip")
      return reduce(heard, "n t (slot span) m -> n t (slot m)", "mean", span=span)

    return jnp.stack([layer(context) for context in CONTEXTS], axis=2).astype(self.compute_dtype)

  def flops(self, frames: int) -> int:
    """Forward FLOPs of one window: the mel filter bank only. The Fourier transform is not a matmul and not counted."""
    return flops.dense(SLOTS * frames, FFT // 2 + 1, self.bands)


def log_mel(waveform: Float[Array, "n samples"], *, bands: int) -> Float[Array, "n hops bands"]:
  """Scaled log-mel energies every 5 ms: [N, 640 * Ta + 160] -> [N, 8 * Ta, bands].

  Hop j of frame t covers the 80 samples from 640 * t + 80 * j on (without the margin). Its Hann window of 25 ms has the
  same centre. The first and the last window extend 80 samples beyond the margin, where the samples are zero.
  """
  beyond = (WINDOW - HOP) // 2 - AUDIO_MARGIN
  chunks = rearrange(jnp.pad(waveform, ((0, 0), (beyond, beyond))), "n (chunk hop) -> n chunk hop", hop=HOP)
  count = WINDOW // HOP
  hops = chunks.shape[1] - count + 1
  windows = jnp.concatenate([chunks[:, i : i + hops] for i in range(count)], axis=-1)
  spectrum = jnp.fft.rfft(windows * _hann(), FFT)
  power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
  energies = jnp.log(power @ _mel_filters(bands) + FLOOR)
  return (energies + 6.0) / 5.0  # approximate mean (-6) and standard deviation (5) on speech


@functools.cache
def _hann() -> np.ndarray:
  window = np.hanning(WINDOW + 2)[1:-1]
  return (window / np.sqrt(np.square(window).sum())).astype(np.float32)


@functools.cache
def _mel_filters(bands: int) -> np.ndarray:
  """[257, bands]: triangular filters on the mel scale from 60 Hz to 7.6 kHz; each column sums to 1."""
  low, high = _mel(np.array([60.0, 7_600.0]))
  edges = _hertz(np.linspace(low, high, bands + 2))
  away = edges[:, None] - np.fft.rfftfreq(FFT, 1 / SAMPLE_RATE)
  wide = np.diff(edges)[:, None]
  filters = np.maximum(0, np.minimum(-away[:-2] / wide[:-1], away[2:] / wide[1:])).astype(np.float32)
  return (filters / filters.sum(axis=1, keepdims=True)).T


# Slaney's mel scale, as librosa has it (whose import takes a second): linear below 1 kHz, then logarithmic.
_LINEAR, _KNEE, _STEP = 200 / 3, 1000.0, np.log(6.4) / 27


def _mel(hertz: np.ndarray) -> np.ndarray:
  return np.where(hertz < _KNEE, hertz / _LINEAR, _KNEE / _LINEAR + np.log(np.maximum(hertz, 1) / _KNEE) / _STEP)


def _hertz(mel: np.ndarray) -> np.ndarray:
  return np.where(mel < _KNEE / _LINEAR, mel * _LINEAR, _KNEE * np.exp(_STEP * (mel - _KNEE / _LINEAR)))
