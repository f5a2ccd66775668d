"""A small convolutional network that is told the true parameters of training pictures: how far their labels lead.

It is the ceiling beside the factors of the tokens (`evaluation.factors`), which are learned without labels. With few
people it is a low one. On 240 SynthTalk clips of 120 people, 1,200 steps reach a mean R² of .52 at the mouth and 2,000
steps .60.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Key

from synclipmae_jax.baselines.bare_picture import shrink
from synclipmae_jax.metrics.factors import PER_CLIP
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.layers import Linear
from synclipmae_jax.models.visual_encoder import normalise_pixels
from synclipmae_jax.types import Params

SIZE = 64  # pixels a side, at most
CHANNELS = (16, 32, 64, 128)  # each layer halves the sides of the map
WIDTH = 128
BATCH = 64
PEAK_LR, WARMUP, WEIGHT_DECAY = 2e-3, 50, 0.1
MOVED = 4  # pixels, at most, by which a picture is moved in training
# Of a person's own parameters, which are soon known by heart: with 1 the mouth loses a third of its R².
PERSON_WEIGHT = 0.1
BLOCK = 256  # pictures that are looked at at once


class FactorNetwork(nnx.Module):
  """Pictures [n, S, S, 3] in [0, 1] -> P parameters."""

  def __init__(self, *, size: int, parameters: int, rngs: nnx.Rngs):
    before = 3
    for i, channels in enumerate(CHANNELS):
      setattr(self, f"conv_{i}", nnx.Conv(before, channels, (3, 3), strides=2, rngs=rngs))
      before, size = channels, -(-size // 2)
    self.hidden = Linear(size * size * before, WIDTH, compute_dtype=jnp.float32, rngs=rngs)
    self.out = Linear(WIDTH, parameters, compute_dtype=jnp.float32, rngs=rngs)

  def __call__(self, pictures: Float[Array, "n s s 3"]) -> Float[Array, "n p"]:
    x = normalise_pixels(pictures)
    for i in range(len(CHANNELS)):
      x = jax.nn.relu(getattr(self, f"conv_{i}")(x))
    return self.out(jax.nn.relu(self.hidden(x.reshape(len(x), -1))))


def fit_factor_network(
  frames: np.ndarray, truth: np.ndarray, names: Sequence[str], *, steps: int, seed: int = 0
) -> Callable[[np.ndarray], np.ndarray]:
  """The function from frames uint8 [n, S, S, 3] to predicted parameters float32 [n, P].

  Trained on `frames` and `truth` [N, P] by squared error, each of the parameters `names` in units of its deviation,
  with AdamW in `steps` steps of BATCH pictures, drawn, moved and coloured by `seed`.
  """
  frames, truth = _pictures(frames), np.asarray(truth, np.float32)
  mean, deviation = truth.mean(axis=0), truth.std(axis=0) + 1e-6
  targets = (truth - mean) / deviation
  weights = np.array([PERSON_WEIGHT if name.startswith(PER_CLIP) else 1.0 for name in names], np.float32)
  network = Functional(lambda rngs: FactorNetwork(size=frames.shape[1], parameters=len(names), rngs=rngs))
  schedule = optax.warmup_cosine_decay_schedule(0.0, PEAK_LR, min(WARMUP, steps - 1), steps)
  optimizer = optax.adamw(schedule, weight_decay=WEIGHT_DECAY)

  @jax.jit
  def step(params: Params, state, pictures, wanted, key):
    pictures = _augmented(pictures / 255.0, key)
    loss = lambda params: (weights * jnp.square(network.bind(params)(pictures) - wanted)).mean()
    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  params = network.init(jax.random.key(seed))
  state, rng = optimizer.init(params), np.random.default_rng(seed)
  for number in range(steps):
    drawn = rng.integers(len(frames), size=BATCH)
    params, state = step(params, state, frames[drawn], targets[drawn], jax.random.fold_in(jax.random.key(seed), number))
  apply = jax.jit(lambda pictures: network.bind(params)(pictures / 255.0))
  return functools.partial(_predict, apply, mean, deviation)


def _augmented(pictures: Float[Array, "n s s 3"], key: Key[Array, ""]) -> Float[Array, "n s s 3"]:
  """Pictures in [0, 1], each moved by up to MOVED pixels and coloured otherwise."""
  count, size = pictures.shape[:2]
  where, gain, light = jax.random.split(key, 3)
  padded = jnp.pad(pictures, ((0, 0), (MOVED, MOVED), (MOVED, MOVED), (0, 0)), mode="edge")
  corners = jax.random.randint(where, (count, 2), 0, 2 * MOVED + 1)
  cut = lambda picture, corner: jax.lax.dynamic_slice(picture, (corner[0], corner[1], 0), (size, size, 3))
  gains = 1 + 0.15 * jax.random.normal(gain, (count, 1, 1, 3))
  return jnp.clip(jax.vmap(cut)(padded, corners) * gains + 0.1 * jax.random.normal(light, (count, 1, 1, 1)), 0, 1)


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
