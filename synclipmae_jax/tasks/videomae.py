"""VideoMAE and MARLIN pretrained on the same records as SyncLipMAE, as baselines with equal training data and compute.

The objective is the squared error of the masked tubes. VideoMAE restores tubes normalised by their own mean and
deviation, by channel; MARLIN plain pixels, with the face masked first (`tube_masking.fasking_order`) and an adversarial
term: a critic scores restored and true tubes, and the restored ones should score high.

    L = mean (x^ - x)^2 - adversarial * mean D(x^),     L_D = mean D(x^) - mean D(x)

without a gradient penalty and without a bound of the critic, as in MARLIN's released configurations. There, two
optimizers take turns; here, one update minimises L + L_D, each for its own parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int, Key

from synclipmae_jax.baselines.tube_masking import fasking_order, tube_order
from synclipmae_jax.baselines.videomae import Discriminator, VideoDecoder, VideoEncoder, cut_tubes
from synclipmae_jax.models import flops
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.sharding import RULES, Rules
from synclipmae_jax.tasks.contrastive import abstract_clips
from synclipmae_jax.types import Batch, InputError, Params, Task

MASKS = ("tube", "fasking")


class Restored(NamedTuple):
  """One forward pass: M masked tubes of P values."""

  predicted: Float[Array, "b m p"]
  target: Float[Array, "b m p"]
  masked: Int[Array, "b m"]


class VideoMAETask(Task):
  """The pretraining of a video encoder (`types.Task`). The trainable items are `video_encoder`, `video_decoder`
  and, with an adversarial term, `critic`.

  `encoder` and `decoder` are keyword arguments of those modules. A clip of the batch has `encoder.frames` * `stride`
  frames, of which every `stride`-th is seen. `target_floor` is added to the deviation by which a target is divided.
  Raises InputError for a mask that leaves nothing to see or to restore, and for an unknown one.
  """

  name = "videomae"
  item = "frames"
  group = examples_per_record = 2  # the windows of a record
  best_metric: str | None = "videomae/explained"
  rules: Rules = RULES

  def __init__(
    self,
    *,
    encoder: Mapping[str, Any],
    decoder: Mapping[str, Any],
    stride: int,
    mask: str,
    mask_ratio: float,
    normalised_target: bool,
    target_floor: float,
    adversarial: float,
    compute_dtype=jnp.float32,
    unroll: bool | int = 1,
    remat: str = "none",
  ):
    if mask not in MASKS or stride < 1:
      raise InputError(f"mask is one of {', '.join(MASKS)} and stride at least 1, got {mask!r} and {stride}")
    common = dict(compute_dtype=compute_dtype, unroll=unroll, remat=remat)
    self.encoder = Functional(lambda rngs: VideoEncoder(**encoder, **common, rngs=rngs))
    self._seen: VideoEncoder = self.encoder.bind(self.encoder.abstract)
    grid, patch = self._seen.grid, self._seen.patch
    self.visible = grid**2 - int(mask_ratio * grid**2)  # of a frame, rounded as in VideoMAE
    if not 0 < self.visible < grid**2:
      raise InputError(f"mask ratio {mask_ratio} leaves {self.visible} of {grid**2} tubes visible")
    self.decoder = Functional(
      lambda rngs: VideoDecoder(
        **decoder, **common, tubes=self._seen.tubes, patch=patch, token_width=self._seen.width, rngs=rngs
      )
    )
    self._restores: VideoDecoder = self.decoder.bind(self.decoder.abstract)
    hidden = self._restores.mlp_width
    self.critic = Functional(
      lambda rngs: Discriminator(self._restores.pixels, hidden, compute_dtype=compute_dtype, rngs=rngs)
    )
    self.mask, self.stride, self.clip_frames = mask, stride, self._seen.frames * stride
    self.normalised_target, self.target_floor, self.adversarial = normalised_target, target_floor, adversarial

  def init(self, key: Key[Array, ""]) -> tuple[Params, Params]:
    encoder, decoder, critic = jax.random.split(key, 3)
    trainable = {"video_encoder": self.encoder.init(encoder), "video_decoder": self.decoder.init(decoder)}
    return trainable | ({"critic": self.critic.init(critic)} if self.adversarial else {}), {}

  def restore(self, trainable: Params, batch: Batch, key: Key[Array, ""]) -> Restored:
    """Masks, encodes the visible tubes and restores the others. A clip's mask depends on `key` and its index only."""
    frames = batch["frames"][:, :: self.stride]
    tubes = cut_tubes(frames, self._seen.patch).astype(jnp.float32) / 255
    visible, masked = self._split(batch, key)
    encoder, decoder = self.encoder.bind(trainable["video_encoder"]), self.decoder.bind(trainable["video_decoder"])
    take = lambda indices: jnp.take_along_axis(tubes, indices[..., None], axis=1)
    tokens = encoder.norm(encoder(take(visible), visible))
    return Restored(decoder(tokens, visible, masked), self._target(take(masked)), masked)

  def _split(self, batch: Batch, key: Key[Array, ""]) -> tuple[Int[Array, "b k"], Int[Array, "b m"]]:
    """Indices of the visible and of the masked tubes, at all times alike, in order of time."""
    grid = self._seen.grid
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch["index"])
    if self.mask == "tube":
      order = tube_order(keys, grid**2)
    else:
      order = fasking_order(keys, batch["face_box"], batch["mouth_box"], grid=grid, visible=self.visible)
    at_times = grid**2 * jnp.arange(self._seen.times)[:, None] + order[:, None]  # [b, times, n]
    flat = lambda indices: rearrange(indices, "b t n -> b (t n)")
    return flat(at_times[..., : self.visible]), flat(at_times[..., self.visible :])

  def _target(self, tubes: Float[Array, "b m p"]) -> Float[Array, "b m p"]:
    if not self.normalised_target:
      return tubes
    x = rearrange(tubes, "b m (p c) -> b m p c", c=3)
    deviation = x.std(axis=2, ddof=1, keepdims=True) + self.target_floor
    return rearrange((x - x.mean(axis=2, keepdims=True)) / deviation, "b m p c -> b m (p c)")

  def loss(
    self, trainable: Params, frozen: Params, batch: Batch, key: Key[Array, ""]
  ) -> tuple[Float[Array, ""], Mapping[str, Float[Array, ""]]]:
    restored = self.restore(trainable, batch, key)
    total = error = jnp.square(restored.predicted - restored.target).mean()
    metrics = {"reconstruction": error}
    if self.adversarial:
      score = lambda params, tubes: self.critic.bind(params)(tubes).mean()
      held = jax.lax.stop_gradient(trainable["critic"])
      metrics["adversarial"] = -score(held, restored.predicted)
      fake = jax.lax.stop_gradient(restored.predicted)
      metrics["critic"] = score(trainable["critic"], fake) - score(trainable["critic"], restored.target)
      total = error + self.adversarial * metrics["adversarial"] + metrics["critic"]
    return total, {"loss": total, **metrics}

  def abstract_batches(self, batch_size: int) -> list[Batch]:
    """One batch, a `types.ClipBatch`, whose sound is not used."""
    size = self._seen.image_size
    return abstract_clips(batch_size, clip_frames=self.clip_frames, audio_frames=self.clip_frames, frame_size=size)

  def count_items(self, batch: Batch) -> int:
    """Number of frames that are seen."""
    return batch["index"].shape[0] * self._seen.frames

  def model_flops(self, batch: Batch) -> float:
    """FLOPs of one training step, three times the forward pass."""
    visible = self.visible * self._seen.times
    clip = self._seen.flops(visible) + self._restores.flops(visible)
    if self.adversarial:  # restored tubes for both sides, true ones for the critic
      clip += 3 * flops.dense(self._seen.tubes - visible, self._restores.pixels, self._restores.mlp_width)
    return 3.0 * batch["index"].shape[0] * clip


def explained(restored: Restored) -> tuple[np.ndarray, np.ndarray]:
  """(squared error, squared deviation from the mean of the clip's masked tubes) of every clip, float64 [B]."""
  predicted, target = (np.asarray(x, np.float64) for x in (restored.predicted, restored.target))
  deviation = target - target.mean(axis=(1, 2), keepdims=True)
  return np.square(predicted - target).sum(axis=(1, 2)), np.square(deviation).sum(axis=(1, 2))


def from_config(config: Mapping[str, Any]) -> VideoMAETask:
  """Builds the task of a configuration (configs/videomae.py), given as nested dicts. Raises InputError."""
  data, model = config["data"], dict(config["model"])
  model["encoder"] = {**model["encoder"], "image_size": data["image_size"]}
  model["compute_dtype"] = jnp.dtype(model["compute_dtype"])
  task = VideoMAETask(**model, **config["loss"])
  if data["clip_frames"] != task.clip_frames:
    raise InputError(f"data.clip_frames is model.encoder.frames x model.stride, {task.clip_frames}")
  return task
