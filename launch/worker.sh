#!/usr/bin/env bash
# The part of a run on one worker of a TPU slice; tpu_vm.sh calls it over ssh on all workers at once.
#
#   worker.sh install                      Python environment: requirements.txt, and jax[tpu] at its version
#   worker.sh mount FOLDER BUCKET...       mounts buckets at FOLDER/BUCKET; the first one holds the workdir
#   worker.sh start [ARGUMENT...]          python -m synclipmae_jax.main ARGUMENT..., in the background
#   worker.sh state                        one line: HOST idle | HOST running PID | HOST ended STATUS
#   worker.sh logs                         follows the log until the run ends
#   worker.sh stop SECONDS [force]         SIGTERM (the run saves), waits SECONDS; force: then SIGKILL
#
# The code is in ~/synclipmae/src; the folder above it holds the environment, the log and the lock of a running run.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source=$root/src venv=$root/venv log=$root/run.log lock=$root/run.lock pid=$root/run.pid ended=$root/run.ended

fail() {
  echo "$HOSTNAME: $*" >&2
  exit 1
}

install() {
  # The Python of the images (Ubuntu 22.04: 3.10) is too old for the pinned versions; uv installs a newer one.
  PATH=$PATH:$HOME/.local/bin
  command -v uv >/dev/null || python3 -m pip install --quiet --user uv
  [[ -x $venv/bin/python ]] || uv venv --quiet --python 3.12 "$venv"
  local jax
  jax=$(sed -nE 's/^jax==([^ ;#]+).*/\1/p' "$source/requirements.txt")
  [[ $jax ]] || fail "requirements.txt pins no version of jax"
  uv pip install --quiet --python "$venv/bin/python" --constraint "$source/requirements.txt" \
    --editable "$source" "jax[tpu]==$jax"
  echo "$HOSTNAME installed jax[tpu]==$jax"
}

mount_buckets() {
  local folder=$1 workdir_bucket=$2 bucket at probe
  shift
  for bucket; do
    at=$folder/$bucket
    if ! mountpoint --quiet "$at" || ! ls "$at" >/dev/null 2>&1; then
      command -v gcsfuse >/dev/null || install_gcsfuse
      sudo umount --lazy "$at" 2>/dev/null || true # left by a crashed gcsfuse
      sudo mkdir -p "$at"
      sudo chown "$(id -u):$(id -g)" "$at"
      # No cache: every worker must see files that another worker wrote, renamed or deleted at once.
      gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$bucket" "$at" ||
        fail "gs://$bucket cannot be mounted: check its name and the permissions of this VM's service account"
    fi
  done
  # A checkpoint is written under a temporary name and renamed when complete. A flat bucket cannot rename folders.
  at=$folder/$workdir_bucket
  probe=$(mktemp -d "$at/.probe.XXXXXX") ||
    fail "gs://$workdir_bucket cannot be written to: grant this VM's service account roles/storage.objectUser"
  touch "$probe/file"
  mv "$probe" "$probe.renamed" ||
    fail "gs://$workdir_bucket cannot rename folders: the workdir needs a bucket with a hierarchical namespace"
  rm -r "$probe.renamed"
}

install_gcsfuse() {
  local packages=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
  curl -fsSL "$packages/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get update -qq
  sudo apt-get install -qq --yes gcsfuse >/dev/null
}

# The supervisor and main hold the lock, so it is free when both have ended for any reason; a pid could be reused by
# another process. The check takes a shared lock, so that several checks can run at once.
alive() { ! flock --shared --nonblock "$lock" true; }

start() {
  ! alive || fail "a run is active ($(cat "$pid")): stop it first"
  rm -f "$pid" "$ended"
  # A separate session without a terminal continues after the ssh connection closes.
  setsid nohup bash "${BASH_SOURCE[0]}" supervise "$@" >>"$log" 2>&1 </dev/null &
  for _ in {1..100}; do
    [[ ! -s $pid ]] || break
    sleep 0.1
  done
  [[ -s $pid ]] || fail "the run did not start: see $log"
  echo "$HOSTNAME running $(cat "$pid"), log in $log"
}

supervise() { # waits for main and stores its exit status
  exec 9>"$lock"
  flock --timeout 5 9 || fail "a run is already active"
  printf '%s ' "$(date --utc +'== %F %T UTC:')" "$@"
  echo
  cd "$source"
  # A missing TPU must be an error, not a run on the CPU.
  JAX_PLATFORMS=tpu,cpu "$venv/bin/python" -u -m synclipmae_jax.main "$@" &
  echo $! >"$pid.new"
  mv "$pid.new" "$pid"
  local status=0
  wait $! || status=$?
  echo "$status" >"$ended"
  echo "== ended with exit status $status"
}

state() {
  if alive; then
    echo "$HOSTNAME running $(cat "$pid")"
  elif [[ -e $pid ]]; then
    echo "$HOSTNAME ended $(cat "$ended" 2>/dev/null || echo 137)" # killed with its supervisor
  else
    echo "$HOSTNAME idle"
  fi
}

logs() {
  [[ -e $log ]] || fail "there has been no run yet"
  if alive; then
    tail --lines=100 --follow=name --pid="$(cat "$pid")" "$log"
  else
    tail --lines=100 "$log"
  fi
}

stop() {
  local seconds=$1 force=${2:-}
  if alive; then
    kill -TERM "$(cat "$pid")" || true # it may have ended in between
    for ((; seconds > 0; seconds--)); do
      alive || break
      sleep 1
    done
    if alive; then
      [[ $force ]] || fail "still active after $1 s: see the log, wait, or stop it with --force"
      kill -KILL -- "-$(ps -o pgid= -p "$(cat "$pid")" | tr -d ' ')"
      for _ in {1..50}; do
        alive || break
        sleep 0.1
      done
    fi
  fi
  state
}

case ${1:-} in
  install | start | supervise | state | logs | stop) "$@" ;;
  mount) shift && mount_buckets "$@" ;;
  *) fail "unknown command '${1:-}': install, mount, start, state, logs or stop" ;;
esac
