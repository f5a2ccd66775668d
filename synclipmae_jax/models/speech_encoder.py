"""The interface of speech encoders, the frame count of a waveform, and windows over whole files.

The features of an encoder depend on the length of its input, because GroupNorm, attention and the normalisation of the
window use all of it. Training and inference therefore use the same windows of Ta frames and keep the middle tokens.
"""

from __future__ import annotations

from typing import Protocol

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from synclipmae_jax.types import AUDIO_MARGIN, SAMPLES_PER_FRAME, InputError, audio_context_samples


class SpeechEncoder(Protocol):
  """`Wav2Vec2` or `LogMel`: N windows of 640 * Ta + 160 samples -> one token per frame from each of L layers."""

  num_layers: int  # L
  width: int  # C
  features: int  # L * C

  def __call__(self, waveform: Float[Array, "n samples"]) -> Float[Array, "n ta l c"]: ...


def frames_of(waveform: Float[Array, "n samples"]) -> int:
  """Ta of a waveform of 640 * Ta + 160 samples. Raises InputError for any other length."""
  frames, rest = divmod(waveform.shape[-1] - 2 * AUDIO_MARGIN, SAMPLES_PER_FRAME)
  if rest or frames < 1:
    raise InputError(
      f"a speech encoder takes {SAMPLES_PER_FRAME} samples per frame and {2 * AUDIO_MARGIN} more, "
      f"got {waveform.shape[-1]} samples"
    )
  return frames


def normalise(waveform: Float[Array, "n samples"]) -> Float[Array, "n samples"]:
  """Zero mean and unit variance per window (HF `Wav2Vec2FeatureExtractor`, do_normalize); removes gain and DC."""
  centred = waveform - waveform.mean(axis=-1, keepdims=True)
  return centred / jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + 1e-7)


def audio_windows(
  waveform: Float[Array, "b samples"], *, audio_frames: int, clip_frames: int
) -> Float[Array, "b w window"]:
  """Overlapping windows over whole files: [B, 640 * T] -> [B, W, 640 * Ta + 160], W = ceil(T / clip_frames).

  Window w contains Ta = `audio_frames` frames from frame w * clip_frames - (Ta - clip_frames) // 2 on, and the margin
  at both ends. Its middle `clip_frames` tokens belong to the frames from w * clip_frames on, exactly as in a training
  clip that starts there. Samples beyond the ends of the file are zero. `centre_tokens` is the inverse on tokens.
  Raises InputError if the length is not a whole number of frames, or if Ta is smaller than `clip_frames`.
  """
  total, rest = divmod(waveform.shape[-1], SAMPLES_PER_FRAME)
  if rest or total < 1:
    raise InputError(f"expected {SAMPLES_PER_FRAME} samples for each frame, got {waveform.shape[-1]} samples")
  before = SAMPLES_PER_FRAME * _lead(audio_frames, clip_frames) + AUDIO_MARGIN
  starts = SAMPLES_PER_FRAME * clip_frames * jnp.arange(-(-total // clip_frames))
  # The padding is longer than the part of the last window beyond the end.
  padded = jnp.pad(waveform, ((0, 0), (before, audio_context_samples(audio_frames))))
  return padded[:, starts[:, None] + jnp.arange(audio_context_samples(audio_frames))]


def centre_tokens(x: Float[Array, "b w ta *d"], *, clip_frames: int, total_frames: int) -> Float[Array, "b t *d"]:
  """The middle `clip_frames` tokens of each window, concatenated in time and cut to `total_frames`.

  A training batch has one window: `centre_tokens(x[:, None], clip_frames=T, total_frames=T)`.
  """
  lead = _lead(x.shape[2], clip_frames)
  return rearrange(x[:, :, lead : lead + clip_frames], "b w t ... -> b (w t) ...")[:, :total_frames]


def _lead(audio_frames: int, clip_frames: int) -> int:
  if not 1 <= clip_frames <= audio_frames:
    raise InputError(f"an audio context of {audio_frames} frames does not contain a clip of {clip_frames}")
  return (audio_frames - clip_frames) // 2
