"""Base class of the tasks with a contrastive loss on `types.ClipBatch`: batch shapes, groups and temperature."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from synclipmae_jax.types import KEYPOINTS, Batch, InputError, Params, Task, audio_context_samples


class ContrastiveTask(Task):
  """Base class of `Pretrain` and `SyncNetTask`. The logarithm of the temperature is the item `contrast`.

  `frame_size` is the side of the frames of the records in pixels. The T = `clip_frames` frames are in the middle of
  Ta = `audio_frames` frames of sound. `negatives_clips` is the number of clips whose tokens are negatives of each
  other; it is the `group` of the task. Raises InputError for an invalid temperature or number of negatives.
  """

  examples_per_record = 2  # two disjoint windows
  item = "frames"
  best_metric: str | None = "sync/r_precision/top1"
  keypoints = False  # whether batches carry the points of the face

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
    if negatives_clips < 2 or negatives_clips % 2:
      raise InputError(
        "negatives_clips must be even and at least 2, because the two clips of a pair are in one group; got"
        f" {negatives_clips}"
      )
    self.group = negatives_clips
    self.temperature_init, self.temperature_range = temperature_init, temperature_range

  def init_contrast(self) -> Params:
    """Initial value of the item `contrast`."""
    return {"log_temperature": jnp.asarray(math.log(self.temperature_init), jnp.float32)}

  def temperature(self, trainable: Params) -> Float[Array, ""]:
    return jnp.exp(trainable["contrast"]["log_temperature"])

  def constrain_params(self, trainable: Params) -> Params:
    """Clamps the temperature after every update."""
    low, high = map(math.log, self.temperature_range)
    log_temperature = jnp.clip(trainable["contrast"]["log_temperature"], low, high)
    return {**trainable, "contrast": {"log_temperature": log_temperature}}

  def abstract_batches(self, batch_size: int) -> list[Batch]:
    """One batch, a `types.ClipBatch`, because all clips have the same length."""
    return abstract_clips(
      batch_size,
      clip_frames=self.clip_frames,
      audio_frames=self.audio_frames,
      frame_size=self.frame_size,
      keypoints=self.keypoints,
    )

  def count_items(self, batch: Batch) -> int:
    """Number of frames."""
    clips, frames = batch["frames"].shape[:2]
    return clips * frames


def abstract_clips(
  batch_size: int, *, clip_frames: int, audio_frames: int, frame_size: int, keypoints: bool = False
) -> list[Batch]:
  """Shapes and dtypes of a `types.ClipBatch`; `keypoints`: whether it carries the points of the face."""
  shape: dict[str, Any] = {
    "frames": ((clip_frames, frame_size, frame_size, 3), jnp.uint8),
    "waveform": ((audio_context_samples(audio_frames),), jnp.float32),
    "face_box": ((clip_frames, 4), jnp.float32),
    "mouth_box": ((clip_frames, 4), jnp.float32),
    "subject": ((), jnp.uint32),
    "source": ((), jnp.int32),
    "index": ((), jnp.uint32),
  }
  if keypoints:
    shape["keypoints"] = ((clip_frames, len(KEYPOINTS), 2), jnp.float32)
  return [{name: jax.ShapeDtypeStruct((batch_size, *dims), dtype) for name, (dims, dtype) in shape.items()}]


def negatives_of(config: Mapping[str, Any]) -> int:
  """`loss.negatives_clips` of a configuration. The value 0 means all clips of a micro-batch."""
  train = config["train"]
  return config["loss"]["negatives_clips"] or train["batch_clips"] // max(train["accumulation"], 1)
