"""What tasks share that learn by contrast from `types.Batch`: their batch, their groups, their temperature."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from synclipmae_jax.types import Batch, InputError, Params, audio_context_samples


class ContrastiveTask:
  """The base of `Pretrain` and `SyncNetTask`; the temperature is the item `contrast`, in its logarithm.

  `frame_size`: pixels of a side of the records' frames. `clip_frames` T lie in the middle of `audio_frames` Ta of
  sound. `negatives_clips`: clips whose tokens are each other's negatives; it divides every micro-batch.
  """

  def __init__(
    self,
    *,
    frame_size: int,
    clip_frames: int,
    audio_frames: int,
    negatives_clips: int,
    temperature_init: float,
    temperature_range: tuple[float, float],
  ):
    low, high = temperature_range
    if not 0 < low <= temperature_init <= high:
      raise InputError(f"the temperature {temperature_init} must lie in its range [{low}, {high}], above 0")
    self.frame_size, self.clip_frames, self.audio_frames = frame_size, clip_frames, audio_frames
    self.negatives_clips = negatives_clips
    self.temperature_init, self.temperature_range = temperature_init, temperature_range

  def init_contrast(self) -> Params:
    """The item `contrast` as it begins."""
    return {"log_temperature": jnp.asarray(math.log(self.temperature_init), jnp.float32)}

  def temperature(self, trainable: Params) -> Float[Array, ""]:
    return jnp.exp(trainable["contrast"]["log_temperature"])

  def constrain_params(self, trainable: Params) -> Params:
    """Clamps the temperature after every update."""
    low, high = map(math.log, self.temperature_range)
    log_temperature = jnp.clip(trainable["contrast"]["log_temperature"], low, high)
    return {**trainable, "contrast": {"log_temperature": log_temperature}}

  def abstract_batch(self, clips: int) -> Batch:
    """Shapes and dtypes of a batch of `clips` clips, for tracing without data."""
    shape: dict[str, Any] = {
      "frames": ((self.clip_frames, self.frame_size, self.frame_size, 3), jnp.uint8),
      "waveform": ((audio_context_samples(self.audio_frames),), jnp.float32),
      "face_box": ((self.clip_frames, 4), jnp.float32),
      "mouth_box": ((self.clip_frames, 4), jnp.float32),
      "index": ((), jnp.uint32),
    }
    return {name: jax.ShapeDtypeStruct((clips, *dims), dtype) for name, (dims, dtype) in shape.items()}
