"""Settings, dry runs and messages of the launch scripts."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stand_in_cloud import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the workers' part of the scripts needs Linux")


def test_the_scripts_are_sound():
  scripts = sorted((ROOT / "launch").glob("*.sh"))
  assert len(scripts) == 3
  for path in scripts:
    subprocess.run(["bash", "-n", path], check=True)
    assert os.access(path, os.X_OK) and max(map(len, path.read_text().splitlines())) <= 120
  tool = shutil.which("shellcheck") or shutil.which("shellcheck", path=Path(sys.executable).parent)
  if not tool:
    pytest.skip("shellcheck is not installed")
  found = subprocess.run([tool, *scripts], capture_output=True, text=True)
  assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("command", ["up", "create", "install", "start", "logs", "status", "stop", "delete"])
def test_a_dry_run_prints_commands_and_calls_nothing(untouched, command):
  result = untouched(command, yes=False)
  assert result.returncode == 0, result.stderr
  assert not untouched.calls
  lines = [shlex.split(line) for line in result.stdout.splitlines() if not line.startswith("#")]
  assert lines and all(line[:3] == ["gcloud", "compute", "tpus"] for line in lines)


@pytest.mark.parametrize(
  ("command", "arguments", "complaint"),
  [
    ("launch", [], "unknown command 'launch'"),
    ("up", ["--project="], "the project is missing"),
    ("up", ["--zone="], "the zone is missing"),
    ("up", ["--name=No Good"], "not 'No Good'"),
    ("up", ["--accelerator="], "the accelerator is missing"),
    ("up", ["--accelerator=v5e-256"], "v5litepod-256"),
    ("up", ["--accelerator=big"], "not 'big'"),
    ("up", ["--accelerator=v9z-16"], "--runtime=VERSION"),
    ("up", ["--workdir="], "--workdir=gs://BUCKET/FOLDER"),
    ("up", ["--workdir=gs://bucket"], "must name a folder in a bucket"),
    ("up", ["--workdir=/data/run"], "v5p-256 has several hosts"),
    ("start", ["--workdir=/data/run"], "another disk on each"),
    ("up", ["--workdir=runs/x", "--accelerator=v6e-8"], "not 'runs/x'"),
    ("up", ["--config=configs/none.py"], "the configuration configs/none.py does not exist"),
    ("up", ["--git=https://host/r"], "the revision is missing"),
    ("up", ["--revision=abc"], "--revision needs --git"),
    ("up", ["--zone", "z"], "unexpected argument '--zone'"),
    ("up", ["--colour=red"], "unexpected argument '--colour=red'"),
    ("logs", ["--worker=one"], "not 'one'"),
    ("stop", ["--stop-seconds=soon"], "not 'soon'"),
    ("start", ["--", "paper"], "unexpected argument 'paper' after --"),
  ],
)
def test_bad_input_prints_one_sentence(untouched, command, arguments, complaint):
  result = untouched(command, *arguments)
  assert result.returncode == 2 and complaint in result.stderr
  assert len(result.stderr.splitlines()) == 1 and not result.stdout and not untouched.calls


def test_one_host_may_keep_its_workdir_on_its_disk(untouched):
  result = untouched("start", "--accelerator=v6e-8", "--workdir=/data/run", yes=False)
  assert result.returncode == 0 and "--workdir=/data/run" in result.stdout and " mount " not in result.stdout


def test_without_gcloud_only_a_dry_run_works(untouched, tmp_path):
  for tool in ("dirname", "git", "mktemp", "rm", "cat"):
    (tmp_path / tool).symlink_to(shutil.which(tool))
  result = untouched("up", path=str(tmp_path))
  assert result.returncode == 2 and "gcloud is not installed" in result.stderr
  assert untouched("up", yes=False, path=str(tmp_path)).returncode == 0


def test_usage(untouched):
  shown = untouched("--help")
  assert shown.returncode == 0 and "TPUs cost money" in shown.stdout
  nothing = subprocess.run(["bash", untouched.checkout / "launch" / "tpu_vm.sh"], capture_output=True, text=True)
  assert nothing.returncode == 2 and "launch/tpu_vm.sh COMMAND" in nothing.stderr


def test_the_commands_of_the_readme_are_valid(untouched):
  text = (ROOT / "launch" / "README.md").read_text().replace("\\\n", " ")
  lines = [shlex.split(line) for line in text.splitlines() if re.match(r"launch/\w+\.sh ", line)]
  assert {line[1] for line in lines} >= {"up", "status", "logs", "stop", "delete"}
  environment = {"PROJECT": "p", "ZONE": "z", "ACCELERATOR": "v5p-256", "WORKDIR": "gs://bucket/x"}
  for tool, *words in lines:
    words = [word.replace("BUCKET", "bucket") for word in words if word != "--yes"]
    subprocess.run(["bash", untouched.checkout / tool, *words], env={**os.environ, **environment}, check=True)
