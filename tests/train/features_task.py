"""A task unlike contrastive pretraining: features in, labels out, two length buckets, a frozen part."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from synclipmae_jax.types import Task

FEATURES, LABELS = 6, 3
BUCKETS = (4, 8)  # frames


@dataclasses.dataclass(frozen=True)
class FeaturesTask(Task):
  """A linear probe on the mean of embedded frames; `lengths` is the number of valid frames of each row."""

  name: str = "features"
  item: str = "labels"
  best_metric: str | None = "probe/accuracy"
  rules = ((r".*", P()),)

  def init(self, key):
    head, table = jax.random.split(key)
    trainable = {"head": {"kernel": jax.random.normal(head, (FEATURES, LABELS)), "bias": jnp.zeros(LABELS)}}
    return trainable, {"table": {"kernel": jax.random.normal(table, (FEATURES, FEATURES))}}

  def loss(self, trainable, frozen, batch, key):
    embedded = jnp.tanh(batch["features"] @ frozen["table"]["kernel"])
    real = jnp.arange(embedded.shape[1]) < batch["lengths"][:, None]
    mean = (embedded * real[..., None]).sum(1) / batch["lengths"][:, None]
    logits = mean @ trainable["head"]["kernel"] + trainable["head"]["bias"]
    loss = -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), batch["labels"][:, None], axis=1))
    return loss, {"accuracy": jnp.mean(logits.argmax(-1) == batch["labels"])}

  def abstract_batches(self, batch_size):
    return [
      {
        "features": jax.ShapeDtypeStruct((batch_size, frames, FEATURES), jnp.float32),
        "lengths": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        "labels": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        "index": jax.ShapeDtypeStruct((batch_size,), jnp.uint32),
      }
      for frames in BUCKETS
    ]

  def model_flops(self, batch):
    examples, frames, _ = batch["features"].shape
    return 2.0 * examples * frames * FEATURES**2 + 6.0 * examples * FEATURES * LABELS


def feature_batches(batch_size):
  """Stream factory; the bucket of a batch is a pure function of its step."""

  def stream(first_step):
    step = first_step
    while True:
      rng, frames = np.random.default_rng(step), BUCKETS[step % 2]
      yield {
        "features": rng.normal(size=(batch_size, frames, FEATURES)).astype(np.float32),
        "lengths": rng.integers(1, frames + 1, batch_size).astype(np.int32),
        "labels": rng.integers(0, LABELS, batch_size).astype(np.int32),
        "index": np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.uint32),
      }
      step += 1

  return stream
