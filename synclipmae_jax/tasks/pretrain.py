"""Pretraining: masked reconstruction, audio-vocal contrast and decorrelation of three factors (paper section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32

from synclipmae_jax import losses
from synclipmae_jax.models import flops
from synclipmae_jax.models.synclipmae import Outputs, SyncLipMAEModel, build_model
from synclipmae_jax.sharding import RULES, Rules
from synclipmae_jax.tasks.contrastive import ContrastiveTask, negatives_of
from synclipmae_jax.tasks.mixture import by_source, source_names
from synclipmae_jax.types import Batch, InputError, Params


class Pretrain(ContrastiveTask):
  """The pretraining task (`types.Task`).

  `weights` are the weights of the terms, as in configs/pretrain.py. With several `sources`, by name, the metrics have
  the terms that are means over clips for each of them (`by_source`). The other keyword arguments are those of `losses`
  and `ContrastiveTask`. Raises InputError for an unknown value.
  """

  name = "pretrain"
  rules: Rules = RULES

  def __init__(
    self,
    model: SyncLipMAEModel,
    *,
    weights: Mapping[str, float],
    reconstruct_patches: str,
    negatives_clips: int,
    contrast_form: str,
    positive_window: int,
    positive_similarity: float | None,
    motion_weight: float,
    structure_weight: float,
    normalised_covariance: bool,
    token_temperature: float,
    spread: float,
    temperature_init: float,
    temperature_range: tuple[float, float],
    sources: Sequence[str] = (),
  ):
    super().__init__(
      frame_size=model.image_size,
      clip_frames=model.clip_frames,
      audio_frames=model.audio_frames,
      negatives_clips=negatives_clips,
      temperature_init=temperature_init,
      temperature_range=temperature_range,
    )
    if reconstruct_patches not in losses.PATCHES or contrast_form not in losses.FORMS or positive_window < 0:
      raise InputError(
        f"reconstruct_patches is one of {losses.PATCHES}, contrast_form one of {losses.FORMS} and positive_window at"
        f" least 0, got {reconstruct_patches!r}, {contrast_form!r}, {positive_window}"
      )
    self.model = model
    self.weights = dict(weights)
    self.reconstruct_patches = reconstruct_patches
    self.contrast_form = contrast_form
    self.positive_window = positive_window
    self.positive_similarity = positive_similarity
    self.motion_weight, self.structure_weight = motion_weight, structure_weight
    self.normalised_covariance, self.token_temperature = normalised_covariance, token_temperature
    self.spread, self.sources = spread, sources
    self.keypoints = bool(self.weights["head"] or self.weights["lips"])

  def init(self, key: Key[Array, ""]) -> tuple[Params, Params]:
    trainable, frozen = self.model.init(key)
    return {**trainable, "contrast": self.init_contrast()}, frozen

  def loss(
    self, trainable: Params, frozen: Params, batch: Batch, key: Key[Array, ""]
  ) -> tuple[Float[Array, ""], Mapping[str, Float[Array, ""] | Float[Array, " 2"]]]:
    """Weighted sum of the terms, and each term."""
    return self.objective(trainable, self.model.apply(trainable, frozen, batch, key), batch["subject"], batch["source"])

  @jax.named_scope("losses")
  def objective(
    self, trainable: Params, outputs: Outputs, subject: UInt32[Array, " b"], source: Int[Array, " b"]
  ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""] | Float[Array, " 2"]]]:
    """The losses of one forward pass.

    The covariance uses the identity tokens before the shuffle. Its two pairs with identity use the decoded frames only
    (in the paper, all frames are decoded).
    """
    error, counted = losses.reconstruction_per_clip(
      outputs.predicted,
      outputs.target,
      outputs.masked,
      patches=self.reconstruct_patches,
      motion=outputs.motion,
      motion_weight=self.motion_weight,
      structure_weight=self.structure_weight,
    )
    video, audio = error.sum(axis=0) / counted.sum(axis=0)
    temperature = self.temperature(trainable)
    contrast = losses.contrast(
      outputs.audio,
      outputs.vocal,
      temperature=temperature,
      group=self.group,
      window=self.positive_window,
      form=self.contrast_form,
      audio_features=outputs.speech_features,
      similarity=self.positive_similarity,
    )
    vocal, ambient = (
      jnp.take_along_axis(x, outputs.decoded[..., None], axis=1) for x in (outputs.vocal, outputs.ambient)
    )
    pairs = ((outputs.identity, vocal), (outputs.identity, ambient), (outputs.vocal, outputs.ambient))
    covariance = sum(losses.cross_covariance(x, y, normalised=self.normalised_covariance) for x, y in pairs)
    terms = {"reconstruction": video + audio, "contrast": contrast.loss, "covariance": covariance}
    metrics = {
      "reconstruction_video": video,
      "reconstruction_audio": audio,
      "contrast": contrast.loss,
      "covariance": covariance,
      "contrast_accuracy": contrast.accuracy,
      "positives": contrast.positives,
      "temperature": temperature,
    }
    # The paper has none of the following terms: they cost nothing if their weight is 0.
    if self.weights["subject"]:
      terms["subject"], metrics["subject_accuracy"] = losses.subject_contrast(
        outputs.identity, subject, temperature=self.token_temperature, group=self.group
      )
    if self.weights["frame"]:
      beyond = losses.unexplained((outputs.context_vocal, outputs.context_ambient), (outputs.vocal, outputs.ambient))
      terms["frame"], metrics["frame_accuracy"] = losses.frame_contrast(
        *beyond, outputs.decoded, temperature=self.token_temperature
      )
    if self.weights["head"]:
      terms["head"], metrics["head_r2"] = losses.head_motion(outputs.ambient, outputs.keypoints)
    if self.weights["lips"]:
      terms["lips"], metrics["lips_r2"] = losses.lip_motion(outputs.vocal, outputs.keypoints)
    if self.weights["spread"]:
      tokens = (outputs.identity, outputs.vocal, outputs.ambient)
      terms["spread"] = sum(losses.missing_spread(x, spread=self.spread) for x in tokens)
    metrics |= by_source(
      self.sources,
      source,
      reconstruction=(error.sum(axis=1), counted[:, 0]),  # both passes decode the same patches
      contrast=(contrast.per_clip, jnp.ones_like(contrast.per_clip)),
    )
    total = sum(self.weights[name] * term for name, term in terms.items())
    return total, {"loss": total, **metrics, **{name: term for name, term in terms.items() if name != "reconstruction"}}

  def model_flops(self, batch: Batch) -> float:
    """FLOPs of one training step. Trained modules count three times, the frozen speech encoder once."""
    clips, width = batch["index"].shape[0], self.model.width
    frames, decoded = self.model.clip_frames, self.model.decode_frames
    tokens = self.group * frames
    contrast = clips // self.group * flops.dense(tokens, width, tokens)
    covariance = 2 * flops.dense(width, clips * decoded, width) + flops.dense(width, clips * frames, width)
    return clips * self.model.flops() + 3 * (contrast + covariance)


def from_config(config: Mapping[str, Any]) -> Pretrain:
  """Builds the task of a configuration (configs/pretrain.py), given as nested dicts."""
  options = {**config["loss"], "negatives_clips": negatives_of(config), "sources": source_names(config)}
  return Pretrain(build_model(config), **options)
