"""The commands of `tpu_vm.sh` with a stand-in gcloud: create, install, start, stop, status, logs and delete."""

import os
import re
import signal
import subprocess
import sys
import tarfile
import time

import pytest
from stand_in_cloud import ARGUMENTS, ROOT, script

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the workers' part of the scripts needs Linux")


@pytest.mark.parametrize(
  ("accelerator", "runtime"),
  [
    ("v5p-256", "v2-alpha-tpuv5"),
    ("v5litepod-256", "v2-alpha-tpuv5-lite"),
    ("v6e-256", "v2-alpha-tpuv6e"),
    ("v4-256", "tpu-ubuntu2204-base"),
  ],
)
def test_create_requests_a_slice(cloud, accelerator, runtime):
  cloud.tell("queued-resources", "NONE")
  assert cloud("create", f"--accelerator={accelerator}", "--spot", "--create-option=--reserved").returncode == 0
  assert cloud.verbs == ["describe", "create"]
  wanted = {"synclipmae", "--node-id=synclipmae", "--spot", "--reserved"}
  wanted |= {f"--accelerator-type={accelerator}", f"--runtime-version={runtime}"}
  assert wanted <= set(cloud.calls[1])


def test_create_keeps_an_existing_slice(cloud):
  cloud.tell("queued-resources", "WAITING_FOR_RESOURCES")
  result = cloud("create")
  assert result.returncode == 0 and "already exists: WAITING_FOR_RESOURCES" in result.stderr
  assert cloud.verbs == ["describe"]


def test_install_copies_the_working_tree_and_installs_the_pinned_jax(cloud):
  (cloud.checkout / ".gitignore").write_text("runs/\n")
  (cloud.checkout / "runs").mkdir()
  for name in ("runs/large", "new file", "gone"):
    (cloud.checkout / name).touch()
  subprocess.run(["git", "add", "gone"], cwd=cloud.checkout, check=True)
  (cloud.checkout / "gone").unlink()
  result = cloud("install")
  assert result.returncode == 0, result.stderr
  pinned = re.search(r"^jax==(\S+)", (ROOT / "requirements.txt").read_text(), re.M).group(1)
  for worker in (0, 1):
    home = cloud.folder / "workers" / f"worker{worker}"
    with tarfile.open(home / "synclipmae.tar.gz") as archive:
      names = archive.getnames()
    assert {"launch/worker.sh", "new file", "configs/pretrain.py"} <= set(names)
    assert not [name for name in names if name.startswith(("runs", "gone", ".git/"))]
    assert (home / "synclipmae" / "src" / "new file").exists()
    assert cloud.on_worker("uv", worker)[-1][-2:] == [str(home / "synclipmae" / "src"), f"jax[tpu]=={pinned}"]


def test_install_checks_out_a_revision(cloud):
  git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", cloud.checkout]
  subprocess.run([*git, "add", "."], check=True)
  subprocess.run([*git, "commit", "--quiet", "--message=one"], check=True)
  revision = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
  (cloud.checkout / "requirements.txt").write_text("jax==9.9\n")
  subprocess.run([*git, "commit", "--quiet", "--all", "--message=two"], check=True)
  result = cloud("install", f"--git={cloud.checkout}", f"--revision={revision}")
  assert result.returncode == 0, result.stderr
  assert "scp" not in cloud.verbs and "jax[tpu]==9.9" not in cloud.on_worker("uv")[-1]
  result = cloud("install", f"--git={cloud.checkout}", "--revision=nonsense")
  assert result.returncode != 0 and len(cloud.on_worker("uv")) == 2  # stopped before the environment


