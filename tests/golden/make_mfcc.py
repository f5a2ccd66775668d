"""Writes mfcc.npz: one second of sound and its MFCC by python_speech_features 0.6.

python tests/golden/make_mfcc.py        (needs python_speech_features and numpy)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import python_speech_features


def sound() -> np.ndarray:
  """int16: a chirp with noise, digital silence, a burst at full scale."""
  random = np.random.default_rng(0)
  time = np.arange(5_000) / 16_000
  chirp = 8_000 * np.sin(2 * np.pi * (200 + 4_000 * time) * time) + 500 * random.standard_normal(len(time))
  burst = 60_000 * (random.random(2_017) - 0.5)
  return np.concatenate([chirp, np.zeros(1_500), burst.clip(-32768, 32767)]).astype(np.int16)


if __name__ == "__main__":
  samples = sound()
  arrays = {
    "samples": samples,
    "mfcc": python_speech_features.mfcc(samples, 16_000),
    "short": python_speech_features.mfcc(samples[:300], 16_000),  # less than one window
  }
  np.savez_compressed(Path(__file__).with_name("mfcc.npz"), **arrays)
