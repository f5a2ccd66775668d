"""`tpu_vm.sh up`: waits for a slice, replaces a lost one, and follows the run until its end."""

import re
import shlex
import sys

import pytest
from stand_in_cloud import script

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the workers' part of the scripts needs Linux")


def test_up_calls_what_its_dry_run_prints(cloud):
  cloud.tell("queued-resources", "NONE ACTIVE")
  cloud.tell("main", "0")
  dry = cloud("up", "--spot", yes=False)
  result = cloud("up", "--spot")
  assert result.returncode == 0, result.stderr
  without_scratch = lambda words: [re.sub(r".*/(?=synclipmae.tar.gz)", "", word) for word in words]
  printed = [shlex.split(line)[1:] for line in dry.stdout.splitlines() if not line.startswith("#")]
  assert [*map(without_scratch, cloud.calls)][: len(printed)] == [*map(without_scratch, printed)]
  assert printed[-1][3] == "ssh" and any(word.endswith("worker.sh logs") for word in printed[-1])
  assert "the run is done" in result.stderr


def test_up_waits_until_the_slice_is_ready(cloud):
  cloud.tell("queued-resources", "NONE WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
  cloud.tell("tpu-vm", "CREATING READY")
  cloud.tell("main", "0")
  result = cloud("up")
  assert result.returncode == 0, result.stderr
  verbs = ["describe", "create", *["describe"] * 6]
  assert cloud.verbs[: len(verbs) + 2] == [*verbs, "ssh", "scp"]
  assert cloud.verbs.count("create") == 1 and "delete" not in cloud.verbs


@pytest.mark.parametrize(
  ("request_states", "slice_states"),
  [("SUSPENDED NONE ACTIVE", "READY"), ("FAILED NONE ACTIVE", "READY"), ("ACTIVE NONE ACTIVE", "PREEMPTED READY")],
)
def test_up_replaces_a_lost_slice(cloud, request_states, slice_states):
  cloud.tell("queued-resources", request_states)
  cloud.tell("tpu-vm", slice_states)
  cloud.tell("main", "0")
  result = cloud("up")
  assert result.returncode == 0, result.stderr
  assert [verb for verb in cloud.verbs if verb in ("create", "delete")] == ["delete", "create"]
  assert "--force" in next(call for call in cloud.calls if call[3] == "delete")


def test_up_starts_a_preempted_run_again_with_the_same_arguments(cloud):
  cloud.tell("main", "preempted 0")
  result = cloud("up")
  assert result.returncode == 0, result.stderr
  assert [verb for verb in cloud.verbs if verb in ("create", "delete")] == ["delete", "create"]
  first, second = cloud.runs(2)
  assert first == second
  assert f"--workdir={cloud.folder / 'gcs' / 'bucket' / 'runs' / 'x'}" in first


def test_up_does_not_repeat_a_request_that_fails(cloud):
  cloud.tell("queued-resources", "NONE WAITING_FOR_RESOURCES FAILED")
  result = cloud("up")
  assert result.returncode == 1 and "the request failed" in result.stderr
  assert cloud.verbs.count("create") == 1 and "delete" not in cloud.verbs


def test_up_does_not_touch_a_foreign_slice(cloud):
  cloud.tell("tpu-vm", "NONE")
  result = cloud("up")
  assert result.returncode == 1 and "use another --name" in result.stderr
  assert set(cloud.verbs) == {"describe"}


def test_up_ends_when_the_run_fails(cloud):
  cloud.tell("main", "2")
  result = cloud("up")
  assert result.returncode == 1 and "the run ended with exit status 2" in result.stderr
  assert len(cloud.runs()) == 1 and "delete" not in cloud.verbs
  assert "training" in result.stdout  # the log


def test_up_follows_an_active_run(cloud):
  cloud.started()
  calls = len(cloud.calls)
  cloud.tell("unreachable", "")  # no worker answers
  result = cloud("up")
  assert result.returncode == 1 and "no worker answers" in result.stderr
  (cloud.folder / "unreachable").unlink()
  script(cloud.folder / "worker_bin" / "tail", "#!/bin/sh\nkill $(cat $STAND_IN/workers/*/*/run.pid)\nsleep 0.3\n")
  result = cloud("up")
  assert result.returncode == 1 and "the run is active: following its log" in result.stderr
  assert not {"scp", "create", "delete"} & set(cloud.verbs[calls:])
  assert len(cloud.runs()) == 1


@pytest.mark.parametrize("broken", ["no_quota", "denied"])
def test_errors_of_gcloud_are_shown(cloud, broken):
  cloud.tell("no_quota", "")
  cloud.tell("queued-resources", "DENIED" if broken == "denied" else "NONE")
  result = cloud("up")
  assert result.returncode != 0 and ("you may not" if broken == "denied" else "no quota") in result.stderr
  assert "create" not in cloud.verbs or cloud.verbs == ["describe", "create"]
