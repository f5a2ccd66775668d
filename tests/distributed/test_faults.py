"""Processes that are killed, signalled, disconnected or out of disk space: no checkpoint is lost or changed."""

from __future__ import annotations

import contextlib
import json
import pathlib
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
from toy_run import run_toy, train

from synclipmae_jax import checkpoints

GONE = {134, -signal.SIGABRT}  # this program's status, or JAX's abort, which a shell reports as the same


def losses(workdir: pathlib.Path) -> dict[int, float]:
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {line["step"]: line["loss"] for line in lines}


def saved_steps(workdir: pathlib.Path) -> list[int]:
  there = workdir / "checkpoints"
  return sorted(int(path.name) for path in there.iterdir() if path.name.isdecimal()) if there.exists() else []


def whole_step(workdir: pathlib.Path) -> int:
  """The newest step, whose files must agree with the manifest; 0 if no step was saved."""
  if not saved_steps(workdir):
    return 0
  complaints: list[str] = []
  step = int(checkpoints.resolve_step(workdir, say=complaints.append).name)
  assert not complaints
  return step


def items(workdir: pathlib.Path) -> dict:
  return {name: checkpoints.load_item(workdir, name) for name in checkpoints.list_items(workdir)}


def equal(tree, other) -> None:
  jax.tree.map(np.testing.assert_array_equal, tree, other)


# Times of a kill, by the state of the workdir.


def at_random(rng):
  began, delay = time.monotonic(), rng.uniform(0, 0.4)
  return lambda workdir, before: len(saved_steps(workdir)) and time.monotonic() - began > delay


def in_a_save(rng):
  files = rng.integers(0, 12)  # of a step during its save
  return lambda workdir, before: any(
    len(list(folder.rglob("*"))) > files for folder in (workdir / "checkpoints").glob("*.saving*")
  )


def right_after_a_save(rng):
  return lambda workdir, before: saved_steps(workdir)[-1:] > before[-1:]


def kill_and_resume(tmp_path, kills: int, moments) -> int:
  """Number of kills during a save."""
  rng, workdir, torn, total = np.random.default_rng(0), tmp_path / "killed", 0, 10_000
  for number in range(kills):
    before = saved_steps(workdir)
    with run_toy(workdir, total=total, pause=0.005) as (child,):
      child.wait_for(lambda child=child: "first step" in child.said)
      ready = moments[number % len(moments)](rng)
      with contextlib.suppress(FileNotFoundError):  # renamed during the check: also a valid moment
        child.wait_for(lambda ready=ready, before=before: ready(workdir, before))
      safe = saved_steps(workdir)
      child.kill()
      assert child.wait() == -signal.SIGKILL, child.said
    assert "damaged" not in child.said
    torn += any(".saving" in path.name for path in (workdir / "checkpoints").iterdir())
    assert whole_step(workdir) >= max(safe, default=0), "a checkpoint was lost"
  total = whole_step(workdir) + 3
  with run_toy(workdir, total=total) as children:
    assert children.wait() == [0] and "damaged" not in children[0].said, children[0].said
  train(tmp_path / "whole", total=total, every=total)
  equal(items(workdir), items(tmp_path / "whole"))
  assert losses(workdir) == losses(tmp_path / "whole")
  return torn


def test_killed_three_times_it_resumes_bit_for_bit(tmp_path):
  assert kill_and_resume(tmp_path, 3, [in_a_save, at_random, right_after_a_save]) >= 1


@pytest.mark.slow
def test_killed_sixteen_times_it_resumes_bit_for_bit(tmp_path):
  assert kill_and_resume(tmp_path, 16, [in_a_save, at_random, in_a_save, right_after_a_save]) >= 5


@pytest.mark.slow
def test_a_full_disk_ends_the_run_without_loss_of_a_checkpoint(tmp_path):
  """Real write failures: from the fourth batch on, a file size limit is active."""
  with run_toy(tmp_path / "w", total=10, every=3, log_every=100, file_limit=(0, 3, 300)) as children:
    assert children.wait() == [2], children[0].said
  *_, last = children[0].said.splitlines()
  assert "checkpoint 6 could not be written to" in last and "File too large" in last
  assert "the last complete one is step 3" in last
  assert whole_step(tmp_path / "w") == 3
  with run_toy(tmp_path / "w", total=10, every=3, log_every=100) as children:
    assert children.wait() == [0], children[0].said
  train(tmp_path / "whole", total=10, every=10)
  equal(items(tmp_path / "w"), items(tmp_path / "whole"))


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 512 kB."""
  folder = tmp_path / "disk"
  folder.mkdir()
  try:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", folder], check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError):
    pytest.skip("only root may mount a file system")
  yield folder
  subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_file_system_ends_the_run_without_loss_of_a_checkpoint(tmp_path, small_disk):
  with run_toy(small_disk / "w", total=100_000, log_every=10**6, pause=0.05) as (child,):
    child.wait_for(lambda: len(saved_steps(small_disk / "w")) == 2)
    with contextlib.suppress(OSError), (small_disk / "others_data").open("wb", buffering=0) as file:
      while True:
        file.write(bytes(4096))
    assert child.wait() == 2, child.said
  said = [line for line in child.said.splitlines() if line.startswith("synclipmae_jax.main: ")]
  assert len(said) == 1 and "No space left on device" in said[0], child.said
  assert "could not be written to" in said[0] and "the last complete one is step" in said[0], child.said
  step = whole_step(small_disk / "w")
  (small_disk / "others_data").unlink()
  with run_toy(small_disk / "w", total=step + 2, log_every=10**6) as children:
    assert children.wait() == [0], children[0].said
  train(tmp_path / "whole", total=step + 2, every=step + 2)
  equal(items(small_disk / "w"), items(tmp_path / "whole"))


@pytest.mark.parametrize("dying", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_when_one_process_dies_the_other_ends(tmp_path, dying):
  with run_toy(tmp_path / "w", 2, total=10**6, every=5, pause=0.01) as children:
    children[0].wait_for(lambda: len(saved_steps(tmp_path / "w")))
    children[dying].kill()
    assert children[1 - dying].wait(60) in GONE, children[1 - dying].said
  said = children[1 - dying].said
  assert "another process of this job is lost" in said or "another task died" in said
  assert whole_step(tmp_path / "w") >= 5


@pytest.mark.parametrize("dying", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_waiting_process_detects_a_lost_one_within_the_heartbeat_time(tmp_path, dying):
  """As on a pod, a dead process sends nothing. The other process is not in a shared computation."""
  stall = (1 - dying, 3)
  with run_toy(tmp_path / "w", 2, total=10**6, stall=stall, heartbeat=10) as children:
    children[1 - dying].wait_for(lambda: "stalled" in children[1 - dying].said)
    children[dying].kill()
    assert children[1 - dying].wait(60) in GONE, children[1 - dying].said
  assert "another task died" in children[1 - dying].said


@pytest.mark.parametrize("failing", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_save_that_fails_on_one_process_ends_both_with_the_same_message(tmp_path, failing):
  options = dict(total=10, every=3, log_every=100, file_limit=(failing, 3, 300))
  with run_toy(tmp_path / "w", 2, **options) as children:
    assert children.wait() == [2, 2], children.said
  for child in children:
    *_, last = child.said.strip().splitlines()
    assert "checkpoint 6 could not be written" in last and "the last complete one is step 3" in last
    assert "File too large" in last
  assert whole_step(tmp_path / "w") == 3
