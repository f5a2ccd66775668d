"""The pretraining objectives (paper section 3.3): pure array code. Statistics and logits are float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, UInt32

from synclipmae_jax.types import KEYPOINTS

PATCHES = ("masked", "all")
FORMS = ("log_sum", "mean_log")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrast:
  """The contrastive loss and its diagnostics."""

  loss: Float[Array, ""]
  per_clip: Float[Array, " b"]  # the loss of the anchors of each clip
  accuracy: Float[Array, ""]  # fraction of audio anchors whose best vocal token is a positive
  positives: Float[Array, ""]  # mean number of positives per anchor


def reconstruction(
  predicted: Float[Array, "b f q n p"],
  target: Float[Array, "b f n p"],
  masked: Float[Array, "b f n"],
  *,
  patches: str = "masked",
  motion: Float[Array, "b n"] | None = None,
  motion_weight: float = 0.0,
  structure_weight: float = 1.0,
) -> Float[Array, " q"]:
  """Pixel-space squared error of each decoding pass.

      L_q = sum_{b,f,n} m_bfn w_bn e^q_bfn / sum_{b,f,n} m_bfn,   e = mean_p (x^q_bfnp - x_bfnp)^2

  with m = 1 on masked patches (`patches="masked"`, as in MAE) or everywhere (`"all"`). Target and prediction are
  normalised pixels of the un-jittered frame. Two weights are not in the paper; they keep the mean colour of still
  patches, which is learned first, from paying for everything:

    motion_weight     w = (1 + motion_weight * motion) / (1 + motion_weight), where `motion` is how much the patch
                      changes within the clip, with mean 1 over the patches of a frame.
    structure_weight  the error of a patch's mean colour counts once, the rest of the error this often.

  The number of masked patches varies by chance only, so the mean over a batch is nearly that over its micro-batches.
  Raises ValueError for another value of `patches`.
  """
  total, weight = reconstruction_per_clip(
    predicted, target, masked, patches=patches, motion=motion, motion_weight=motion_weight,
    structure_weight=structure_weight,
  )  # fmt: skip
  return total.sum(axis=0) / weight.sum(axis=0)


def reconstruction_per_clip(
  predicted: Float[Array, "b f q n p"],
  target: Float[Array, "b f n p"],
  masked: Float[Array, "b f n"],
  *,
  patches: str = "masked",
  motion: Float[Array, "b n"] | None = None,
  motion_weight: float = 0.0,
  structure_weight: float = 1.0,
) -> tuple[Float[Array, "b q"], Float[Array, "b q"]]:
  """The numerator and the denominator of `reconstruction` for every clip."""
  if patches not in PATCHES:
    raise ValueError(f"unknown reconstruction patches {patches!r}: masked or all")
  difference = predicted.astype(jnp.float32) - target[:, :, None].astype(jnp.float32)
  error = jnp.square(difference).mean(axis=-1)
  if structure_weight != 1:
    colour = jnp.square(rearrange(difference, "... (p c) -> ... p c", c=3).mean(axis=-2)).mean(axis=-1)
    error = colour + structure_weight * (error - colour)
  if motion_weight:
    if motion is None:
      raise ValueError("motion_weight requires the motion of the patches")
    error = error * ((1 + motion_weight * motion) / (1 + motion_weight))[:, None, None]
  weight = masked[:, :, None].astype(jnp.float32) if patches == "masked" else jnp.ones_like(error)
  weight = jnp.broadcast_to(weight, error.shape)
  return (error * weight).sum(axis=(1, 3)), weight.sum(axis=(1, 3))


def contrast(
  audio: Float[Array, "b t d"],
  vocal: Float[Array, "b t d"],
  *,
  temperature: Float[Array, ""],
  group: int,
  window: int = 0,
  form: str = "log_sum",
  audio_features: Float[Array, "b t c"] | None = None,
  similarity: float | None = None,
) -> Contrast:
  """Symmetric multi-positive InfoNCE between audio and vocal tokens.

  The batch is divided into groups of `group` clips. The candidates of a token are the M = group * T tokens of its
  group. With s_ij = cos(a_i, v_j) / temperature, p_av(j|i) = softmax_j s_ij, p_va(j|i) = softmax_j s_ji and the
  positives P(i) of i:

      log_sum   L = -1/2 mean_i [ log sum_{j in P(i)} p_av(j|i) + log sum_{j in P(i)} p_va(j|i) ]
      mean_log  L = -1/2 mean_i [ 1/|P(i)| sum_{j in P(i)} log p_av(j|i) + ... likewise for va ]

  P(i) contains the frames of the same clip within `window` of i. If `similarity` is given, it also contains the frames
  of the same clip whose clip-centred, gradient-free `audio_features` have a cosine of at least `similarity`. The
  default `window` is 0 because with 1 a constant one-frame error costs almost nothing. `group` divides the
  (micro-)batch, so the loss depends neither on devices nor on accumulation.

  Raises ValueError if `group` does not divide the batch, for an unknown `form`, and for `similarity` without
  `audio_features`.
  """
  clips, frames, _ = audio.shape
  if clips % group:
    raise ValueError(f"groups of {group} clips do not divide {clips} clips")
  if form not in FORMS:
    raise ValueError(f"unknown form of the contrastive loss {form!r}: log_sum or mean_log")
  audio = rearrange(_unit(audio), "(g c) t d -> g (c t) d", c=group)
  vocal = rearrange(_unit(vocal), "(g c) t d -> g (c t) d", c=group)
  logits = jnp.einsum("gid,gjd->gij", audio, vocal, precision=jax.lax.Precision.HIGHEST) / temperature
  positive = _positives(
    clips, frames, group=group, window=window, features=audio_features, similarity=similarity
  )  # [G, M, M]

  def anchored(logits):
    log_p = jax.nn.log_softmax(logits, axis=-1)
    if form == "log_sum":
      return -jax.nn.logsumexp(jnp.where(positive, log_p, -jnp.inf), axis=-1)
    return -(jnp.where(positive, log_p, 0.0).sum(-1) / positive.sum(-1))

  best = jnp.argmax(logits, axis=-1)
  hit = jnp.take_along_axis(positive, best[..., None], axis=-1)
  anchors = 0.5 * (anchored(logits) + anchored(jnp.swapaxes(logits, 1, 2)))  # [G, M]
  return Contrast(
    loss=anchors.mean(),
    per_clip=rearrange(anchors, "g (c t) -> (g c) t", c=group).mean(axis=-1),
    accuracy=hit.mean(dtype=jnp.float32),
    positives=positive.sum(-1).mean(dtype=jnp.float32),
  )


def _unit(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
  """Rows scaled to unit length. The added constant keeps the gradient of a zero row finite."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


