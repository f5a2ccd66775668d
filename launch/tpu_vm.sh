#!/usr/bin/env bash
# A run on a Cloud TPU slice of any number of hosts, controlled from this machine. See launch/README.md.
set -euo pipefail

usage() {
  cat <<'TEXT'
launch/tpu_vm.sh COMMAND [--yes] [--SETTING=VALUE ...] [-- --config.FIELD=VALUE ...]

Prints the gcloud commands; --yes runs them. TPUs cost money from `create` until `delete`.

  up        create, install, start and logs; replaces a preempted slice and resumes the run, until the run ends
  create    requests the slice (a queued resource), unless it exists
  install   installs code and environment on every worker
  start     starts `python -m synclipmae_jax.main` on every worker, in the background
  logs      follows the log of one worker
  status    prints the state of the queued resource, of the slice, and of the run on every worker
  stop      sends SIGTERM to every worker and waits until the run has saved and ended
  delete    deletes the slice and the queued resource

Settings; the environment variable in brackets sets the same value:
  --project=ID            [PROJECT]      --zone=ZONE [ZONE]
  --name=NAME             [NAME]         name of the queued resource and of its slice (default: synclipmae)
  --accelerator=TYPE      [ACCELERATOR]  v5p-256, v5litepod-256, v6e-256, v4-256 ...
  --runtime=VERSION       [RUNTIME]      VM image (default: the documented one for the accelerator)
  --spot                  [SPOT=1]       cheaper, may be preempted at any time
  --git=URL --revision=R  [GIT] [REVISION]  code to install (default: this working tree without ignored files)
  --workdir=gs://BUCKET/FOLDER [WORKDIR]    its bucket is mounted on every worker at /gcs/BUCKET
  --bucket=NAME           another bucket to mount (data, weights); may be repeated
  --config=FILE[:PRESET]  [CONFIG]       default: configs/pretrain.py
  --mounts=FOLDER         [MOUNTS]       folder of the mounted buckets on the workers (default: /gcs)
  --create-option=OPTION  option of `queued-resources create`, like --reserved; may be repeated
  --ssh-option=OPTION     option of `tpu-vm ssh` and `scp`, like --internal-ip; may be repeated
  --worker=N              worker whose log is followed: a number or all (default: 0)
  --stop-seconds=N        time limit of `stop` (default: 600);  --force: SIGKILL after it
TEXT
}

main() {
  local command=${1:-}
  case $command in
    "") usage >&2 && exit 2 ;;
    -h | --help | help) usage && exit ;;
    up | create | install | start | logs | status | stop | delete) shift ;;
    *) refuse "unknown command '$command': up, create, install, start, logs, status, stop or delete" ;;
  esac
  settings "$@"
  check "$command"
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  "$command"
}

# Settings

settings() {
  repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  project=${PROJECT:-} zone=${ZONE:-} name=${NAME:-synclipmae} accelerator=${ACCELERATOR:-} runtime=${RUNTIME:-}
  spot=${SPOT:-} git=${GIT:-} revision=${REVISION:-} workdir=${WORKDIR:-} config=${CONFIG:-configs/pretrain.py}
  mounts=${MOUNTS:-/gcs} poll_seconds=${POLL_SECONDS:-30} stop_seconds=600 worker=0 force="" yes=""
  buckets=() create_options=() ssh_options=() overrides=()
  while (($#)); do
    case $1 in
      --yes) yes=1 ;;
      --spot) spot=1 ;;
      --force) force=1 ;;
      --project=*) project=${1#*=} ;;
      --zone=*) zone=${1#*=} ;;
      --name=*) name=${1#*=} ;;
      --accelerator=*) accelerator=${1#*=} ;;
      --runtime=*) runtime=${1#*=} ;;
      --git=*) git=${1#*=} ;;
      --revision=*) revision=${1#*=} ;;
      --workdir=*) workdir=${1#*=} ;;
      --config=*) config=${1#*=} ;;
      --mounts=*) mounts=${1#*=} ;;
      --bucket=*) bucket=${1#*=} && bucket=${bucket#gs://} && buckets+=("${bucket%/}") ;;
      --create-option=*) create_options+=("${1#*=}") ;;
      --ssh-option=*) ssh_options+=("${1#*=}") ;;
      --worker=*) worker=${1#*=} ;;
      --stop-seconds=*) stop_seconds=${1#*=} ;;
      --) shift && overrides=("$@") && break ;;
      *) refuse "unexpected argument '$1': settings are written --name=value, configuration fields follow after --" ;;
    esac
    shift
  done
}

