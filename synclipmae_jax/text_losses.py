"""The objectives of text recognition (Watanabe et al. 2017): CTC, label-smoothed cross-entropy, and their mixture.

Log-probabilities and sums are float32. A text longer than its video can hold has no CTC loss: it counts nothing there
and in the gradient, and is reported.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

BLANK = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recognition:
  """The hybrid loss and its parts: means over the examples with a text, each a sum over its tokens."""

  loss: Float[Array, ""]
  ctc: Float[Array, ""]
  attention: Float[Array, ""]
  accuracy: Float[Array, ""]  # fraction of tokens that the decoder predicts from the true ones before
  unalignable: Float[Array, ""]  # fraction of texts that CTC cannot have


def ctc(
  logits: Float[Array, "b t v"],
  frames: Int[Array, " b"],
  tokens: Int[Array, "b u"],
  count: Int[Array, " b"],
) -> tuple[Float[Array, " b"], Bool[Array, " b"]]:
  """CTC (Graves et al. 2006), blank 0: -log p(tokens[:count] | logits[:frames]) and whether the text fits the frames.

  Text fits where there is one frame for every token and one for every blank that must part two equal tokens. Where it
  does not, p is 0: the loss and its gradient are 0, as with `zero_infinity` of torch.
  """
  fits = needed_frames(tokens, count) <= frames
  # Examples that do not fit are replaced before the loss, because 0 times their infinite gradient is NaN.
  count = jnp.where(fits, count, 0)
  frame_padding = (jnp.arange(logits.shape[1]) >= frames[:, None]).astype(jnp.float32)
  token_padding = (jnp.arange(tokens.shape[1]) >= count[:, None]).astype(jnp.float32)
  loss = optax.ctc_loss(logits.astype(jnp.float32), frame_padding, tokens, token_padding, blank_id=BLANK)
  return jnp.where(fits, loss, 0), fits


def framewise(
  log_probs: Float[Array, "b t v"], frames: Int[Array, " b"], labels: Int[Array, "b t"]
) -> Float[Array, ""]:
  """-log p of one path of CTC, summed over its frames of known label (>= 0), mean over the examples that have one.

  CTC sums the probabilities of all paths, so for a path that reads as the text this is an upper bound of its loss.
  """
  known = (labels >= 0) & (jnp.arange(labels.shape[1]) < frames[:, None])
  chosen = jnp.take_along_axis(log_probs.astype(jnp.float32), jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
  return -jnp.where(known, chosen, 0).sum() / jnp.maximum(known.any(axis=1).sum(), 1)


def needed_frames(tokens: Int[Array, "b u"], count: Int[Array, " b"]) -> Int[Array, " b"]:
  """The fewest frames that CTC can write tokens[:count] in."""
  inside = jnp.arange(1, tokens.shape[1]) < count[:, None]
  return count + ((tokens[:, 1:] == tokens[:, :-1]) & inside).sum(axis=1)


def label_smoothed(
  logits: Float[Array, "b n v"], targets: Int[Array, "b n"], count: Int[Array, " b"], *, smoothing: float
) -> Float[Array, " b"]:
  """Sum over the first `count` targets of the divergence from the smoothed one-hot distribution, as in ESPnet.

  KL(q || p),  q = 1 - smoothing for the target and smoothing / (V - 1) for every other token
  """
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  other = smoothing / (logits.shape[-1] - 1)
  target = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
  cross_entropy = -((1 - smoothing - other) * target + other * log_p.sum(axis=-1))
  entropy = -sum(p * jnp.log(p) * n for p, n in ((1 - smoothing, 1), (other, logits.shape[-1] - 1)) if p > 0)
  valid = jnp.arange(targets.shape[1]) < count[:, None]
  return jnp.where(valid, cross_entropy - entropy, 0).sum(axis=1)


def previous_and_next(
  tokens: Int[Array, "b u"], count: Int[Array, " b"], *, end: int
) -> tuple[Int[Array, "b n"], Int[Array, "b n"]]:
  """Input and target of the decoder, N = U + 1: the text after the start of the sentence, and the text before its end.

  One token, `end`, is both start and end, and fills what follows.
  """
  tokens = jnp.where(jnp.arange(tokens.shape[1]) < count[:, None], tokens, end)
  previous = jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=end)
  following = jnp.pad(tokens, ((0, 0), (0, 1)), constant_values=end)
  return previous, following


def hybrid(
  ctc_logits: Float[Array, "b t v"],
  frames: Int[Array, " b"],
  decoder_logits: Float[Array, "b n v"],
  tokens: Int[Array, "b u"],
  count: Int[Array, " b"],
  *,
  end: int,
  ctc_weight: float,
  smoothing: float,
) -> Recognition:
  """L = w CTC + (1 - w) attention, means over the examples that have a text (`count` > 0).

  `decoder_logits` are those of `previous_and_next`. A text that CTC cannot have trains the decoder alone.
  """
  ctc_loss, fits = ctc(ctc_logits, frames, tokens, count)
  _, following = previous_and_next(tokens, count, end=end)
  attention = label_smoothed(decoder_logits, following, count + 1, smoothing=smoothing)
  transcribed = count > 0
  valid = (jnp.arange(following.shape[1]) <= count[:, None]) & transcribed[:, None]
  hits = (decoder_logits.argmax(-1) == following) & valid
  mean = lambda x: jnp.where(transcribed, x, 0).sum() / jnp.maximum(transcribed.sum(), 1)
  ctc_mean, attention_mean = mean(ctc_loss), mean(attention)
  return Recognition(
    loss=ctc_weight * ctc_mean + (1 - ctc_weight) * attention_mean,
    ctc=ctc_mean,
    attention=attention_mean,
    accuracy=hits.sum() / jnp.maximum(valid.sum(), 1),
    unalignable=mean(1.0 - fits),
  )