def _positives(clips: int, frames: int, *, group: int, window: int, features, similarity) -> Bool[Array, "g m m"]:
  clip = jnp.repeat(jnp.arange(group), frames)
  time = jnp.tile(jnp.arange(frames), group)
  same_clip = clip[:, None] == clip[None]
  near = same_clip & (jnp.abs(time[:, None] - time[None]) <= window)
  positive = jnp.broadcast_to(near, (clips // group, *near.shape))
  if similarity is None:
    return positive
  if features is None:
    raise ValueError("positives by audio similarity require audio features")
  features = jax.lax.stop_gradient(features.astype(jnp.float32))
  features = _unit(features - features.mean(axis=1, keepdims=True))
  features = rearrange(features, "(g c) t d -> g (c t) d", c=group)
  alike = jnp.einsum("gid,gjd->gij", features, features, precision=jax.lax.Precision.HIGHEST) >= similarity
  return positive | (same_clip & alike)


def subject_contrast(
  identity: Float[Array, "b f d"],
  subject: UInt32[Array, " b"],
  *,
  temperature: float,
  group: int,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """InfoNCE between the identity tokens of the two clips of a pair, and its accuracy. Not in the paper.

  A clip's token is the mean of its normalised tokens. The candidates of a clip are the other clips of the pairs of its
  group; those of the same subject other than its partner are left out. `group` as in `contrast`.
  """
  tokens = _unit(_unit(identity).mean(axis=1))
  first, second = (rearrange(tokens, "(g r w) d -> w g r d", w=2, r=group // 2)[side] for side in (0, 1))
  who = rearrange(subject, "(g r w) -> w g r", w=2, r=group // 2)
  logits = jnp.einsum("gid,gjd->gij", first, second, precision=jax.lax.Precision.HIGHEST) / temperature
  partner = jnp.eye(group // 2, dtype=bool)
  same = (who[0][:, :, None] == who[1][:, None]) & ~partner
  logits = jnp.where(same, -jnp.inf, logits)
  own = lambda axis: jnp.diagonal(jax.nn.log_softmax(logits, axis=axis), axis1=1, axis2=2).mean()
  accuracy = (jnp.argmax(logits, axis=-1) == jnp.arange(group // 2)).mean(dtype=jnp.float32)
  return -0.5 * (own(-1) + own(-2)), accuracy


def frame_contrast(
  context: Float[Array, "b f d"], motion: Float[Array, "b t d"], decoded: Int[Array, "b f"], *, temperature: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """InfoNCE between the ambient tokens of the two views of a frame, and its accuracy. Not in the paper.

  The candidates of a frame in the context view are the 2 T frames of its pair of clips in the motion view: nothing that
  stays the same throughout a clip tells those of its own clip apart, only what moves. Frames at most one apart are
  positives (`log_sum` of `contrast`). `decoded` are the indices of the frames in their clip.
  """
  pairs = lambda x: rearrange(x, "(r w) f d -> r (w f) d", w=2)
  logits = jnp.einsum("rfd,rtd->rft", *map(pairs, map(_unit, (context, motion))), precision=jax.lax.Precision.HIGHEST)
  own, length = jnp.repeat(jnp.arange(2), decoded.shape[1]), motion.shape[1]
  at = rearrange(decoded, "(r w) f -> r (w f)", w=2)[..., None]
  positive = (own[:, None] == jnp.arange(2 * length) // length) & (jnp.abs(at - jnp.arange(2 * length) % length) <= 1)
  log_p = jax.nn.log_softmax(logits / temperature, axis=-1)
  hit = jnp.take_along_axis(positive, jnp.argmax(logits, axis=-1, keepdims=True), axis=-1)
  return -jax.nn.logsumexp(jnp.where(positive, log_p, -jnp.inf), axis=-1).mean(), hit.mean(dtype=jnp.float32)


def unexplained(
  context: tuple[Float[Array, "b f d"], Float[Array, "b f d"]],
  motion: tuple[Float[Array, "b t d"], Float[Array, "b t d"]],
  *,
  ridge: float = 0.1,
) -> tuple[Float[Array, "b f d"], Float[Array, "b t d"]]:
  """What the ambient tokens of both views hold beyond a linear function of the vocal tokens.

  `context` and `motion` are (vocal, ambient) tokens. The function is fitted on the motion view of the whole
  (micro-)batch by ridge regression, `ridge` in units of the mean variance of a dimension, and takes no gradient.
  """
  vocal, ambient = (x.astype(jnp.float32) for x in motion)
  means = [x.mean(axis=(0, 1)) for x in (vocal, ambient)]
  v, a = ((x - mean).reshape(-1, x.shape[-1]) for x, mean in zip((vocal, ambient), means, strict=True))
  highest = jax.lax.Precision.HIGHEST
  gram = jnp.matmul(v.T, v, precision=highest)
  gram = gram + (ridge * jnp.trace(gram) / len(gram) + 1e-6) * jnp.eye(len(gram))
  weights = jnp.linalg.solve(*map(jax.lax.stop_gradient, (gram, jnp.matmul(v.T, a, precision=highest))))
  beyond = lambda vocal, ambient: (ambient - means[1]) - (jax.lax.stop_gradient(vocal) - means[0]) @ weights
  return beyond(*context), beyond(*motion)


def missing_spread(x: Float[Array, "b t d"], *, spread: float) -> Float[Array, ""]:
  """Mean over D of how much the standard deviation of a token's dimension over batch and time falls below `spread`.

  The variance term of VICReg (Bardes et al. 2022). A token that covaries with no other factor because it is constant
  would be the cheapest answer to `cross_covariance`, with `normalised` as well as without.
  """
  deviation = jnp.sqrt(x.astype(jnp.float32).var(axis=(0, 1)) + 1e-12)
  return jax.nn.relu(spread - deviation).mean()


def cross_covariance(
  x: Float[Array, "b t d"], y: Float[Array, "b t d"], *, normalised: bool = False
) -> Float[Array, ""]:
  """Squared Frobenius norm, over D, of the cross-covariance of two factors' tokens.

      C = Xc^T Yc / (n - 1),  L = ||C||_F^2 / D,   n = B * T tokens, centred over batch and time

  With `normalised`, every dimension is divided by its standard deviation first, so that C holds correlations. Without,
  small dimensions of a token may hold all of another factor at no cost. Under gradient accumulation the statistics are
  those of the micro-batch. For n < D the Gram matrices give the same value with fewer operations,
  ||Xc^T Yc||_F^2 = sum (Xc Xc^T * Yc Yc^T), and are used instead.
  """
  x, y = (rearrange(z.astype(jnp.float32), "b t d -> (b t) d") for z in (x, y))
  x, y = x - x.mean(axis=0), y - y.mean(axis=0)
  if normalised:
    x, y = (z * jax.lax.rsqrt(z.var(axis=0) + 1e-6) for z in (x, y))
  count, width = x.shape
  highest = jax.lax.Precision.HIGHEST
  if count < width:
    squared = jnp.sum(jnp.matmul(x, x.T, precision=highest) * jnp.matmul(y, y.T, precision=highest))
  else:
    squared = jnp.sum(jnp.square(jnp.matmul(x.T, y, precision=highest)))
  return squared / (float(count - 1) ** 2 * width)  # as an integer the square exceeds 32 bits


def head_motion(
  ambient: Float[Array, "b t d"], keypoints: Float[Array, "b t p 2"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Squared error of what the ambient token says of the pose, the lids and the brows; and its R². Not in the paper.

  Reconstruction alone teaches pose in tens of thousands of steps; this term in hundreds. See `_read`.
  """
  return _read(ambient, keypoints, _pose, still=3)


def lip_motion(
  vocal: Float[Array, "b t d"], keypoints: Float[Array, "b t p 2"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Squared error of what the vocal token says of lips and jaw; and its R². Not in the paper.

  The contrast with sound alone teaches the mouths of people that are many and alike; this term, of every frame what the
  lips do, teaches it for each person and view. See `_read`.
  """
  return _read(vocal, keypoints, _lips, still=0)


def _read(
  token: Float[Array, "b t d"],
  keypoints: Float[Array, "b t p 2"],
  measures: Callable[[Float[Array, "b t p 2"]], Float[Array, "b t k"]],
  *,
  still: int,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Squared error and R² of `measures` of the keypoints, read from the token through a fixed orthonormal matrix.

  `keypoints` are those of `types.KEYPOINTS`, found by the tracker; frames where they are unknown (-1) do not count. The
  matrix has no parameters. The targets have zero mean and unit variance over the (micro-)batch; all behind the first
  `still` are less their mean over the two clips of a person, for how wide open an eye is, or where a brow lies, is the
  person's: what counts is the change.
  """
  known = (keypoints > -0.5).all(axis=(-1, -2))  # those that are known lie in the picture or near it
  target = measures(jnp.where(known[..., None, None], keypoints, jnp.asarray(_UPRIGHT)))
  moving = target[..., still:]
  pairs = rearrange(moving, "(r w) t k -> r (w t) k", w=2)
  seen = rearrange(known, "(r w) t -> r (w t) 1", w=2).astype(jnp.float32)
  usual = (pairs * seen).sum(axis=1, keepdims=True) / jnp.maximum(seen.sum(axis=1, keepdims=True), 1)
  target = jnp.concatenate([target[..., :still], rearrange(pairs - usual, "r (w t) k -> (r w) t k", w=2)], axis=-1)
  weight = known[..., None].astype(jnp.float32)
  count = jnp.maximum(weight.sum(), 1)
  mean = (target * weight).sum(axis=(0, 1)) / count
  deviation = jnp.sqrt((jnp.square(target - mean) * weight).sum(axis=(0, 1)) / count + 1e-8)
  target = jnp.clip((target - mean) / deviation, -4, 4)
  directions = np.linalg.qr(np.random.default_rng(0).normal(size=(token.shape[-1], target.shape[-1])))[0]
  said = token.astype(jnp.float32) @ jnp.asarray(directions, jnp.float32)
  error = (jnp.square(said - target) * weight).sum() / (count * target.shape[-1])
  return error, 1 - error


# Any face, in the place of an unknown one, so that gradients stay finite.
_UPRIGHT = np.array([
  (0.2, 0.45), (0.8, 0.45), (0.3, 0.4), (0.44, 0.4), (0.37, 0.38), (0.37, 0.42), (0.7, 0.4), (0.56, 0.4), (0.63, 0.38),
  (0.63, 0.42), (0.37, 0.3), (0.63, 0.3), (0.4, 0.7), (0.6, 0.7), (0.5, 0.67), (0.5, 0.69), (0.5, 0.71), (0.5, 0.73),
  (0.5, 0.85),
], np.float32)  # fmt: skip


def _pose(points: Float[Array, "b t p 2"]) -> Float[Array, "b t k"]:
  """Roll, temples right of the eyes (yaw) and below them (pitch); gaps of the lids, heights of the brows."""
  at, measure = _between_eyes(points)
  line, temples = at["right"] - at["left"], (at["left_temple"] + at["right_temple"]) / 2
  return jnp.stack([
    jnp.arctan2(line[..., 1], jnp.maximum(line[..., 0], 1e-3)),
    measure(temples - at["middle"])[0],
    measure(temples - at["middle"])[1],
    *(measure(at[f"{side}_lid_lower"] - at[f"{side}_lid_upper"])[1] for side in ("left", "right")),
    measure(at["left"] - at["left_brow"])[1],
    measure(at["right"] - at["right_brow"])[1],
  ], axis=-1)  # fmt: skip


def _lips(points: Float[Array, "b t p 2"]) -> Float[Array, "b t k"]:
  """Width of the mouth, gap of the lips, height over both, how far the upper lip and the chin lie below the eyes."""
  at, measure = _between_eyes(points)
  return jnp.stack([
    measure(at["right_mouth_corner"] - at["left_mouth_corner"])[0],
    measure(at["lower_lip_inner"] - at["upper_lip_inner"])[1],
    measure(at["lower_lip"] - at["upper_lip"])[1],
    measure(at["upper_lip"] - at["middle"])[1],
    measure(at["chin"] - at["middle"])[1],
  ], axis=-1)  # fmt: skip


def _between_eyes(points: Float[Array, "b t p 2"]) -> tuple[dict[str, Array], Callable[[Array], tuple[Array, Array]]]:
  """Points by name, with the middles of the eyes; and what measures a vector along and across the line between these.

  Lengths are in units of the distance between the eyes.
  """
  at = {name: points[..., k, :] for k, name in enumerate(KEYPOINTS)}
  for side in ("left", "right"):
    at[side] = (at[f"{side}_outer"] + at[f"{side}_inner"]) / 2
  at["middle"] = (at["left"] + at["right"]) / 2
  line = at["right"] - at["left"]
  distance = jnp.sqrt(jnp.square(line).sum(axis=-1, keepdims=True) + 1e-6)
  along = line / distance
  across = jnp.stack([-along[..., 1], along[..., 0]], axis=-1)
  return at, lambda vector: tuple((vector * axis).sum(axis=-1) / distance[..., 0] for axis in (along, across))
