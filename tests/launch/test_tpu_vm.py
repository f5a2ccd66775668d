"""The launch scripts against a stand-in gcloud, which records its calls and runs right here what the workers get."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the workers' half of the scripts is for Linux")

# The stand-ins are shell scripts, for there are hundreds of calls. Each notes its arguments, with separators.
NOTE = """#!/bin/bash
note() { printf '%s\\x1f' "${@:2}" >>"$1" && printf '\\x1e' >>"$1"; }
"""

# States are played back from files, one word a call, the last one for ever.
GCLOUD = (
  NOTE
  + """
cd "$STAND_IN" && note calls "$@"
kind=$3 verb=$4 workers=(workers/*)
for word; do
  [[ $word != --command=* ]] || command=${word#*=}
  [[ $word != --worker=[0-9] ]] || workers=("workers/worker${word#*=}")
done
[[ $1 == compute && $2 == tpus && " $* " == *" --project=p --zone=z "* ]] || exit 99
case $verb in
  describe)
    read -r state rest <"$kind"
    echo "${rest:-$state}" >"$kind"
    case $state in
      NONE) echo "ERROR: (gcloud) NOT_FOUND: Resource 'projects/p' was not found" >&2 && exit 1 ;;
      DENIED) echo "ERROR: (gcloud) PERMISSION_DENIED: you may not" >&2 && exit 1 ;;
    esac
    echo "$state"
    ;;
  create) [[ ! -e no_quota ]] || { echo "ERROR: (gcloud) RESOURCE_EXHAUSTED: no quota" >&2 && exit 1; } ;;
  delete) rm -rf workers/*/synclipmae ;; # new machines will be empty
  scp)
    [[ $6 == synclipmae: ]] || exit 99
    for worker in "${workers[@]}"; do cp "$5" "$worker"; done
    ;;
  ssh)
    [[ ! -e unreachable ]] || exit 255
    running=() failed=0
    for worker in "${workers[@]}"; do
      (cd "$worker" && HOME=$PWD HOSTNAME=${worker#*/} PATH=$STAND_IN/worker_bin:$PATH exec bash -c "$command") &
      running+=($!)
    done
    for process in "${running[@]}"; do wait "$process" || failed=$?; done
    exit "$failed"
    ;;
esac
"""
)

# Stands in for the environment's python on a worker: does, in its n-th run, as the n-th word of the file `main` says.
PYTHON = (
  NOTE
  + """
read -ra deeds <"$STAND_IN/main"
number=$(cat "$HOME/number" 2>/dev/null || echo 0)
echo $((number + 1)) >"$HOME/number"
deed=${deeds[number < ${#deeds[@]} ? number : ${#deeds[@]} - 1]}
if [[ $deed == deaf ]]; then trap '' TERM; else trap 'echo saved; exit 143' TERM; fi
echo training
note "$HOME/runs" "$PWD" "$JAX_PLATFORMS" "$@"
case $deed in
  preempted) echo ACTIVE SUSPENDING SUSPENDED NONE PROVISIONING ACTIVE >"$STAND_IN/queued-resources" && exit 143 ;;
  [0-9]) exit "$deed" ;;
esac
for _ in {1..600}; do sleep 0.1; done
"""
)

UV = (
  NOTE
  + """
note "$HOME/uv" "$@"
if [[ $1 == venv ]]; then mkdir -p "${!#}/bin" && cp "$STAND_IN/python" "${!#}/bin"; fi
"""
)


def script(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


def noted(path):
  """The arguments of each call that a stand-in noted."""
  calls = path.read_text().split("\x1f\x1e")[:-1] if path.exists() else []
  return [call.split("\x1f") for call in calls]


class Cloud:
  """A checkout, a gcloud, and two workers that are folders."""

  def __init__(self, folder):
    self.folder, self.checkout = folder, folder / "checkout"
    shutil.copytree(ROOT / "launch", self.checkout / "launch")
    for name in ("requirements.txt", "configs/pretrain.py"):
      (self.checkout / name).parent.mkdir(exist_ok=True)
      shutil.copy(ROOT / name, self.checkout / name)
    subprocess.run(["git", "init", "--quiet", self.checkout], check=True)
    script(folder / "bin" / "gcloud", GCLOUD)
    script(folder / "python", PYTHON)
    script(folder / "worker_bin" / "uv", UV)
    script(folder / "worker_bin" / "sudo", '#!/bin/sh\n[ "$1" = umount ] || exec "$@"\n')
    script(folder / "worker_bin" / "mountpoint", '#!/bin/sh\ngrep -q " $2$" "$HOME/mounted" 2>/dev/null\n')
    script(folder / "worker_bin" / "gcsfuse", '#!/bin/sh\necho "$@" >>"$HOME/mounted"\n')
    for number in (0, 1):
      (folder / "workers" / f"worker{number}").mkdir(parents=True)
    self.tell("main", "forever")
    self.tell("queued-resources", "ACTIVE")
    self.tell("tpu-vm", "READY")

  def tell(self, name, text):
    (self.folder / name).write_text(text)

  def __call__(self, command, *arguments, yes=True, after=(), path=None):
    """Runs the script with good settings, overridden by `arguments`."""
    settings = ["--project=p", "--zone=z", "--accelerator=v5p-256", "--workdir=gs://bucket/runs/x"]
    settings += [f"--mounts={self.folder / 'gcs'}", *(["--yes"] if yes else []), *arguments]
    return subprocess.run(
      ["/bin/bash", self.checkout / "launch" / "tpu_vm.sh", command, *settings, *(["--", *after] if after else [])],
      env={
        "PATH": path or f"{self.folder / 'bin'}:{os.environ['PATH']}",
        "STAND_IN": str(self.folder),
        "HOME": str(self.folder),
        "POLL_SECONDS": "0",
      },
      capture_output=True,
      text=True,
      timeout=60,
    )

  @property
  def calls(self):
    return noted(self.folder / "calls")

  @property
  def verbs(self):
    return [call[3] for call in self.calls]

  def on_worker(self, name, worker=0):
    """What a stand-in noted on a worker."""
    return noted(self.folder / "workers" / f"worker{worker}" / name)

  def runs(self, count=1, worker=0):
    """Folder, platforms and arguments of main on a worker in each run, once it has been started so often."""
    deadline = time.monotonic() + 20
    while len(self.on_worker("runs", worker)) < count and time.monotonic() < deadline:
      time.sleep(0.02)
    runs = self.on_worker("runs", worker)
    assert len(runs) == count
    return runs

  def started(self):
    """A run that is alive on both workers."""
    for command in ("install", "start"):
      result = self(command)
      assert result.returncode == 0, result.stderr
    for worker in (0, 1):
      self.runs(worker=worker)

  def close(self):
    for path in self.folder.glob("workers/*/synclipmae/run.pid"):
      with contextlib.suppress(ProcessLookupError, ValueError):
        group = os.getpgid(int(path.read_text()))
        assert group != os.getpgrp()
        os.killpg(group, signal.SIGKILL)


@pytest.fixture
def cloud(tmp_path):
  cloud = Cloud(tmp_path)
  yield cloud
  cloud.close()


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
  """A cloud on which nothing may ever be called."""
  cloud = Cloud(tmp_path_factory.mktemp("untouched"))
  yield cloud
  assert not cloud.calls and not list(cloud.folder.glob("workers/*/*"))


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


@pytest.mark.parametrize(
  ("accelerator", "runtime"),
  [
    ("v5p-256", "v2-alpha-tpuv5"),
    ("v5litepod-256", "v2-alpha-tpuv5-lite"),
    ("v6e-256", "v2-alpha-tpuv6e"),
    ("v4-256", "tpu-ubuntu2204-base"),
  ],
)
def test_create_asks_for_a_slice(cloud, accelerator, runtime):
  cloud.tell("queued-resources", "NONE")
  assert cloud("create", f"--accelerator={accelerator}", "--spot", "--create-option=--reserved").returncode == 0
  assert cloud.verbs == ["describe", "create"]
  wanted = {"synclipmae", "--node-id=synclipmae", "--spot", "--reserved"}
  wanted |= {f"--accelerator-type={accelerator}", f"--runtime-version={runtime}"}
  assert wanted <= set(cloud.calls[1])


def test_create_makes_none_where_there_is_one(cloud):
  cloud.tell("queued-resources", "WAITING_FOR_RESOURCES")
  result = cloud("create")
  assert result.returncode == 0 and "there already: WAITING_FOR_RESOURCES" in result.stderr
  assert cloud.verbs == ["describe"]


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


def test_up_leaves_a_foreign_slice_alone(cloud):
  cloud.tell("tpu-vm", "NONE")
  result = cloud("up")
  assert result.returncode == 1 and "choose another --name" in result.stderr
  assert set(cloud.verbs) == {"describe"}


def test_up_ends_where_the_run_fails(cloud):
  cloud.tell("main", "2")
  result = cloud("up")
  assert result.returncode == 1 and "the run ended with exit status 2" in result.stderr
  assert len(cloud.runs()) == 1 and "delete" not in cloud.verbs
  assert "training" in result.stdout  # the log


def test_up_follows_a_run_that_is_alive(cloud):
  cloud.started()
  calls = len(cloud.calls)
  cloud.tell("unreachable", "")  # as soon as its log is asked for, and before: no worker answers
  result = cloud("up")
  assert result.returncode == 1 and "no worker answers" in result.stderr
  (cloud.folder / "unreachable").unlink()
  script(cloud.folder / "worker_bin" / "tail", "#!/bin/sh\nkill $(cat $STAND_IN/workers/*/*/run.pid)\nsleep 0.3\n")
  result = cloud("up")
  assert result.returncode == 1 and "the run is alive: following its log" in result.stderr
  assert not {"scp", "create", "delete"} & set(cloud.verbs[calls:])
  assert len(cloud.runs()) == 1


@pytest.mark.parametrize("broken", ["no_quota", "denied"])
def test_gclouds_own_errors_are_shown(cloud, broken):
  cloud.tell("no_quota", "")
  cloud.tell("queued-resources", "DENIED" if broken == "denied" else "NONE")
  result = cloud("up")
  assert result.returncode != 0 and ("you may not" if broken == "denied" else "no quota") in result.stderr
  assert "create" not in cloud.verbs or cloud.verbs == ["describe", "create"]


def test_install_brings_the_working_tree_and_the_pinned_jax(cloud):
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


def test_install_brings_a_revision(cloud):
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


ARGUMENTS = [
  "--config.data.sources=(('gs://b/x', 1.0), ('/gcs/b/it\\'s', 0.5))",
  '--config.a="double" $HOME `id` $(id) \\ back',
  "--config.b=*? ;&|<>!#~{1,2}",
  "--config.c=two\nlines\tand tab",
  "--config.d=",
  "--config.e=é  two spaces ",
]


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
    assert refused.returncode == 1 and "a run is alive on synclipmae: stop it first" in refused.stderr
  assert len(cloud.runs()) == 1
  alive = cloud("status").stdout
  assert re.findall(r"^worker\d running \d+$", alive, re.M) and "synclipmae: ACTIVE, slice: READY" in alive

  stopped = cloud("stop")
  assert stopped.returncode == 0, stopped.stderr
  assert sorted(stopped.stdout.splitlines()) == ["worker0 ended 143", "worker1 ended 143"]
  assert "saved" in cloud("logs").stdout and "exit status 143" in cloud("logs", "--worker=1").stdout
  assert cloud("start").returncode == 0 and len(cloud.runs(2)) == 2


def test_a_run_outlives_its_connection_and_one_worker_alone_refuses_too(cloud):
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
  assert again.returncode == 1 and f"worker0: a run is alive here ({number})" in again.stderr
  # A pid file whose process is gone, together with its supervisor, is not mistaken for a run.
  os.killpg(os.getpgid(number), signal.SIGKILL)
  time.sleep(0.1)
  states = cloud("status").stdout
  assert "worker0 ended 137" in states and "worker1 running" in states


def test_stop_waits_only_so_long(cloud):
  cloud.tell("main", "deaf")
  cloud.started()
  result = cloud("stop", "--stop-seconds=1")
  assert result.returncode == 1 and "worker0: still alive after 1 s" in result.stderr
  result = cloud("stop", "--stop-seconds=0", "--force")
  assert result.returncode == 0, result.stderr
  assert sorted(result.stdout.splitlines()) == ["worker0 ended 137", "worker1 ended 137"]


def test_start_and_logs_before_install_say_so(cloud):
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


@pytest.mark.parametrize(
  ("command", "arguments", "complaint"),
  [
    ("launch", [], "there is no command 'launch'"),
    ("up", ["--project="], "which project?"),
    ("up", ["--zone="], "which zone?"),
    ("up", ["--name=No Good"], "not 'No Good'"),
    ("up", ["--accelerator="], "which accelerator?"),
    ("up", ["--accelerator=v5e-256"], "v5litepod-256"),
    ("up", ["--accelerator=big"], "not 'big'"),
    ("up", ["--accelerator=v9z-16"], "--runtime=VERSION"),
    ("up", ["--workdir="], "--workdir=gs://BUCKET/FOLDER"),
    ("up", ["--workdir=gs://bucket"], "must name a folder in a bucket"),
    ("up", ["--workdir=/data/run"], "v5p-256 has several hosts"),
    ("start", ["--workdir=/data/run"], "another disk on each"),
    ("up", ["--workdir=runs/x", "--accelerator=v6e-8"], "not 'runs/x'"),
    ("up", ["--config=configs/none.py"], "there is no configuration configs/none.py"),
    ("up", ["--git=https://host/r"], "which revision?"),
    ("up", ["--revision=abc"], "--revision needs --git"),
    ("up", ["--zone", "z"], "what is '--zone'?"),
    ("up", ["--colour=red"], "what is '--colour=red'?"),
    ("logs", ["--worker=one"], "not 'one'"),
    ("stop", ["--stop-seconds=soon"], "not 'soon'"),
    ("start", ["--", "paper"], "what is 'paper' after --?"),
  ],
)
def test_bad_input_is_one_sentence(untouched, command, arguments, complaint):
  result = untouched(command, *arguments)
  assert result.returncode == 2 and complaint in result.stderr
  assert len(result.stderr.splitlines()) == 1 and not result.stdout and not untouched.calls


def test_one_host_may_keep_its_workdir_on_its_disk(untouched):
  result = untouched("start", "--accelerator=v6e-8", "--workdir=/data/run", yes=False)
  assert result.returncode == 0 and "--workdir=/data/run" in result.stdout and " mount " not in result.stdout


def test_without_gcloud_there_is_a_sentence_and_still_a_dry_run(untouched, tmp_path):
  for tool in ("dirname", "git", "mktemp", "rm", "cat"):
    (tmp_path / tool).symlink_to(shutil.which(tool))
  result = untouched("up", path=str(tmp_path))
  assert result.returncode == 2 and "there is no gcloud on this machine" in result.stderr
  assert untouched("up", yes=False, path=str(tmp_path)).returncode == 0


def test_usage(untouched):
  shown = untouched("--help")
  assert shown.returncode == 0 and "TPUs cost money" in shown.stdout
  nothing = subprocess.run(["bash", untouched.checkout / "launch" / "tpu_vm.sh"], capture_output=True, text=True)
  assert nothing.returncode == 2 and "launch/tpu_vm.sh COMMAND" in nothing.stderr


XPK = ["--project=p", "--zone=z", "--cluster=c", "--accelerator=v5p-256", "--image=i", "--workdir=gs://bucket/runs/x"]


def xpk(*arguments, folder):
  return subprocess.run(
    ["bash", ROOT / "launch" / "xpk.sh", *arguments],
    env={"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder)},
    capture_output=True,
    text=True,
  )


def test_xpk_submits_the_same_run(tmp_path):
  note = '#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done >"$HOME/NAME"\n'
  for name in ("xpk", "python"):
    script(tmp_path / name, note.replace("NAME", f"{name}.words"))
  words = lambda name: (tmp_path / f"{name}.words").read_bytes().decode().split("\0")[:-1]
  arguments = [argument for argument in ARGUMENTS if "\n" not in argument]
  dry = xpk(*XPK, "--", *arguments, folder=tmp_path)
  assert dry.returncode == 0 and not (tmp_path / "xpk.words").exists()
  assert xpk(*XPK, "--yes", "--", *arguments, folder=tmp_path).returncode == 0
  assert words("xpk")[:2] == ["workload", "create"] and {"--tpu-type=v5p-256", "--docker-image=i"} <= {*words("xpk")}
  (command,) = [word.removeprefix("--command=") for word in words("xpk") if word.startswith("--command=")]
  assert "\n" not in command  # it becomes one line of YAML
  environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
  subprocess.run(["bash", "-c", f"({command}) & wait $!"], env=environment, check=True)
  first = ["-u", "-m", "synclipmae_jax.main", "--distributed", "--config=configs/pretrain.py"]
  assert words("python") == [*first, "--workdir=/gcs/bucket/runs/x", *arguments]


@pytest.mark.parametrize(
  ("arguments", "complaint"),
  [
    (XPK[1:], "--project is missing"),
    ([*XPK, "--workdir=/data"], "pods share nothing but the bucket"),
    ([*XPK, "--restarts=many"], "not 'many'"),
    ([*XPK, "--", "paper"], "what is 'paper' after --?"),
    ([*XPK, "--", "--a=b\nc"], "several lines"),
    ([*XPK, "what"], "what is 'what'?"),
  ],
)
def test_xpk_refuses_in_one_sentence(tmp_path, arguments, complaint):
  result = xpk(*arguments, folder=tmp_path)
  assert result.returncode == 2 and complaint in result.stderr and len(result.stderr.splitlines()) == 1


def test_the_readmes_commands_are_understood(untouched):
  text = (ROOT / "launch" / "README.md").read_text().replace("\\\n", " ")
  lines = [shlex.split(line) for line in text.splitlines() if re.match(r"launch/\w+\.sh ", line)]
  assert {line[1] for line in lines} >= {"up", "status", "logs", "stop", "delete"}
  environment = {"PROJECT": "p", "ZONE": "z", "ACCELERATOR": "v5p-256", "WORKDIR": "gs://bucket/x"}
  for tool, *words in lines:
    words = [word.replace("BUCKET", "bucket") for word in words if word != "--yes"]
    subprocess.run(["bash", untouched.checkout / tool, *words], env={**os.environ, **environment}, check=True)
