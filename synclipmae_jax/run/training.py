"""A training run from a configuration: data, task, training, evaluation and the final report."""

from __future__ import annotations

import dataclasses
import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from synclipmae_jax import sharding
from synclipmae_jax.models.position import resize_position
from synclipmae_jax.run.clock import Clock
from synclipmae_jax.run.workdir import check_workdir, has_checkpoints, stamp, write_config
from synclipmae_jax.train import loop
from synclipmae_jax.train.initialisation import plan_item
from synclipmae_jax.train.optim import LAYERED, make_optimizer
from synclipmae_jax.train.step import check_batch
from synclipmae_jax.types import Evaluation, InputError, RunContext, Task, TrainingData

# Fields of `config.init` that are not items.
INIT_OPTIONS = ("require", "allow_random_frozen", "by_reference")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingJob:
  """A training job. Each part is a function `module:name`, imported when the job runs."""

  task: str  # (nested dicts of the configuration) -> Task
  evaluation: str  # (RunContext) -> Evaluation
  data: str = "synclipmae_jax.run.sources:open_clips"  # (ConfigDict, workdir, Clock) -> TrainingData
  next_commands: str | None = None  # (workdir) -> text printed at the end of a run

  def build_task(self, config: ConfigDict) -> Task:
    """The task of a configuration. Raises InputError for a configuration that is not valid."""
    if config.seed < 0:
      raise InputError(f"the seed must be 0 or more, not {config.seed}")
    try:
      return find(self.task)(config.to_dict())
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
      raise InputError(f"no model can be built from this configuration: {error}") from error

  def open_data(self, config: ConfigDict, workdir: Path, clock: Clock) -> TrainingData:
    """The data of a configuration. Raises InputError."""
    return find(self.data)(config, workdir, clock)

  def run(self, config: ConfigDict, workdir: Path, *, overrides: Mapping[str, Any] | None = None) -> loop.TrainResult:
    """Runs the job. User errors raise InputError before anything is written or compiled."""
    clock, started = Clock(), time.perf_counter()
    training = build_training(self, config)
    task, mesh = training.task, training.mesh
    items = initial_items(config, task, resuming=has_checkpoints(workdir))
    check_workdir(config, workdir)

    data = self.open_data(config, workdir, clock)
    stamped = stamp(config, data.preprocessing)
    write_config(config, workdir, dict(overrides or {}))
    evaluation: Evaluation = find(self.evaluation)(
      RunContext(config=config.to_dict(), task=task, data=data, mesh=mesh, workdir=workdir, stamp=stamped)
    )

    with clock("training"):
      result = loop.run(
        task,
        workdir=workdir,
        train_batches=lambda step: data.train_batches(
          step, host_index=jax.process_index(), host_count=jax.process_count()
        ),
        batch_size=training.batch_size,
        total_steps=config.train.steps,
        optimizer=training.optimizer,
        mesh=mesh,
        seed=config.seed,
        accumulation=training.accumulation,
        log_every=config.train.log_every,
        eval_every=config.train.eval_every,
        checkpoint_every=config.train.checkpoint_every,
        keep_last=config.train.keep_last,
        keep_best=config.train.keep_best,
        evaluators=[clock.timed("evaluation", evaluator) for evaluator in evaluation.evaluators],
        pictures=clock.timed("pictures", evaluation.pictures) if evaluation.pictures else None,
        pictures_every=config.train.pictures_every,
        initial_items=items,
        frozen_by_reference=config.get("init", {}).get("by_reference", ()),
        resize_position=resize_position,
        stamp=stamped,
        tensorboard=config.train.tensorboard,
        profile=config.train.get("profile"),
      )
    # Subtract evaluation and pictures, which the loop calls, from the time of the loop.
    clock.seconds["training"] -= sum(clock.seconds.get(part, 0.0) for part in ("evaluation", "pictures"))
    if result.stopped is None and jax.process_index() == 0:
      with clock("pictures"):
        conclusion = evaluation.conclude()
      print(f"\n{conclusion}\n\n{clock.table(time.perf_counter() - started)}")
      if self.next_commands:
        print(find(self.next_commands)(workdir))
    return result


def find(name: str) -> Callable[..., Any]:
  """The function `module:name`."""
  module, _, function = name.partition(":")
  return getattr(importlib.import_module(module), function)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """The parts of a train step."""

  task: Task
  mesh: Mesh
  optimizer: optax.GradientTransformation
  batch_size: int  # examples of all hosts
  accumulation: int  # micro-batches


def build_training(job: TrainingJob, config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Training:
  """Task, mesh over `devices` (default: all) and optimizer of a configuration. Raises InputError."""
  task = job.build_task(config)
  try:
    mesh = sharding.make_mesh(config.train.mesh, devices)
  except InputError as error:
    raise InputError(f"{error}; use for example --config.train.mesh=\"(('data', -1),)\"") from None
  batch = dict(batch_size=config.train.batch_clips, accumulation=config.train.accumulation)
  hosts = len({device.process_index for device in mesh.devices.flat})
  check_batch(task, mesh=mesh, processes=hosts, **batch)
  options = dict(config.optimizer)
  options["warmup_steps"] = min(options["warmup_steps"], config.train.steps)  # a run may be shorter than the warm-up
  if not config.get("init", {}).get(LAYERED):
    options.pop("layer_decay", None)  # early layers move less only where they were trained before
  optimizer = make_optimizer(**options, total_steps=config.train.steps)
  return Training(task=task, mesh=mesh, optimizer=optimizer, **batch)


def initial_items(config: ConfigDict, task: Task, *, resuming: bool) -> dict[str, str | None]:
  """Items that may start from a checkpoint -> its directory, or None if none is given.

  Raises InputError for a directory whose keys or shapes do not fit (not checked when `resuming`), and for a randomly
  initialised frozen encoder, unless `allow_random_frozen` is set.
  """
  if "init" not in config:
    return {}
  items = {name: config.init[name] or None for name in config.init if name not in INIT_OPTIONS}
  trainable, frozen = jax.eval_shape(task.init, jax.random.key(0))
  needed = set(config.init.require)
  if not config.init.allow_random_frozen:
    needed |= {name for name, params in frozen.items() if jax.tree.leaves(params)}
  for name in sorted(name for name in needed if not items.get(name)):
    why = "is frozen and would keep its random values" if name in frozen else "must start from donor weights"
    way_out = "--config.init.allow_random_frozen" if name in frozen else "--config.init.require='()'"
    raise InputError(
      f"the {name} {why}: give its converted checkpoint with --config.init.{name}=DIR, or pass {way_out}"
      f"{' and a shorter --config.init.require' if name in frozen and name in config.init.require else ''}"
    )
  for name, directory in items.items():
    if directory and not resuming:
      wanted = {**trainable, **frozen}
      try:  # the loop reads the files and compares them with their manifest
        plan_item(directory, name, wanted, frozen=name in frozen, resize_position=resize_position, verify=False)
      except InputError as error:
        raise InputError(f"--config.init.{name}={directory}: {error}") from None
  return items
