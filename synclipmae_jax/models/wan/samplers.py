"""Samplers of flow matching: Euler, and UniPC (Zhao et al. 2023, B2(h), order 2), with the schedules of diffusers.

Both are linear multistep methods: with m = x - s v, the clean sample that the model predicts, a step first corrects the
sample that the step before predicted and then predicts the next, each as a weighted sum of samples and predictions. The
weights depend on the schedule only. They are computed once in float64, and one function applies them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from synclipmae_jax.models.wan.flow_matching import TIMES, shifted
from synclipmae_jax.types import InputError

SAMPLERS = ("unipc", "euler")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sampler:
  """A schedule of N steps with the weights of each. Arrays are float32."""

  sigma: np.ndarray  # [N] noise level at the start of a step
  time: np.ndarray  # [N] what the model is told, in [0, 1000]
  correct: np.ndarray  # [N, 5] weights of x, the last corrected x, and m of now, of one and of two steps before
  predict: np.ndarray  # [N, 3] weights of the corrected x, and m of now and of one step before

  def __len__(self) -> int:
    return len(self.sigma)


def make_sampler(name: str, *, steps: int, shift: float) -> Sampler:
  """`unipc` (diffusers' UniPCMultistepScheduler with flow sigmas) or `euler` (FlowMatchEulerDiscreteScheduler).

  Raises InputError for another name, no step, or a shift that is not positive.
  """
  if name not in SAMPLERS or steps < 1 or not shift > 0:
    raise InputError(
      f"a sampler is {' or '.join(SAMPLERS)} with at least one step and a positive shift, not {name!r}, {steps} and"
      f" {shift}"
    )
  return _unipc(steps, shift) if name == "unipc" else _euler(steps, shift)


def _euler(steps: int, shift: float) -> Sampler:
  # diffusers shifts twice: it spaces the steps between the ends of a grid that is shifted already.
  lowest = float(shifted(np.array(1 / TIMES), shift))
  sigma = shifted(np.linspace(1, lowest, steps), shift)
  following = np.append(sigma[1:], 0)
  predict = np.stack([following / sigma, 1 - following / sigma, np.zeros(steps)], axis=1)
  return _sampler(sigma, sigma * TIMES, np.tile([1.0, 0, 0, 0, 0], (steps, 1)), predict)


def _unipc(steps: int, shift: float) -> Sampler:
  sigma = shifted(np.linspace(1, 1 / TIMES, steps + 1)[:-1], shift)
  sigma[0] -= 1e-6  # at 1 the log of 1 - sigma would be infinite
  time = np.floor(sigma * TIMES)
  # In diffusers they are float32, which moves the first 1 - sigma by 1 %.
  sigmas = np.append(sigma, 0).astype(np.float32).astype(np.float64)
  correct, predict = np.zeros((steps, 5)), np.zeros((steps, 3))
  correct[0, 0] = 1
  for step in range(steps):
    if step:
      correct[step, 1:] = _corrector(sigmas, step, order=_order(step - 1, steps))
    predict[step] = _predictor(sigmas, step, order=_order(step, steps))
  return _sampler(sigma, time, correct, predict)


def _order(step: int, steps: int) -> int:
  """The first and the last step are of order 1, all others of order 2."""
  return min(2, step + 1, steps - step)


def _log_snr(sigma: float) -> float:
  """log((1 - s) / s)."""
  return math.inf if sigma == 0 else math.log1p(-sigma) - math.log(sigma)


def _predictor(sigmas: np.ndarray, step: int, *, order: int) -> list[float]:
  now, following = sigmas[step], sigmas[step + 1]
  h = _log_snr(following) - _log_snr(now)
  gain = -(1 - following) * math.expm1(-h)  # weight of what is predicted
  extra = 0.0
  if order == 2:
    ratio = (_log_snr(sigmas[step - 1]) - _log_snr(now)) / h
    extra = gain * 0.5 / ratio
  return [following / now, gain - extra, extra]


def _corrector(sigmas: np.ndarray, step: int, *, order: int) -> list[float]:
  """Weights of the last corrected x, and m of now, one and two steps before; `order` is that of the last prediction."""
  before, now = sigmas[step - 1], sigmas[step]
  h = _log_snr(now) - _log_snr(before)
  gain = -(1 - now) * math.expm1(-h)
  old, new = 0.0, 0.5
  if order == 2:
    ratio = (_log_snr(sigmas[step - 2]) - _log_snr(before)) / h
    phi = math.expm1(-h) / -h - 1
    right = np.array([phi, (phi / -h - 0.5) * 2]) / math.expm1(-h)
    old, new = np.linalg.solve([[1.0, 1.0], [ratio, 1.0]], right)
    old = old / ratio
  return [now / before, gain * new, gain * (1 - old - new), gain * old]


def _sampler(sigma, time, correct, predict) -> Sampler:
  arrays = dict(sigma=sigma, time=time, correct=correct, predict=predict)
  return Sampler(**{name: np.asarray(value, np.float32) for name, value in arrays.items()})


Latents = Float[Array, "b s h w z"]


def sample(
  velocity: Callable[[Latents, Float[Array, " b"]], Latents],
  noise: Latents,
  sampler: Sampler,
  *,
  progress: Callable[[int, int], None] | None = None,
) -> Latents:
  """Clean latents from `noise`, float32.

  `velocity(latents, t)` is the model, with one time per example; the caller compiles it. `progress(done, steps)` is
  called after every step.
  """
  x = last = noise.astype(jnp.float32)
  predicted = (jnp.zeros_like(x), jnp.zeros_like(x))  # of one and of two steps before
  for step in range(len(sampler)):
    told = velocity(x, jnp.full(len(x), sampler.time[step], jnp.float32))
    weights = (sampler.sigma[step], sampler.correct[step], sampler.predict[step])
    last, x, predicted = _advance(x, last, predicted, told, *weights)
    if progress:
      progress(step + 1, len(sampler))
  return x


@jax.jit
def _advance(x, last, predicted, velocity, sigma, correct, predict):
  """(the corrected sample, the next sample, the last two predictions)."""
  clean = x - sigma * velocity.astype(jnp.float32)
  before, earlier = predicted
  x = _weighted(correct, (x, last, clean, before, earlier))
  return x, _weighted(predict, (x, clean, before)), (clean, before)


def _weighted(weights, arrays):
  return sum(weight * array for weight, array in zip(weights, arrays, strict=True))
