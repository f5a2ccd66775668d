"""The log-mel spectrogram of Wav2Lip, which StableSyncNet and VocaLiST use.

Sources: Wav2Lip `audio.py`, LatentSync `latentsync/utils/audio.py`, VocaLiST `test_lrs2.py`.
"""

from __future__ import annotations

import functools
from typing import Literal

import librosa
import numpy as np

from synclipmae_jax.types import SAMPLE_RATE

BANDS = 80
HOP = 200  # samples: 80 columns per second
WINDOW = 800
RANGE = (55.0, 7600.0)  # Hz
FLOOR = -100.0  # dB
REFERENCE = 20.0  # dB
LIMIT = 4.0


def log_mel(waveform: np.ndarray, *, preemphasis: float, pad_mode: Literal["constant", "reflect"]) -> np.ndarray:
  """Log-mel in [-4, 4] of 16 kHz sound in [-1, 1]: [n] -> float32 [80, 1 + n // 200]; n > 400 with `reflect`.

  Column c is centred on sample 200 * c, under a periodic Hann window of 800 samples. Magnitudes, not powers, are summed
  in Slaney bands. StableSyncNet (LatentSync) uses `preemphasis` 0.97 and zeros beyond the ends (`constant`), as its
  version of librosa does. VocaLiST uses no pre-emphasis (0.0) and `reflect`, as torch.stft does.
  """
  sound = np.asarray(waveform, np.float32)
  if preemphasis:
    sound = np.append(sound[:1], sound[1:] - np.float32(preemphasis) * sound[:-1])
  windows = np.lib.stride_tricks.sliding_window_view(np.pad(sound, WINDOW // 2, mode=pad_mode), WINDOW)[::HOP]
  hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
  magnitude = np.abs(np.fft.rfft(windows * hann)).T
  level = 20 * np.log10(np.maximum(_filters() @ magnitude, 10 ** (FLOOR / 20))) - REFERENCE
  return np.clip(2 * LIMIT * (level - FLOOR) / -FLOOR - LIMIT, -LIMIT, LIMIT).astype(np.float32)


@functools.cache
def _filters() -> np.ndarray:
  return librosa.filters.mel(sr=SAMPLE_RATE, n_fft=WINDOW, n_mels=BANDS, fmin=RANGE[0], fmax=RANGE[1], norm="slaney")
