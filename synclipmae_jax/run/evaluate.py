"""The evaluation of pretraining on a finished checkpoint (configs/evaluate.py)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from synclipmae_jax import sharding
from synclipmae_jax.evaluation.pretrain import evaluators_of, tables
from synclipmae_jax.pretrained import SyncLipMAE
from synclipmae_jax.run import sources
from synclipmae_jax.run.clock import Clock
from synclipmae_jax.run.workdir import write_config
from synclipmae_jax.types import InputError


def run(config: ConfigDict, workdir: Path, *, overrides: Mapping[str, Any] | None = None) -> None:
  """Writes WORKDIR/eval.json, lag.png and factors.png, and prints the tables.

  Raises InputError, before anything is made, where no checkpoint is found or it does not fit this version.
  """
  clock, started = Clock(), time.perf_counter()
  with clock("loading"):
    model = SyncLipMAE.load(config.checkpoint)
  config.data.image_size = model.image_size
  data: Any = sources.open_clips(config, workdir, clock)  # a types.ClipData
  if not data.shown:
    raise InputError("there is no clip to evaluate on")
  write_config(config, workdir, dict(overrides or {}))
  mesh = sharding.make_mesh((("data", -1),))
  embedder = model.embedder
  evaluators = evaluators_of(embedder.model, data, mesh=mesh, workdir=workdir, **config.evaluation)
  params = jax.device_put(embedder.params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
  for evaluator in evaluators:
    with clock(evaluator.name):
      evaluator(params, params, step=0, final=True)
  if jax.process_index() == 0:
    print(f"\n{model.name}\n\n{tables(evaluators)}\n\n{clock.table(time.perf_counter() - started)}")
    print(f"Results: eval.json and pictures in {workdir}")
