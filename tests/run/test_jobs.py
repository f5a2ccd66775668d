"""The table of jobs, and a job added by one entry."""

from __future__ import annotations

import json

import jax
import pytest
import toy_job

from synclipmae_jax import checkpoints
from synclipmae_jax.run import ahead_of_time, jobs
from synclipmae_jax.run.training import TrainingJob, build_training
from synclipmae_jax.types import InputError


@pytest.fixture
def entry(monkeypatch):
  job = TrainingJob(task="toy_job:from_config", evaluation="toy_job:build", data="toy_job:open_data")
  monkeypatch.setitem(jobs.JOBS, "features", job)
  return job


def test_a_job_is_a_config_a_task_an_evaluation_and_one_entry(entry, tmp_path, capsys):
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "eval.json").write_text('{"acc": {"k1": 0.5}}')  # from another evaluator
  config = toy_job.get_config()
  assert jobs.run(config, tmp_path / "run", overrides={"train.steps": 3}) is None
  out = capsys.readouterr().out
  assert "| a table of its own |" in out and "features 0 s" in out and "labels/s" in out
  report = json.loads((tmp_path / "run" / "eval.json").read_text())
  assert report.keys() == {"acc", "probe"}
  meta = checkpoints.load_meta(tmp_path / "run")
  assert (meta["task"], meta["preprocessing"]) == ("features", {"kind": "features", "fps": 25, "sample_rate": 16_000})
  assert meta["metrics"]["probe/accuracy"] == report["probe"]["accuracy"]
  assert json.loads((tmp_path / "run" / "config.json").read_text())["overrides"] == {"train.steps": 3}
  assert checkpoints.list_items(tmp_path / "run") == ["head", "opt_state", "table"]

  config.model.width = 7
  with pytest.raises(InputError, match="no model can be built from this configuration: the width must be 6"):
    jobs.run(config, tmp_path / "other")
  assert not (tmp_path / "other").exists()


def test_it_is_compiled_ahead_of_time_like_any_job(entry):
  config = toy_job.get_config()
  steps = ahead_of_time.lower_steps(build_training(entry, config, jax.devices()))
  assert len(steps) == 2 and all(step.compile() for _, step in steps)
  assert ahead_of_time.batch_unit(config, jax.devices()) == 8


def test_its_random_frozen_part_is_refused_by_name(entry, tmp_path):
  config = toy_job.get_config()
  config.init.allow_random_frozen = False
  with pytest.raises(InputError, match="the table is frozen and .*--config.init.table=DIR"):
    jobs.run(config, tmp_path)


def test_an_unknown_job_lists_the_known_jobs():
  config = toy_job.get_config()
  known = ", ".join(jobs.JOBS)
  with pytest.raises(InputError, match=f"unknown task 'features': the jobs are {known}"):
    jobs.job_of(config)


@pytest.mark.parametrize("name", [name for name, job in jobs.JOBS.items() if isinstance(job, TrainingJob)])
def test_every_part_of_an_entry_exists(name):
  job = jobs.JOBS[name]
  for part in (job.task, job.evaluation, job.data, job.next_commands):
    assert part is None or callable(jobs.find(part))
