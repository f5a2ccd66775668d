"""The table of jobs by `config.task`. A new job needs a config, a task, an evaluation and one entry here."""

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
  """A job without training: one function (config, workdir, overrides=)."""

  function: str  # `module:name`

  def run(self, config: ConfigDict, workdir: Path, *, overrides: Mapping[str, Any] | None = None) -> Any:
    """Runs the job. Raises InputError."""
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
  "videomae": TrainingJob(
    task="synclipmae_jax.tasks.videomae:from_config",
    evaluation="synclipmae_jax.evaluation.videomae:build",
  ),
  "vsr": TrainingJob(
    task="synclipmae_jax.tasks.vsr:from_config",
    evaluation="synclipmae_jax.evaluation.vsr:build",
    data="synclipmae_jax.run.recognition:open_recognition",
  ),
  "dub": TrainingJob(
    task="synclipmae_jax.tasks.dub:from_config",
    evaluation="synclipmae_jax.evaluation.dub:build",
    data="synclipmae_jax.run.dubbing:open_dubbing",
  ),
  "dub_scores": MeasuringJob(function="synclipmae_jax.run.dub_scores:run"),
  "sync": MeasuringJob(function="synclipmae_jax.run.sync_protocol:run"),
  "real_faces": MeasuringJob(function="synclipmae_jax.run.real_faces:run"),
  "factors": MeasuringJob(function="synclipmae_jax.run.factor_report:run"),
  "evaluate": MeasuringJob(function="synclipmae_jax.run.evaluate:run"),
  "probe": MeasuringJob(function="synclipmae_jax.run.probe:run"),
}


def job_of(config: ConfigDict) -> TrainingJob | MeasuringJob:
  """The job of a configuration. Raises InputError for an unknown task."""
  if config.task not in JOBS:
    raise InputError(f"unknown task {config.task!r}: the jobs are {', '.join(JOBS)}")
  return JOBS[config.task]


def training_job_of(config: ConfigDict) -> TrainingJob:
  """The training job of a configuration. Raises InputError if the job does not train."""
  job = job_of(config)
  if not isinstance(job, TrainingJob):
    raise InputError(f"the job {config.task!r} does not train")
  return job


def run(config: ConfigDict, workdir: Path, *, overrides: Mapping[str, Any] | None = None) -> str | None:
  """Runs the job of a configuration. Returns the signal that stopped it, or None. Raises InputError."""
  return getattr(job_of(config).run(config, workdir, overrides=overrides), "stopped", None)
