"""The table of jobs: `config.task` -> what runs. A new job is a config, a task, an evaluation and one entry here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from synclipmae_jax.run.training import TrainingJob, find
from synclipmae_jax.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuringJob:
  """A job that trains nothing: one function (config, workdir, overrides=)."""

  function: str  # `module:name`

  def run(self, config: ConfigDict, workdir: Path, *, overrides: Mapping[str, Any] | None = None) -> Any:
    """The whole job. Raises InputError."""
    return find(self.function)(config, workdir, overrides=overrides)


JOBS: dict[str, TrainingJob | MeasuringJob] = {
  "pretrain": TrainingJob(
    task="synclipmae_jax.tasks.pretrain:from_config",
    evaluation="synclipmae_jax.evaluation.pretrain:build",
    next_commands="synclipmae_jax.run.next_commands:after_pretraining",
  ),
  "syncnet": TrainingJob(
    task="synclipmae_jax.tasks.syncnet:from_config",
    evaluation="synclipmae_jax.evaluation.syncnet:build",
    next_commands="synclipmae_jax.run.next_commands:after_syncnet",
  ),
  "sync": MeasuringJob(function="synclipmae_jax.run.sync_protocol:run"),
}


def job_of(config: ConfigDict) -> TrainingJob | MeasuringJob:
  """The job of a configuration. Raises InputError for a task that does not exist."""
  if config.task not in JOBS:
    raise InputError(f"unknown task {config.task!r}: the jobs are {', '.join(JOBS)}")
  return JOBS[config.task]


def training_job_of(config: ConfigDict) -> TrainingJob:
  """The same, of a job that trains. Raises InputError for one that does not."""
  job = job_of(config)
  if not isinstance(job, TrainingJob):
    raise InputError(f"the job {config.task!r} trains nothing")
  return job


def run(config: ConfigDict, workdir: Path, *, overrides: Mapping[str, Any] | None = None) -> str | None:
  """Runs the job of a configuration; the signal that stopped it, None at its end. Raises InputError."""
  return getattr(job_of(config).run(config, workdir, overrides=overrides), "stopped", None)
