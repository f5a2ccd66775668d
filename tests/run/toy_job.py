"""An example of a new job: a configuration, a task, an evaluation and its own data. The test adds its entry."""

from __future__ import annotations

import dataclasses

import numpy as np
from features_task import FEATURES, FeaturesTask, feature_batches
from ml_collections import ConfigDict

from synclipmae_jax.evaluation.report import write_entries
from synclipmae_jax.types import Evaluation


def get_config() -> ConfigDict:
  config = ConfigDict(dict(task="features", seed=0))
  config.data = ConfigDict(dict(fps=25))
  config.model = ConfigDict(dict(width=FEATURES))
  config.optimizer = ConfigDict(dict(peak_lr=1e-2, warmup_steps=1))
  config.init = ConfigDict(dict(table=None, require=(), allow_random_frozen=True, by_reference=()))
  config.train = ConfigDict(
    dict(
      steps=3, batch_clips=8, accumulation=1, mesh=(("data", -1),), log_every=1, eval_every=2, pictures_every=0,
      checkpoint_every=2, keep_last=1, keep_best=1, tensorboard=False,
    )
  )  # fmt: skip
  return config


def from_config(config) -> FeaturesTask:
  if config["model"]["width"] != FEATURES:
    raise ValueError(f"the width must be {FEATURES}")
  return FeaturesTask()


@dataclasses.dataclass(frozen=True)
class Features:
  config: ConfigDict
  preprocessing = {"kind": "features"}

  def train_batches(self, step, *, host_index, host_count):
    return feature_batches(self.config.train.batch_clips)(step)


def open_data(config, workdir, clock) -> Features:
  with clock("features"):
    return Features(config)


class Probe:
  name = "probe"

  def __init__(self, context):
    self._context = context

  def __call__(self, trainable, frozen, *, step, final):
    accuracy = 1 / (1 + float(np.abs(trainable["head"]["bias"]).sum()))
    write_entries(self._context.workdir, {"probe": {"accuracy": accuracy}})
    return {"accuracy": accuracy}


def build(context) -> Evaluation:
  return Evaluation(evaluators=[Probe(context)], conclude=lambda: "| a table of its own |")
