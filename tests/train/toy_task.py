"""A task of a few hundred parameters with all features that the loop must support: stacked leaves, frozen parameters, a
key, a contrast over groups of clips, and a stream that is a pure function of the step."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from synclipmae_jax import sharding
from synclipmae_jax.types import Task

FEATURES, WIDTH, DEPTH, FRAMES = 12, 16, 2, 4
POISON = 2**31 - 1  # a clip of this stream index makes the loss NaN


@dataclasses.dataclass(frozen=True)
class ToyTask(Task):
  name: str = "toy"
  width: int = WIDTH
  group: int = 4
  examples_per_record: int = 2
  item: str = "frames"
  best_metric: str | None = None
  rules = ((r"kernel", P("fsdp")), (r".*", P()))

  def init(self, key):
    keys = jax.random.split(key, 3)
    trainable = {
      "encoder": {
        "blocks": {
          "kernel": jax.random.uniform(keys[0], (DEPTH, self.width, self.width), minval=-0.2, maxval=0.2),
          "bias": jnp.zeros((DEPTH, self.width)),
        },
        "prompt_tokens": jnp.zeros((3, self.width)),
      },
      "head": {"kernel": jax.random.uniform(keys[1], (self.width, FEATURES), minval=-0.2, maxval=0.2)},
      "contrast": {"log_temperature": jnp.log(jnp.asarray(0.07))},
    }
    projection = jax.random.uniform(keys[2], (FEATURES, self.width), minval=-1, maxval=1)
    return trainable, {"projection": {"kernel": projection}}

  def loss(self, trainable, frozen, batch, key):
    noise = jax.vmap(lambda index: jax.random.uniform(jax.random.fold_in(key, index), (FEATURES,)))(batch["index"])
    x = batch["frames"].reshape(*batch["frames"].shape[:2], -1).astype(jnp.float32).mean(1) / 255.0
    x = sharding.constrain(x)  # as in every block of a real model
    h = (x + 0.1 * noise) @ frozen["projection"]["kernel"]
    for i in range(DEPTH):
      h = jnp.tanh(h @ trainable["encoder"]["blocks"]["kernel"][i] + trainable["encoder"]["blocks"]["bias"][i])
    h = h + trainable["encoder"]["prompt_tokens"].mean(0)
    reconstruction = jnp.mean((h @ trainable["head"]["kernel"] - x) ** 2)
    groups = h.reshape(-1, self.group, self.width)
    logits = jnp.einsum("gid,gjd->gij", groups, groups) / jnp.exp(trainable["contrast"]["log_temperature"])
    contrast = -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits), axis1=1, axis2=2))
    loss = reconstruction + 0.1 * contrast
    loss = jnp.where(jnp.any(batch["index"] == POISON), jnp.nan, loss)
    return loss, {"reconstruction": reconstruction, "contrast": contrast}

  def constrain_params(self, trainable):
    clamped = jnp.clip(trainable["contrast"]["log_temperature"], jnp.log(0.01), jnp.log(0.5))
    return {**trainable, "contrast": {"log_temperature": clamped}}

  def abstract_batches(self, batch_size):
    shapes = {"frames": (FRAMES, 2, 2, 3), "index": ()}
    dtypes = {"frames": jnp.uint8, "index": jnp.uint32}
    return [{name: jax.ShapeDtypeStruct((batch_size, *shape), dtypes[name]) for name, shape in shapes.items()}]

  def count_items(self, batch):
    return batch["frames"].shape[0] * batch["frames"].shape[1]

  def model_flops(self, batch):
    return 6.0 * batch["index"].shape[0] * (FEATURES * self.width * 2 + DEPTH * self.width**2)


def toy_batches(batch_size, *, opened=None, poisoned=None):
  """Stream factory; `opened` records the steps at which it was opened. Batch number `poisoned` (from 0) is poisoned."""

  def stream(first_step):
    if opened is not None:
      opened.append(first_step)
    step = first_step
    while True:
      index = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.uint32)
      index[0] = POISON if step == poisoned else index[0]
      rng = np.random.default_rng(step)
      yield {"frames": rng.integers(0, 256, (batch_size, FRAMES, 2, 2, 3), np.uint8), "index": index}
      step += 1

  return stream
