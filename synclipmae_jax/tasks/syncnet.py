"""SyncNet trained from scratch on the same records as SyncLipMAE, as a baseline with equal training data.

The network is SyncNet v2 (`baselines.syncnet`). Its original loss, a margin on the distance of single pairs in and out
of sync, is known to plateau for a long time. This task uses the contrastive loss of pretraining instead: the negatives
of a pair are all other windows of a group of clips. The comparison is the cosine, as in SyncLipMAE, so that the two
differ in the model only. Trained tokens must be compared by cosine (`similarity`).

Batch norm is that of `baselines.batch_norm`: `tokens` rejects parameters whose statistics have not been measured.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Key

from synclipmae_jax import losses
from synclipmae_jax.baselines import batch_norm
from synclipmae_jax.baselines.mfcc import HOP, WINDOW, int16_scale, mfcc
from synclipmae_jax.baselines.syncnet import COLUMNS, COLUMNS_PER_FRAME, CONTEXT, SyncNet, SyncNetTokens
from synclipmae_jax.models import flops
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.sharding import Rules
from synclipmae_jax.tasks.contrastive import ContrastiveTask, negatives_of
from synclipmae_jax.types import AUDIO_MARGIN, SAMPLES_PER_FRAME, Batch, InputError, Params


class SyncNetTask(ContrastiveTask):
  """The training of SyncNet (`types.Task`). The trainable items are `syncnet` and `contrast`.

  `image_size`, `scale` and `width` are those of SyncNet. The frames of the records are resized to `image_size`. A clip
  of T frames gives T - 4 pairs of windows. Raises InputError if the clip or its sound is too short.
  """

  name = "syncnet"
  similarity = "cosine"
  rules: Rules = (("", PartitionSpec()),)  # 14 M parameters: replicated on all devices

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
    super().__init__(
      frame_size=frame_size,
      clip_frames=clip_frames,
      audio_frames=audio_frames,
      negatives_clips=negatives_clips,
      temperature_init=temperature_init,
      temperature_range=temperature_range,
    )
    if clip_frames < CONTEXT or audio_frames < clip_frames + 2:
      raise InputError(
        f"SyncNet needs clips of at least {CONTEXT} frames, not {clip_frames}, and at least one frame of sound beyond"
        f" each end, {clip_frames + 2} in total, not {audio_frames}"
      )
    self.sizes: dict[str, Any] = {"image_size": image_size, "scale": scale, "width": width}
    self.module = Functional(lambda rngs: SyncNet(rngs=rngs, **self.sizes))

  def init(self, key: Key[Array, ""]) -> tuple[Params, Params]:
    return {"syncnet": self.module.init(key), "contrast": self.init_contrast()}, {}

  def loss(
    self, trainable: Params, frozen: Params, batch: Batch, key: Key[Array, ""]
  ) -> tuple[Float[Array, ""], Mapping[str, Float[Array, ""]]]:
    """Contrastive loss of all whole windows, with the batch norm statistics of this batch. Does not use `key`."""
    model = self.module.bind(trainable["syncnet"])
    temperature = self.temperature(trainable)
    audio, lips = self._windows(model, batch)
    contrast = losses.contrast(audio, lips, temperature=temperature, group=self.group)
    metrics = {"loss": contrast.loss, "contrast_accuracy": contrast.accuracy, "temperature": temperature}
    return contrast.loss, metrics

  def _windows(self, model: SyncNet, batch: Batch) -> tuple[Float[Array, "b w d"], Float[Array, "b w d"]]:
    """(audio, lips) of the W = T - 4 windows of every clip, with the batch norm statistics of the batch."""
    lips = model.embed_lips(batch["frames"].astype(jnp.float32), training=True)
    windows = self.clip_frames - CONTEXT + 1
    columns = COLUMNS_PER_FRAME * (windows - 1) + COLUMNS
    lead = (self.audio_frames - self.clip_frames) // 2
    # One extra column is computed at the start and dropped, because its pre-emphasis lacks the previous sample.
    start = AUDIO_MARGIN + SAMPLES_PER_FRAME * lead - HOP
    heard = batch["waveform"][:, start : start + HOP * columns + WINDOW]
    with jax.default_matmul_precision("highest"):
      coefficients = mfcc(int16_scale(heard, xp=jnp), xp=jnp)[:, 1:]
    return model.embed_audio(coefficients, training=True), lips

  def calibrate(self, trainable: Params, batches: Iterable[Batch]) -> Params:
    """The parameters with measured statistics (`baselines.batch_norm`). Raises InputError without a batch."""
    heard_and_seen = ({name: batch[name] for name in ("frames", "waveform")} for batch in batches)
    return {**trainable, "syncnet": batch_norm.calibrate(self._statistics, trainable["syncnet"], heard_and_seen)}

  @functools.cached_property
  def _statistics(self):
    return batch_norm.statistics(self.module, self._windows)

  def tokens(self, params: Params) -> SyncNetTokens:
    """The model for the synchronisation evaluation. Raises InputError if the parameters are not calibrated."""
    if not batch_norm.is_calibrated(params["syncnet"]):
      raise InputError("the batch norm statistics of this SyncNet have not been measured yet (SyncNetTask.calibrate)")
    return SyncNetTokens(params["syncnet"], similarity=self.similarity, **self.sizes)

  def model_flops(self, batch: Batch) -> float:
    """FLOPs of one training step: three times the forward pass of both towers on every window and of the logits."""
    clips = batch["index"].shape[0]
    windows = self.clip_frames - CONTEXT + 1
    tokens = self.group * windows
    contrast = clips // self.group * flops.dense(tokens, self.sizes["width"], tokens)
    return 3.0 * (clips * windows * self._pair_flops + contrast)

  @functools.cached_property
  def _pair_flops(self) -> int:
    return nnx.eval_shape(lambda: SyncNet(rngs=nnx.Rngs(0), **self.sizes)).flops()


def from_config(config: Mapping[str, Any]) -> SyncNetTask:
  """Builds the task of a configuration (configs/syncnet.py), given as nested dicts."""
  data = config["data"]
  shapes = dict(frame_size=data["image_size"], clip_frames=data["clip_frames"], audio_frames=data["audio_frames"])
  return SyncNetTask(**config["model"], **shapes, **{**config["loss"], "negatives_clips": negatives_of(config)})
