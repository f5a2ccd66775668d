"""Mel-frequency cepstral coefficients for SyncNet: `python_speech_features.mfcc` with its defaults.

Own code with the arithmetic of that package (version 0.6): pre-emphasis 0.97, 25 ms windows every 10 ms without a
taper, power of a 512-point FFT, 26 triangular filters on whole FFT bins between 0 and 8 kHz, logarithm, orthonormal
DCT-II, 13 coefficients, lifter 22. The first coefficient is replaced by the logarithm of the total energy.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from synclipmae_jax.types import SAMPLE_RATE

WINDOW = 400  # samples
HOP = 160  # samples: 100 columns per second, 4 per video frame
FFT = 512
FILTERS = 26
COEFFICIENTS = 13
LIFTER = 22
PRE_EMPHASIS = 0.97
FLOOR = np.finfo(np.float64).eps  # replaces an energy of exactly 0


def int16_scale(waveform: Any, *, xp: ModuleType = np) -> Any:
  """Converts a waveform in [-1, 1] to the integer values of a 16-bit file, in the same floating type."""
  return xp.clip(xp.round(waveform * 32768.0), -32768, 32767)


def mfcc(samples: Any, *, xp: ModuleType = np) -> Any:
  """[N] or [B, N] samples in the scale of int16 at 16 kHz -> [..., M, 13] coefficients, M = 1 + ceil((N - 400) / 160).

  The last window is padded with zeros. Fewer than 400 samples give one window. `xp` is the array module: numpy computes
  in float64, `jax.numpy` under `jit` in the type of the samples.
  """
  samples = xp.asarray(samples, np.float64) if xp is np else samples
  count = samples.shape[-1]
  windows = 1 + max(0, -(-(count - WINDOW) // HOP))
  emphasised = xp.concatenate([samples[..., :1], samples[..., 1:] - PRE_EMPHASIS * samples[..., :-1]], axis=-1)
  width = [(0, 0)] * (samples.ndim - 1) + [(0, (windows - 1) * HOP + WINDOW - count)]
  framed = xp.pad(emphasised, width)[..., HOP * np.arange(windows)[:, None] + np.arange(WINDOW)]
  power = xp.abs(xp.fft.rfft(framed, FFT)) ** 2 / FFT
  energy = power.sum(axis=-1, keepdims=True)
  mel = power @ _FILTERBANK.astype(samples.dtype)
  log = lambda x: xp.log(xp.where(x == 0, FLOOR, x))
  cepstra = log(mel) @ _CEPSTRA.astype(samples.dtype)
  return xp.concatenate([log(energy), cepstra[..., 1:]], axis=-1)


def _filterbank() -> np.ndarray:
  """[257, 26] triangles between points at equal mel distances, 2595 log10(1 + f / 700), rounded down to FFT bins."""
  mel = np.linspace(0, 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700), FILTERS + 2)
  points = np.floor((FFT + 1) * 700 * (10 ** (mel / 2595) - 1) / SAMPLE_RATE)
  low, peak, high = points[:-2], points[1:-1], points[2:]
  bins = np.arange(FFT // 2 + 1)[:, None]
  rising, falling = (bins - low) / (peak - low), (high - bins) / (high - peak)
  return np.where(bins < peak, np.maximum(rising, 0), np.maximum(falling, 0))


def _cepstra() -> np.ndarray:
  """[26, 13] product of the orthonormal DCT-II and the lifter."""
  order = np.arange(COEFFICIENTS)
  dct = np.sqrt(2 / FILTERS) * np.cos(np.pi * order * (2 * np.arange(FILTERS)[:, None] + 1) / (2 * FILTERS))
  return dct * (1 + LIFTER / 2 * np.sin(np.pi * order / LIFTER))  # column 0 is replaced by the energy


_FILTERBANK, _CEPSTRA = _filterbank(), _cepstra()
