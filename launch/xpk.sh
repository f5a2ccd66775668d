#!/usr/bin/env bash
# Submits a run on GKE with xpk (https://github.com/AI-Hypercomputer/xpk) to a cluster with TPUs and the bucket.
# launch/README.md describes how to create them and the image.
set -euo pipefail

usage() {
  cat <<'TEXT'
launch/xpk.sh [--yes] --SETTING=VALUE ... [-- --config.FIELD=VALUE ...]

Prints the xpk command that submits the run; --yes runs it.

  --project=ID --zone=ZONE --cluster=NAME --accelerator=TYPE --image=IMAGE
  --workdir=gs://BUCKET/FOLDER   the bucket is attached to the cluster at /gcs/BUCKET
  --name=NAME                    name of the workload (default: synclipmae)
  --config=FILE[:PRESET]         default: configs/pretrain.py
  --slices=N                     slices of this accelerator that train together (default: 1); for more the mesh
                                 has an axis of them: -- --config.train.mesh="(('slice', N), ('data', 1), ('fsdp', -1))"
  --restarts=N                   maximum number of restarts after a preemption (default: 50)
TEXT
}

refuse() {
  echo "xpk.sh: $*" >&2
  exit 2
}

[[ $# -gt 0 && $1 != -h && $1 != --help ]] || { usage && exit; }
project="" zone="" cluster="" accelerator="" image="" workdir="" yes=""
name=synclipmae config=configs/pretrain.py slices=1 restarts=50
while (($#)); do
  case $1 in
    --yes) yes=1 ;;
    --project=*) project=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --cluster=*) cluster=${1#*=} ;;
    --accelerator=*) accelerator=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --workdir=*) workdir=${1#*=} ;;
    --name=*) name=${1#*=} ;;
    --config=*) config=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --) shift && break ;;
    *) refuse "unexpected argument '$1': settings are written --name=value, configuration fields follow after --" ;;
  esac
  shift
done
for setting in project zone cluster accelerator image workdir; do
  [[ ${!setting} ]] || refuse "--$setting is missing"
done
[[ $slices =~ ^[1-9][0-9]*$ ]] || refuse "--slices must be a number from 1 on, not '$slices'"
[[ $restarts =~ ^[0-9]+$ ]] || refuse "--restarts must be a number, not '$restarts'"
[[ $workdir =~ ^gs://[^/]+/.+ ]] || refuse "--workdir must be gs://BUCKET/FOLDER: pods share only the bucket"
for argument; do
  [[ $argument == --* ]] || refuse "unexpected argument '$argument' after --: arguments of the run start with --"
  [[ $argument != *$'\n'* ]] || refuse "an argument of the run must not contain line breaks"
done

# xpk runs this in a subshell and forwards SIGTERM to it. exec replaces the subshell by the run, which then saves.
# JAX_PLATFORMS: a missing TPU must be an error, not a run on the CPU.
printf -v run ' %q' exec env JAX_PLATFORMS=tpu,cpu python -u -m synclipmae_jax.main --distributed \
  --config="$config" --workdir="/gcs/${workdir#gs://}" "$@"
command=(
  xpk workload create --project="$project" --zone="$zone" --cluster="$cluster" --workload="$name"
  --tpu-type="$accelerator" --num-slices="$slices" --docker-image="$image" --max-restarts="$restarts"
  --termination-grace-period-seconds=600 --command="${run# }"
)
if [[ $yes ]]; then
  command -v xpk >/dev/null || refuse "xpk is not installed: pip install xpk"
  exec "${command[@]}"
fi
printf -v line ' %q' "${command[@]}"
echo "${line# }"
