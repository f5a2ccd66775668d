"""Lip reading: text from vocal-motion tokens by hybrid CTC/attention (Watanabe et al. 2017; Ma et al. 2023, Auto-AVSR).

The tokens come from a cache, or from the visual encoder, which then learns too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from synclipmae_jax import text_losses
from synclipmae_jax.models.recogniser import Recogniser, build_recogniser, mask_time
from synclipmae_jax.models.sequence import Dropout
from synclipmae_jax.models.synclipmae import SyncLipMAEModel, build_model
from synclipmae_jax.models.visual_encoder import VisualEncoder
from synclipmae_jax.sharding import RULES, Rules
from synclipmae_jax.types import Batch, InputError, Params, Task, audio_context_samples

VISUAL = "visual_encoder"


class VisualSpeechRecognition(Task):
  """The training of a recogniser (`types.Task`). Trainable items: `Recogniser.ITEMS`, with `visual` the encoder too.

  A batch is padded to one of `lengths` frames and holds texts of at most `max_tokens` tokens. An example without text
  counts nothing. `time_mask` is the length that no mask reaches, 0: none; `frame_weight` is that of the labels of
  frames (`text.frame_labels`), relative to CTC; `visual_flops` are those of a frame's token.
  """

  name = "vsr"
  rules: Rules = RULES
  item = "frames"
  best_metric: str | None = "recognition/word_accuracy"

  def __init__(
    self,
    recogniser: Recogniser,
    *,
    visual: SyncLipMAEModel | None,
    lengths: Sequence[int],
    max_tokens: int,
    ctc_weight: float,
    smoothing: float,
    dropout: float,
    time_mask: int,
    frame_weight: float = 0.0,
    visual_flops: int = 0,
  ):
    if frame_weight < 0 or frame_weight and visual is not None:
      raise InputError("loss.frame_weight is at least 0, and 0 where the encoder learns too")
    if not (0 <= ctc_weight <= 1 and 0 <= smoothing < 1 and 0 <= dropout < 1 and time_mask >= 0):
      raise InputError(
        "ctc_weight lies in [0, 1], smoothing and dropout in [0, 1), time_mask is at least 0, not"
        f" {ctc_weight}, {smoothing}, {dropout}, {time_mask}"
      )
    self.recogniser, self.visual, self.visual_flops = recogniser, visual, visual_flops
    self.lengths, self.max_tokens = tuple(lengths), max_tokens
    self.ctc_weight, self.smoothing, self.dropout, self.time_mask = ctc_weight, smoothing, dropout, time_mask
    self.frame_weight = frame_weight

  def init(self, key: Key[Array, ""]) -> tuple[Params, Params]:
    text_key, visual_key = jax.random.split(key)
    trainable = self.recogniser.init(text_key)
    if self.visual is not None:
      trainable = {**trainable, VISUAL: self.visual.init(visual_key)[0][VISUAL]}
    return trainable, {}

  def tokens(self, trainable: Params, batch: Batch) -> Float[Array, "b t d"]:
    """What the recogniser reads of a batch: its `tokens`, or the vocal tokens of its `frames`."""
    if self.visual is None:
      return jnp.asarray(batch["tokens"])
    boxes = {name: batch[name] for name in ("face_box", "mouth_box")}
    return self.visual.embed_visual(trainable, batch["frames"], **boxes).vocal

  def loss(
    self, trainable: Params, frozen: Params, batch: Batch, key: Key[Array, ""]
  ) -> tuple[Float[Array, ""], Mapping[str, Float[Array, ""]]]:
    """The hybrid loss, its parts and the decoder's accuracy; see `text_losses.hybrid`."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
    mask_keys, dropout_keys, decoder_keys = jax.vmap(lambda k: jax.random.split(k, 3), out_axes=1)(keys)
    length, text, count = batch["length"], batch["text"], batch["text_length"]
    tokens = self.recogniser.prepare(self.tokens(trainable, batch), length)
    if self.time_mask:
      tokens = mask_time(tokens, length, mask_keys, longest=self.time_mask)
    states = self.recogniser.states(trainable, tokens, length, Dropout(self.dropout, dropout_keys))
    previous, _ = text_losses.previous_and_next(text, count, end=self.recogniser.end)
    log_probs = self.recogniser.ctc_log_probs(trainable, states)
    out = text_losses.hybrid(
      log_probs,
      length,
      self.recogniser.decoder_logits(trainable, previous, states, length, Dropout(self.dropout, decoder_keys)),
      text,
      count,
      end=self.recogniser.end,
      ctc_weight=self.ctc_weight,
      smoothing=self.smoothing,
    )
    metrics = {"loss": out.loss, "ctc": out.ctc, "attention": out.attention, "token_accuracy": out.accuracy}
    metrics["unalignable"] = out.unalignable
    if not self.frame_weight:
      return out.loss, metrics
    framewise = text_losses.framewise(log_probs, length, batch["frame_labels"])
    return out.loss + self.frame_weight * self.ctc_weight * framewise, {**metrics, "framewise": framewise}

  def abstract_batches(self, batch_size: int) -> list[Batch]:
    """One batch a length."""
    return [
      {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
        for name, (shape, dtype) in {**self._input_shapes(frames), **self._text_shapes()}.items()
      }
      for frames in self.lengths
    ]

  def _text_shapes(self) -> dict[str, Any]:
    text = {"text": ((self.max_tokens,), jnp.int32), "text_length": ((), jnp.int32)}
    return {**text, "length": ((), jnp.int32), "index": ((), jnp.uint32)}

  def _input_shapes(self, frames: int) -> dict[str, Any]:
    if self.visual is None:
      labels = {"frame_labels": ((frames,), jnp.int32)} if self.frame_weight else {}
      return {"tokens": ((frames, self.recogniser.in_features), jnp.float16), **labels}
    side = self.visual.image_size
    return {
      "frames": ((frames, side, side, 3), jnp.uint8),
      "waveform": ((audio_context_samples(frames),), jnp.float32),
      "face_box": ((frames, 4), jnp.float32),
      "mouth_box": ((frames, 4), jnp.float32),
      "subject": ((), jnp.uint32),
      "source": ((), jnp.int32),
    }

  def count_items(self, batch: Batch) -> int:
    """Number of frames, padding included."""
    clips = batch["index"].shape[0]
    return clips * (batch["tokens"] if self.visual is None else batch["frames"]).shape[1]

  def model_flops(self, batch: Batch) -> float:
    """FLOPs of one training step: three times the forward pass of the recogniser, and of the encoder if it learns."""
    clips, frames = batch["index"].shape[0], self.count_items(batch) // batch["index"].shape[0]
    one = self.recogniser.flops(frames, batch["text"].shape[1])
    if self.visual is not None:
      one += frames * self.visual_flops
    return 3.0 * clips * one


def from_config(config: Mapping[str, Any]) -> VisualSpeechRecognition:
  """Builds the task of a configuration (configs/vsr.py), given as nested dicts."""
  data, model, text = config["data"], config["model"], config["text"]
  visual, in_features, visual_flops = None, data["token_width"], 0
  if model["visual"] is not None:
    visual = build_model({"data": data, "model": model["visual"]})
    in_features = visual.width
    sizes = {**model["visual"]["visual_encoder"], "image_size": data["image_size"]}
    encoder = nnx.eval_shape(lambda: VisualEncoder(**sizes, rngs=nnx.Rngs(0)))
    visual_flops = encoder.flops(visual.patches if visual.embed_visible == "all" else visual.visible)
  return VisualSpeechRecognition(
    build_recogniser(model, in_features=in_features, vocabulary=vocabulary_of(text)),
    visual=visual,
    visual_flops=visual_flops,
    lengths=data["lengths"],
    max_tokens=data["max_tokens"],
    **config["loss"],
  )


def vocabulary_of(text: Mapping[str, Any]) -> int:
  """Number of tokens of `config.text`, blank and end included."""
  return len(text["characters"] if text["kind"] == "characters" else range(text["pieces"])) + 2