check() {
  [[ $spot != 0 ]] || spot=""
  [[ $project ]] || refuse "the project is missing: --project=ID"
  [[ $zone ]] || refuse "the zone is missing: --zone=ZONE, a zone with the accelerator"
  [[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] || refuse "--name takes small letters, digits and hyphens, not '$name'"
  [[ $worker =~ ^([0-9]+|all)$ ]] || refuse "--worker must be a number or all, not '$worker'"
  [[ $stop_seconds =~ ^[0-9]+$ ]] || refuse "--stop-seconds must be a number, not '$stop_seconds'"
  case $1 in
    up | create) check_accelerator && check_runtime ;;
  esac
  case $1 in
    up | install) check_source ;;
  esac
  case $1 in
    up | start) check_workdir && check_arguments ;;
  esac
  [[ ! $yes ]] || command -v gcloud >/dev/null ||
    refuse "gcloud is not installed: install the Google Cloud CLI and run gcloud auth login"
}

check_accelerator() {
  case $accelerator in
    "") refuse "the accelerator is missing: --accelerator=TYPE, like v5p-256" ;;
    v5e-*) refuse "slices of v5e are named v5litepod-${accelerator#v5e-}" ;;
    v[0-9]*-[0-9]*) [[ $accelerator =~ ^v[0-9]+[a-z]*-[0-9]+$ ]] && return ;;
  esac
  refuse "an accelerator is written like v5p-256, not '$accelerator'"
}

check_runtime() { # https://cloud.google.com/tpu/docs/runtimes
  [[ ! $runtime ]] || return 0
  case $accelerator in
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v[234]-*) runtime=tpu-ubuntu2204-base ;;
    *) refuse "the VM image of $accelerator is unknown: --runtime=VERSION" ;;
  esac
}

check_source() {
  if [[ $git ]]; then
    [[ $revision ]] || refuse "the revision is missing: --revision=R (a recreated slice must get the same code)"
  else
    [[ ! $revision ]] || refuse "--revision needs --git=URL"
    git -C "$repository" rev-parse >/dev/null 2>&1 || refuse "not a git checkout: give --git=URL --revision=R"
    [[ -f $repository/${config%%:*} ]] || refuse "the configuration ${config%%:*} does not exist"
  fi
}