def test_arguments_arrive_unchanged(cloud):
  assert cloud("install").returncode == 0
  result = cloud("start", "--config=configs/pretrain.py:paper,A1", "--bucket=gs://data", after=ARGUMENTS)
  assert result.returncode == 0, result.stderr
  for worker in (0, 1):
    ((folder, platforms, *arguments),) = cloud.runs(worker=worker)
    workdir = f"--workdir={cloud.folder / 'gcs' / 'bucket' / 'runs' / 'x'}"
    first = ["-u", "-m", "synclipmae_jax.main", "--distributed", "--config=configs/pretrain.py:paper,A1", workdir]
    assert arguments == [*first, *ARGUMENTS]
    home = cloud.folder / "workers" / f"worker{worker}"
    assert folder == str(home / "synclipmae" / "src") and platforms == "tpu,cpu"
    mounted = [line.split()[-2:] for line in (home / "mounted").read_text().splitlines()]
    assert mounted == [[name, str(cloud.folder / "gcs" / name)] for name in ("bucket", "data")]


def test_a_second_start_is_refused_and_stop_saves(cloud):
  cloud.started()
  for command in ("start", "install"):
    refused = cloud(command)
    assert refused.returncode == 1 and "a run is active on synclipmae: stop it first" in refused.stderr
  assert len(cloud.runs()) == 1
  alive = cloud("status").stdout
  assert re.findall(r"^worker\d running \d+$", alive, re.M) and "synclipmae: ACTIVE, slice: READY" in alive

  stopped = cloud("stop")
  assert stopped.returncode == 0, stopped.stderr
  assert sorted(stopped.stdout.splitlines()) == ["worker0 ended 143", "worker1 ended 143"]
  assert "saved" in cloud("logs").stdout and "exit status 143" in cloud("logs", "--worker=1").stdout
  assert cloud("start").returncode == 0 and len(cloud.runs(2)) == 2


def test_a_run_continues_without_its_connection_and_blocks_a_second_start(cloud):
  cloud.started()
  home = cloud.folder / "workers" / "worker0"
  number = int((home / "synclipmae" / "run.pid").read_text())
  assert os.getsid(number) != os.getsid(0) and os.readlink(f"/proc/{number}/fd/0") == "/dev/null"
  again = subprocess.run(
    ["bash", home / "synclipmae" / "src" / "launch" / "worker.sh", "start"],
    env={**os.environ, "HOSTNAME": "worker0"},
    capture_output=True,
    text=True,
  )
  assert again.returncode == 1 and f"worker0: a run is active ({number})" in again.stderr
  # A pid file without a process or supervisor does not count as a run.
  os.killpg(os.getpgid(number), signal.SIGKILL)
  time.sleep(0.1)
  states = cloud("status").stdout
  assert "worker0 ended 137" in states and "worker1 running" in states


def test_stop_has_a_time_limit(cloud):
  cloud.tell("main", "deaf")
  cloud.started()
  result = cloud("stop", "--stop-seconds=1")
  assert result.returncode == 1 and "worker0: still active after 1 s" in result.stderr
  result = cloud("stop", "--stop-seconds=0", "--force")
  assert result.returncode == 0, result.stderr
  assert sorted(result.stdout.splitlines()) == ["worker0 ended 137", "worker1 ended 137"]


def test_start_and_logs_need_install(cloud):
  for command in ("start", "logs"):
    result = cloud(command)
    assert result.returncode != 0 and "worker0 idle: install first" in result.stdout


def test_a_bucket_that_cannot_rename_folders_is_refused(cloud):
  assert cloud("install").returncode == 0
  script(cloud.folder / "worker_bin" / "mv", "#!/bin/sh\nexit 1\n")
  result = cloud("start")
  assert result.returncode == 1 and "needs a bucket with a hierarchical namespace" in result.stderr
  assert not cloud.on_worker("runs")


def test_a_bucket_that_cannot_be_mounted_starts_nothing(cloud):
  assert cloud("install").returncode == 0
  script(cloud.folder / "worker_bin" / "gcsfuse", "#!/bin/sh\nexit 1\n")
  result = cloud("start")
  assert result.returncode == 1 and "gs://bucket cannot be mounted" in result.stderr
  assert not cloud.on_worker("runs")


def test_delete_needs_yes(cloud):
  assert cloud("delete", yes=False).stdout.startswith("gcloud compute tpus queued-resources delete synclipmae --force")
  assert not cloud.calls
  assert cloud("delete").returncode == 0 and cloud.verbs == ["delete"]
