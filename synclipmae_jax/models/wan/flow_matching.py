"""Flow matching: the noise levels of training with their weights, the loss, and guidance.

    x_t = (1 - s) x_0 + s e,   the model predicts v = e - x_0 at time 1000 s

Sources: DiffSynth-Studio, diffsynth/diffusion/flow_match.py (grid and weights); OmniAvatar, OmniAvatar/wan_video.py
(guidance on text and control).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from synclipmae_jax.types import InputError

TIMES = 1000  # time of pure noise
WEIGHTS = ("bell", "clean", "none")


def shifted(sigma: np.ndarray, shift: float) -> np.ndarray:
  """Noise levels in [0, 1] moved towards noise: k s / (1 + (k - 1) s)."""
  return shift * sigma / (1 + (shift - 1) * sigma)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainingGrid:
  """The noise levels of training, float32 [N] from 1 downwards, and the weight of the loss at each, of mean 1."""

  sigma: np.ndarray
  weight: np.ndarray


def training_grid(*, shift: float, weights: str = "bell", levels: int = TIMES) -> TrainingGrid:
  """`levels` noise levels that are equally likely.

  With `bell` the weight of time t is exp(-2 ((t - 500) / 1000)^2), less its minimum. It is normalised over the grid:
  over a batch, a batch of one would divide by zero. With `clean` it is s^2, by which the error of the velocity becomes
  that of the clean latents. Raises InputError for other weights and a shift that is not positive.
  """
  if weights not in WEIGHTS or not shift > 0:
    raise InputError(f"the weights are one of {', '.join(WEIGHTS)} and the shift is positive: {weights!r} and {shift}")
  sigma = shifted(np.linspace(1, 0, levels + 1)[:-1], shift)
  if weights == "bell":
    weight = np.exp(-2 * (sigma - 0.5) ** 2)
    weight -= weight.min()
  else:
    weight = sigma**2 if weights == "clean" else np.ones(levels)
  return TrainingGrid(sigma=sigma.astype(np.float32), weight=(weight / weight.mean()).astype(np.float32))


def add_noise(
  clean: Float[Array, "b s h w z"], noise: Float[Array, "b s h w z"], sigma: Float[Array, " b"]
) -> Float[Array, "b s h w z"]:
  """x_t of each example."""
  sigma = sigma[:, None, None, None, None]
  return (1 - sigma) * clean + sigma * noise


def velocity_error(
  velocity: Float[Array, "b s h w z"],
  clean: Float[Array, "b s h w z"],
  noise: Float[Array, "b s h w z"],
  *,
  weight: Float[Array, "b h w"] | None = None,
) -> Float[Array, "b s"]:
  """Mean squared error of each latent frame, float32; places count by `weight`, where it is given."""
  squared = jnp.square(velocity.astype(jnp.float32) - (noise - clean)).mean(axis=-1)
  if weight is None:
    return squared.mean(axis=(2, 3))
  weight = weight[:, None]
  return (squared * weight).sum(axis=(2, 3)) / weight.sum(axis=(2, 3))


def with_motion_weighted(
  velocity: Float[Array, "b s h w z"],
  clean: Float[Array, "b s h w z"],
  noise: Float[Array, "b s h w z"],
  *,
  references: int,
  weight: float,
) -> Float[Array, "b s h w z"]:
  """A velocity whose squared error, after the `references`, has what changes over time counted `weight` times.

  The error of each place is divided into its mean over the latent frames and what deviates from it.
  """
  true = noise - clean
  error = (velocity.astype(jnp.float32) - true)[:, references:]
  still = error.mean(axis=1, keepdims=True)
  error = still + weight**0.5 * (error - still)
  return jnp.concatenate([velocity[:, :references].astype(jnp.float32), true[:, references:] + error], axis=1)


def guided(
  velocity: Callable[[bool, bool], Float[Array, "b s h w z"]], *, text: float = 1.0, control: float = 1.0
) -> Float[Array, "b s h w z"]:
  """Classifier-free guidance on text and on control.

      v(no, no) + text (v(yes, no) - v(no, no)) + control (v(yes, yes) - v(yes, no))

  `velocity(with text, with control)` is called for the terms that do not cancel: once without guidance, twice if both
  scales are equal or one of them is 1, else three times.
  """
  full = velocity(True, True)
  if text == control == 1:
    return full
  if text == control:
    nothing = velocity(False, False)
    return nothing + text * (full - nothing)
  texted = velocity(True, False)
  driven = texted + control * (full - texted)
  if text == 1:
    return driven
  return driven + (text - 1) * (texted - velocity(False, False))
