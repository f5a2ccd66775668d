"""A stand-in for gcloud and for the workers: records its calls and runs the workers' commands on this machine."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

# The stand-ins are shell scripts, because there are hundreds of calls. Each records its arguments with separators.
NOTE = """#!/bin/bash
note() { printf '%s\\x1f' "${@:2}" >>"$1" && printf '\\x1e' >>"$1"; }
"""

# Files hold the states, one word per call; the last word repeats.
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
  delete) rm -rf workers/*/synclipmae ;; # new machines are empty
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

# Stand-in for the python of a worker's environment. Its n-th run acts by the n-th word of the file `main`.
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

ARGUMENTS = [
  "--config.data.sources=(('gs://b/x', 1.0), ('/gcs/b/it\\'s', 0.5))",
  '--config.a="double" $HOME `id` $(id) \\ back',
  "--config.b=*? ;&|<>!#~{1,2}",
  "--config.c=two\nlines\tand tab",
  "--config.d=",
  "--config.e=é  two spaces ",
]


def script(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


def noted(path):
  """The arguments of each recorded call of a stand-in."""
  calls = path.read_text().split("\x1f\x1e")[:-1] if path.exists() else []
  return [call.split("\x1f") for call in calls]


class Cloud:
  """A checkout, a gcloud, and two folders as workers."""

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
    """Runs the script with valid settings, overridden by `arguments`."""
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
    """The recorded calls of a stand-in on a worker."""
    return noted(self.folder / "workers" / f"worker{worker}" / name)

  def runs(self, count=1, worker=0):
    """Folder, platforms and arguments of each run of main on a worker; waits for `count` runs."""
    deadline = time.monotonic() + 20
    while len(self.on_worker("runs", worker)) < count and time.monotonic() < deadline:
      time.sleep(0.02)
    runs = self.on_worker("runs", worker)
    assert len(runs) == count
    return runs

  def started(self):
    """Starts a run on both workers."""
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
