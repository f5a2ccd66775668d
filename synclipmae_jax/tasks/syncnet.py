"""SyncNet trained from scratch on our records: the yardstick that has seen what our model has seen.

The network is SyncNet v2 (`baselines.syncnet`). Its own loss, a margin on the distance of single pairs in and out of
sync, is known to sit still for very long; in its place stands our contrast, in which all other windows of a group of
clips are the negatives of each pair. It compares by cosine, as ours does, so the two differ in the model only; tokens
trained so are to be compared by cosine too (`similarity`).

Batch norm. Training takes the statistics of the (micro-)batch. A task is a pure function of its parameters, so nothing
averages them on the way: the leaves `mean` and `var` get no gradient and stay as they began, until `calibrate` measures
them, for the parameters as they are, on a few training batches. Before that `embed` refuses.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Key

from synclipmae_jax import losses
from synclipmae_jax.baselines.mfcc import HOP, WINDOW, int16_scale, mfcc
from synclipmae_jax.baselines.syncnet import COLUMNS, COLUMNS_PER_FRAME, CONTEXT, SyncNet, SyncNetTokens
from synclipmae_jax.models import flops
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.sharding import Rules
from synclipmae_jax.types import (
  AUDIO_MARGIN,
  SAMPLES_PER_FRAME,
  Batch,
  EvalClip,
  InputError,
  Params,
  audio_context_samples,
)


class SyncNetTask:
  """The training of SyncNet (`types.Task`); the item is `syncnet`, with `contrast` beside it.

  `image_size`, `scale`, `width`: of SyncNet, to whose image size the records' frames of `frame_size` are resized.
  A clip of `clip_frames` frames T, in the middle of `audio_frames` of sound, gives T - 4 pairs of windows.
  `negatives_clips`: clips whose windows are each other's negatives; it divides every micro-batch.
  """

  name = "syncnet"
  similarity = "cosine"
  context_frames = CONTEXT
  rules: Rules = (("", PartitionSpec()),)  # 14 M parameters: a copy everywhere

  def __init__(
    self,
    *,
    image_size: int,
    scale: float,
    width: int,
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
    if clip_frames < CONTEXT or audio_frames < clip_frames + 2:
      raise InputError(
        f"SyncNet needs clips of at least {CONTEXT} frames, not {clip_frames}, and at least one frame of sound beyond"
        f" each end of them, {clip_frames + 2} in all, not {audio_frames}"
      )
    self.sizes = {"image_size": image_size, "scale": scale, "width": width}
    self.module = Functional(lambda rngs: SyncNet(rngs=rngs, **self.sizes))
    self.frame_size, self.clip_frames, self.audio_frames = frame_size, clip_frames, audio_frames
    self.negatives_clips = negatives_clips
    self.temperature_init = temperature_init
    self.temperature_range = temperature_range

  def init(self, key: Key[Array, ""]) -> tuple[Params, Params]:
    log_temperature = jnp.asarray(math.log(self.temperature_init), jnp.float32)
    return {"syncnet": self.module.init(key), "contrast": {"log_temperature": log_temperature}}, {}

  def loss(
    self, trainable: Params, frozen: Params, batch: Batch, key: Key[Array, ""]
  ) -> tuple[Float[Array, ""], Mapping[str, Float[Array, ""]]]:
    """The contrast of all whole windows, by the statistics of this batch. Nothing here is drawn at random."""
    model = self.module.bind(trainable["syncnet"])
    temperature = jnp.exp(trainable["contrast"]["log_temperature"])
    audio, lips = self._windows(model, batch)
    contrast = losses.contrast(audio, lips, temperature=temperature, group=self.negatives_clips)
    metrics = {"loss": contrast.loss, "contrast_accuracy": contrast.accuracy, "temperature": temperature}
    return contrast.loss, metrics

  def _windows(self, model: SyncNet, batch: Batch) -> tuple[Float[Array, "b w d"], Float[Array, "b w d"]]:
    """(audio, lips) of the W = T - 4 windows of every clip, with the statistics of the batch."""
    lips = model.embed_lips(batch["frames"].astype(jnp.float32), training=True)
    windows = self.clip_frames - CONTEXT + 1
    columns = COLUMNS_PER_FRAME * (windows - 1) + COLUMNS
    lead = (self.audio_frames - self.clip_frames) // 2
    # One column ahead is heard and dropped: its pre-emphasis lacks the sample before it.
    start = AUDIO_MARGIN + SAMPLES_PER_FRAME * lead - HOP
    heard = batch["waveform"][:, start : start + HOP * columns + WINDOW]
    with jax.default_matmul_precision("highest"):
      coefficients = mfcc(int16_scale(heard, xp=jnp), xp=jnp)[:, 1:]
    return model.embed_audio(coefficients, training=True), lips

  def calibrate(self, trainable: Params, batches: Iterable[Batch]) -> Params:
    """The same parameters with the running statistics of batch norm: the mean, over `batches`, of each batch's own.

    A dozen batches are enough. Raises InputError where there is none.
    """
    total, count = None, 0
    for batch in batches:
      measured = self._statistics(trainable["syncnet"], {name: batch[name] for name in ("frames", "waveform")})
      total = measured if total is None else jax.tree.map(jnp.add, total, measured)
      count += 1
    if not count:
      raise InputError("the statistics of batch norm cannot be measured without a training batch")
    return {**trainable, "syncnet": jax.tree.map(lambda x: x / count, total)}

  @functools.cached_property
  def _statistics(self):
    @jax.jit
    def measure(params: Params, batch: Batch) -> Params:
      model = self.module.bind(params)
      self._windows(model, batch)
      return nnx.to_pure_dict(nnx.state(model))  # as it was but for `mean` and `var`, now those of the batch

    return measure

  def tokens(self, params: Params) -> SyncNetTokens:
    """The model with calibrated parameters, as the synchronisation protocol takes it. Raises InputError for others."""
    if not np.any(params["syncnet"]["lips"]["norm_0"]["mean"]):
      raise InputError("the statistics of this SyncNet's batch norm have not been measured yet (SyncNetTask.calibrate)")
    return SyncNetTokens(params["syncnet"], similarity=self.similarity, **self.sizes)

  def embed(self, params: Params, clip: EvalClip) -> tuple[np.ndarray, np.ndarray]:
    """(audio [T, D], lips [T, D]) of calibrated parameters; see `SyncNetTokens.embed`."""
    return self.tokens(params).embed(clip)

  def constrain_params(self, trainable: Params) -> Params:
    """Clamps the temperature after every update."""
    low, high = map(math.log, self.temperature_range)
    log_temperature = jnp.clip(trainable["contrast"]["log_temperature"], low, high)
    return {**trainable, "contrast": {"log_temperature": log_temperature}}

  def model_flops(self, clips: int) -> float:
    """Of one training step: both towers on every window and the table of their products, three times the forward."""
    windows = self.clip_frames - CONTEXT + 1
    tokens = self.negatives_clips * windows
    contrast = clips // self.negatives_clips * flops.dense(tokens, self.sizes["width"], tokens)
    return 3.0 * (clips * windows * self._pair_flops + contrast)

  @functools.cached_property
  def _pair_flops(self) -> int:
    return nnx.eval_shape(lambda: SyncNet(rngs=nnx.Rngs(0), **self.sizes)).flops()

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