# Replaces a gs:// folder by its path below the mount, because the code reads and writes plain files.
check_workdir() {
  case $workdir in
    "") refuse "the workdir is missing: --workdir=gs://BUCKET/FOLDER" ;;
    gs://*) workdir=$mounts/${workdir#gs://} ;;
  esac
  workdir=${workdir%/}
  if [[ $workdir == "$mounts"/* ]]; then
    local place=${workdir#"$mounts"/}
    [[ $place =~ ^[a-z0-9][a-z0-9._-]*/.+ ]] || refuse "--workdir must name a folder in a bucket: gs://BUCKET/FOLDER"
    buckets=("${place%%/*}" ${buckets[@]+"${buckets[@]}"})
    return
  fi
  [[ $workdir == /* ]] || refuse "--workdir takes gs://BUCKET/FOLDER or a path from / on a single host, not '$workdir'"
  ((${#buckets[@]} == 0)) || refuse "--bucket needs a workdir on a bucket: give --workdir=gs://BUCKET/FOLDER"
  check_accelerator
  # Slices up to 8 have one host in every generation: v5p-8, v4-8 (in cores), v5litepod-8, v6e-8 (in chips).
  ((${accelerator##*-} <= 8)) ||
    refuse "$accelerator has several hosts, and $workdir is another disk on each: checkpoints would be incomplete," \
      "and the disks are deleted with the slice. Give --workdir=gs://BUCKET/FOLDER"
}

check_arguments() {
  local argument
  for argument in ${overrides[@]+"${overrides[@]}"}; do
    [[ $argument == --* ]] || refuse "unexpected argument '$argument' after --: arguments of the run start with --"
  done
}

# Commands

create() {
  look
  if [[ $request == NONE ]]; then ask; else say "$name already exists: $request"; fi
}

install() {
  refuse_over_a_run
  put_code
}

start() {
  refuse_over_a_run
  start_run
}

logs() { on_workers "$worker" logs; }

status() {
  assumed=ACTIVE
  look
  [[ ! $yes ]] || echo "queued resource $name: $request${slice:+, slice: $slice}"
  [[ "$request $slice" != "ACTIVE READY" ]] || on_workers all state
}

stop() { on_workers all stop "$stop_seconds" ${force:+force}; }

delete() { tpus queued-resources delete "$name" --force --quiet; }

# Replaces a lost slice and resumes its run from the workdir. A run that ended by itself is not started again.
up() {
  local started="" unreachable=0
  while true; do
    obtain # resets started when it replaces the slice
    read_run
    case $run in
      unreachable)
        ((++unreachable < 10)) || fail "no worker answers: see the messages of gcloud above"
        pause
        continue
        ;;
      running) say "the run is active: following its log" ;;
      *)
        if [[ $started ]]; then
          pause # during a preemption a run looks for a moment as if it had been stopped
          look
          [[ "$request $slice" == "ACTIVE READY" ]] || continue
          local costs="the slice costs money until you delete it"
          [[ $run == "ended 0" ]] || fail "the run ended with exit status ${run#ended }: see the logs; $costs"
          say "the run is done; $costs"
          return
        fi
        put_code
        start_run
        ;;
    esac
    started=1 unreachable=0
    on_workers "$worker" logs || true # the next iteration checks the state
    [[ $yes ]] || return 0
    pause
  done
}

# The queued resource and its slice

# Waits until the slice is ready. A lost slice is replaced; a request that failed is not repeated.
obtain() {
  local asked="" before=""
  while true; do
    look
    [[ "$request $slice" == "$before" ]] || say "queued resource $name: $request${slice:+, slice: $slice}"
    before="$request $slice"
    case "$request $slice" in
      "ACTIVE READY") return ;;
      NONE*)
        ask
        asked=1
        ;;
      "ACTIVE NONE") fail "the slice of $name has another name, so it is not of this script: use another --name" ;;
      FAILED* | SUSPENDED* | "ACTIVE PREEMPTED" | "ACTIVE TERMINATED")
        [[ $request != FAILED || ! $asked ]] ||
          fail "the request failed: see gcloud compute tpus queued-resources describe $name"
        say "the slice is lost: requesting another"
        delete
        started=""
        ;;
      *) pause ;;
    esac
  done
}

ask() {
  local options=(--node-id="$name" --accelerator-type="$accelerator" --runtime-version="$runtime" ${spot:+--spot})
  tpus queued-resources create "$name" "${options[@]}" ${create_options[@]+"${create_options[@]}"}
  assumed=ACTIVE
}

look() { # sets request and slice
  describe queued-resources 'value(state.state)' "${assumed:-NONE}"
  request=$state slice=""
  if [[ $request == ACTIVE ]]; then
    describe tpu-vm 'value(state)' READY
    slice=$state
  fi
}

describe() { # sets state: NONE if the resource does not exist; a dry run assumes $3
  if [[ ! $yes ]]; then
    tpus "$1" describe "$name" --format="$2"
    state=$3
  elif ! state=$(tpus "$1" describe "$name" --format="$2" 2>"$scratch/errors"); then
    grep -q NOT_FOUND "$scratch/errors" || fail "$(tail -n 1 "$scratch/errors")"
    state=NONE
  fi
}

# The workers

put_code() {
  local source=synclipmae/src fetch
  if [[ $git ]]; then
    fetch="git clone --quiet -- $(quoted "$git") $source"
    fetch+="; git -C $source checkout --quiet --detach $(quoted "$revision")"
  else
    if [[ $yes ]]; then pack "$scratch/synclipmae.tar.gz"; else echo "# packs this working tree, then"; fi
    tpus tpu-vm scp "$scratch/synclipmae.tar.gz" "$name:" --worker=all ${ssh_options[@]+"${ssh_options[@]}"}
    fetch="mkdir -p $source; tar -xzf synclipmae.tar.gz -C $source"
  fi
  remote all "set -e; rm -rf $source; $fetch; bash $source/launch/worker.sh install"
}

pack() { # tracked files, and untracked files that are not ignored
  git -C "$repository" ls-files -z --cached --others --exclude-standard |
    (cd "$repository" && while IFS= read -r -d '' file; do [[ ! -e $file ]] || printf '%s\0' "$file"; done) |
    COPYFILE_DISABLE=1 tar -czf "$1" -C "$repository" --null -T -
}

start_run() {
  if ((${#buckets[@]})); then on_workers all mount "$mounts" "${buckets[@]}"; fi
  on_workers all start --distributed --config="$config" --workdir="$workdir" ${overrides[@]+"${overrides[@]}"}
}

refuse_over_a_run() {
  read_run
  [[ $run != running ]] || fail "a run is active on $name: stop it first"
}

# Sets run: running if it is active on any worker; else ended with the first STATUS that is not 0, or 0; else idle;
# unreachable if no worker answers.
read_run() {
  local states
  if [[ ! $yes ]]; then
    on_workers all state
    run=idle
    return
  fi
  states=$(on_workers all state) || true
  run=$(awk '
    $2 == "running" { alive = 1 }
    $2 == "ended" && (status == "" || status == 0) { status = $3 }
    $2 ~ /^idle/ { idle = 1 }
    END { print alive ? "running" : status != "" ? "ended " status : idle ? "idle" : "unreachable" }
  ' <<<"$states")
}

on_workers() { # all|N COMMAND ARGUMENT...: runs worker.sh on the workers
  local which=$1 script=synclipmae/src/launch/worker.sh
  shift
  remote "$which" "[ -e $script ] || { echo \"\$HOSTNAME idle: install first\"; exit 4; }; bash $script $(quoted "$@")"
}

remote() { tpus tpu-vm ssh "$name" --worker="$1" ${ssh_options[@]+"${ssh_options[@]}"} --command="$2"; }

tpus() {
  local command=(gcloud compute tpus "$@" --project="$project" --zone="$zone")
  if [[ $yes ]]; then
    echo "+ $(quoted "${command[@]}")" >&2
    "${command[@]}"
  else
    quoted "${command[@]}"
  fi
}

# Output

quoted() { # quotes words for a shell, with single quotes only where needed
  local word line="" quote="'\\''"
  for word; do
    case $word in
      "" | *[!A-Za-z0-9_./:=@%+,-]*) word="'${word//"'"/$quote}'" ;;
    esac
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

pause() { if [[ $yes ]]; then sleep "$poll_seconds"; fi; }

say() { if [[ $yes ]]; then echo "tpu_vm.sh: $*" >&2; fi; }

fail() {
  echo "tpu_vm.sh: $*" >&2
  exit 1
}

refuse() {
  echo "tpu_vm.sh: $*" >&2
  exit 2
}

main "$@"
