"""The profiler switch, on the toy task."""

import pathlib

import jax
import pytest
from toy_task import ToyTask, toy_batches

from synclipmae_jax import sharding
from synclipmae_jax.train.loop import run
from synclipmae_jax.train.optim import make_optimizer
from synclipmae_jax.train.profiling import StepProfiler
from synclipmae_jax.types import InputError


def train(workdir, **options):
  return run(
    ToyTask(),
    workdir=workdir,
    train_batches=toy_batches(8),
    batch_size=8,
    total_steps=5,
    optimizer=make_optimizer(peak_lr=1e-2, warmup_steps=2, total_steps=20),
    mesh=sharding.make_mesh({"fsdp": 1}, jax.devices()[:1]),
    **options,
  )


def traced_steps(folder: pathlib.Path) -> list[int]:
  """The steps that the trace holds, by their annotations."""
  (path,) = folder.rglob("*.xplane.pb")
  events = [
    event
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes
    for line in plane.lines
    for event in line.events
    if event.name == "train"
  ]
  return sorted({dict(event.stats)["step_num"] for event in events})


def test_only_the_named_steps_are_traced(tmp_path):
  train(tmp_path, profile=(2, 3))
  assert traced_steps(tmp_path / "profile") == [2, 3]


def test_off_by_default(tmp_path):
  train(tmp_path)
  assert not (tmp_path / "profile").exists()


def test_a_run_that_ends_within_the_steps_keeps_what_was_traced(tmp_path):
  train(tmp_path, profile=(4, 9))
  assert traced_steps(tmp_path / "profile") == [4, 5]


@pytest.mark.parametrize("steps", [(0, 3), (3, 2), (1,), (1, 2, 3), ("a", "b"), 5])
def test_what_is_no_pair_of_steps_is_refused(tmp_path, steps):
  with pytest.raises(InputError, match="train.profile"):
    StepProfiler(steps, tmp_path)
