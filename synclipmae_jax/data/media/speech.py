"""Where a sound track is loud enough for speech, and a score that tells speech from tones, noise and music.

Neither needs a model. Speech has about 4 syllables a second, and its level varies differently in low and high bands.
Houtgast and Steeneken (1985) measure intelligibility by the modulation of the band envelopes; here it is measured
between 2 and 8 Hz.
"""

from __future__ import annotations

import numpy as np

from synclipmae_jax.types import SAMPLE_RATE, SAMPLES_PER_FRAME

_HOP, _WINDOW = 160, 400  # samples: 10 and 25 ms
_EDGES = np.geomspace(100, 6000, 13)  # Hz: 12 bands
_RANGE = 5.0  # powers of ten below the loudest level; lower levels count as silence
_SYLLABLES = 2.0, 8.0  # Hz
_SILENT = 1e-4  # of full scale
SPEECH_FLOOR = -55.0  # dB of full scale
SPEECH_RANGE = 30.0  # dB below the loud parts of the file


def speech_score(waveform: np.ndarray) -> float:
  """0 for silence and steady sound, some tenths for speech; `waveform` float [n] at 16 kHz.

  The mean over bands of (share of the modulation energy at syllable rates) x (depth of that modulation) x (flatness of
  its spectrum). The flatness excludes beats, which have one rate and its multiples only.
  """
  count = (len(waveform) - _WINDOW) // _HOP
  if count < 100 or np.abs(waveform).max() < _SILENT:
    return 0.0
  frames = np.lib.stride_tricks.sliding_window_view(waveform, _WINDOW)[::_HOP][:count]
  power = np.square(np.abs(np.fft.rfft(frames * np.hanning(_WINDOW), axis=1))).astype(np.float32)
  band = np.digitize(np.fft.rfftfreq(_WINDOW, 1 / SAMPLE_RATE), _EDGES) - 1
  levels = np.stack([power[:, band == number].sum(axis=1) for number in range(len(_EDGES) - 1)])
  levels = np.log10(np.maximum(levels, levels.max() / 10**_RANGE))
  swings = np.square(np.abs(np.fft.rfft(levels - levels.mean(axis=1, keepdims=True), axis=1)))
  rate = np.fft.rfftfreq(count, _HOP / SAMPLE_RATE)
  within = swings[:, (rate >= _SYLLABLES[0]) & (rate <= _SYLLABLES[1])] + 1e-9
  syllables = within.sum(axis=1)
  depth = np.sqrt(2 * syllables) / count  # rms, in powers of ten
  uneven = np.exp(np.log(within).mean(axis=1)) / within.mean(axis=1)
  return float((depth * uneven * syllables / (swings.sum(axis=1) + 1e-9)).mean())


def level_db(waveform: np.ndarray) -> np.ndarray:
  """Level of each whole frame of float [640 * n] in [-1, 1]: float32 [n], dB of full scale."""
  frames = len(waveform) // SAMPLES_PER_FRAME
  power = np.square(waveform[: frames * SAMPLES_PER_FRAME].reshape(frames, -1), dtype=np.float64).mean(axis=1)
  return (10 * np.log10(power + 1e-12)).astype(np.float32)


def speech_activity(level: np.ndarray) -> np.ndarray:
  """bool [n]: frames loud enough for speech, above -55 dB and within 30 dB of the loud parts of the file."""
  if not len(level):
    return np.zeros(0, bool)
  return level > max(SPEECH_FLOOR, float(np.percentile(level, 95)) - SPEECH_RANGE)
