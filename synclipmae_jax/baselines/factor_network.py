"""A small convolutional network that is told the true parameters of training pictures: how far labels lead.

It is the ceiling beside the factors of the tokens (`evaluation.factors`), which are learned without labels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from synclipmae_jax.baselines.bare_picture import shrink
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.layers import Linear
from synclipmae_jax.models.visual_encoder import normalise_pixels
from synclipmae_jax.types import Params

SIZE = 64  # pixels a side, at most
LAYERS = ((32, 4, 4), (64, 3, 2), (128, 3, 2))  # channels, kernel, stride
WIDTH = 128
BATCH = 96
PEAK_LR = 2e-3
BLOCK = 256  # pictures that are looked at at once


class FactorNetwork(nnx.Module):
  """Pictures [n, S, S, 3] in [0, 1] -> P parameters."""

  def __init__(self, *, size: int, parameters: int, rngs: nnx.Rngs):
    before = 3
    for i, (channels, kernel, stride) in enumerate(LAYERS):
      setattr(self, f"conv_{i}", nnx.Conv(before, channels, (kernel, kernel), strides=stride, rngs=rngs))
      before, size = channels, -(-size // stride)
    self.hidden = Linear(size * size * before, WIDTH, compute_dtype=jnp.float32, rngs=rngs)
    self.out = Linear(WIDTH, parameters, compute_dtype=jnp.float32, rngs=rngs)

  def __call__(self, pictures: Float[Array, "n s s 3"]) -> Float[Array, "n p"]:
    x = normalise_pixels(pictures)
    for i in range(len(LAYERS)):
      x = jax.nn.relu(getattr(self, f"conv_{i}")(x))
    return self.out(jax.nn.relu(self.hidden(x.reshape(len(x), -1))))


def fit_factor_network(
  frames: np.ndarray, truth: np.ndarray, *, steps: int, seed: int = 0
) -> Callable[[np.ndarray], np.ndarray]:
  """The function from frames uint8 [n, S, S, 3] to predicted parameters float32 [n, P].

  Trained on `frames` and `truth` [N, P] by squared error, each parameter in units of its deviation, with Adam in
  `steps` steps of BATCH pictures, drawn by `seed`.
  """
  frames, truth = _pictures(frames), np.asarray(truth, np.float32)
  mean, deviation = truth.mean(axis=0), truth.std(axis=0) + 1e-6
  targets = (truth - mean) / deviation
  network = Functional(
    lambda rngs: FactorNetwork(size=frames.shape[1], parameters=truth.shape[1], rngs=rngs)
  )
  optimizer = optax.adam(optax.cosine_decay_schedule(PEAK_LR, steps))

  @jax.jit
  def step(params: Params, state, pictures, wanted):
    loss = lambda params: jnp.square(network.bind(params)(pictures / 255.0) - wanted).mean()
    updates, state = optimizer.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, updates), state

  params = network.init(jax.random.key(seed))
  state, rng = optimizer.init(params), np.random.default_rng(seed)
  for _ in range(steps):
    drawn = rng.integers(len(frames), size=BATCH)
    params, state = step(params, state, frames[drawn], targets[drawn])
  apply = jax.jit(lambda pictures: network.bind(params)(pictures / 255.0))
  return functools.partial(_predict, apply, mean, deviation)


def _predict(apply: Callable, mean: np.ndarray, deviation: np.ndarray, frames: np.ndarray) -> np.ndarray:
  frames, found = _pictures(frames), []
  for start in range(0, len(frames), BLOCK):
    block = frames[start : start + BLOCK]
    padded = np.pad(block, [(0, BLOCK - len(block)), (0, 0), (0, 0), (0, 0)])
    found.append(np.asarray(apply(padded))[: len(block)])
  return np.concatenate(found) * deviation + mean


def _pictures(frames: np.ndarray) -> np.ndarray:
  """uint8 frames of at most SIZE pixels a side."""
  return frames if frames.shape[1] <= SIZE else (255 * shrink(frames, SIZE)).round().astype(np.uint8)
