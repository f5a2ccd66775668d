#!/usr/bin/env bash
# A run on GKE, submitted with xpk (https://github.com/AI-Hypercomputer/xpk) to a cluster that has the TPUs and the
# bucket. launch/README.md says how to make both, and the image.
set -euo pipefail

usage() {
  cat <<'TEXT'
launch/xpk.sh [--yes] --SETTING=VALUE ... [-- --config.FIELD=VALUE ...]

Prints the xpk command that submits the run; with --yes it submits.

  --project=ID --zone=ZONE --cluster=NAME --accelerator=TYPE --image=IMAGE
  --workdir=gs://BUCKET/FOLDER   the bucket is attached to the cluster at /gcs/BUCKET
  --name=NAME                    of the workload; synclipmae if not given
  --config=FILE[:PRESET]         configs/pretrain.py if not given
  --restarts=N                   how often the run is started again after a preemption; 50 if not given
TEXT
}

refuse() {
  echo "xpk.sh: $*" >&2
  exit 2
}

[[ $# -gt 0 && $1 != -h && $1 != --help ]] || { usage && exit; }
project="" zone="" cluster="" accelerator="" image="" workdir="" yes=""
name=synclipmae config=configs/pretrain.py restarts=50
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
    --restarts=*) restarts=${1#*=} ;;
    --) shift && break ;;
    *) refuse "what is '$1'? Settings are written --name=value, fields of the configuration stand after --" ;;
  esac
  shift
done
for setting in project zone cluster accelerator image workdir; do
  [[ ${!setting} ]] || refuse "--$setting is missing"
done
[[ $restarts =~ ^[0-9]+$ ]] || refuse "--restarts is a number, not '$restarts'"
[[ $workdir =~ ^gs://[^/]+/.+ ]] || refuse "--workdir is gs://BUCKET/FOLDER: pods share nothing but the bucket"
for argument; do
  [[ $argument == --* ]] || refuse "what is '$argument' after --? Every argument of the run starts with --"
  [[ $argument != *$'\n'* ]] || refuse "an argument of the run may not have several lines"
done

# xpk runs this in a subshell and passes SIGTERM on to that: exec makes it the run itself, which then saves.
# TPU and CPU by name: a TPU that is missing must be an error and not a run on the CPU.
printf -v run ' %q' exec env JAX_PLATFORMS=tpu,cpu python -u -m synclipmae_jax.main --distributed \
  --config="$config" --workdir="/gcs/${workdir#gs://}" "$@"
command=(
  xpk workload create --project="$project" --zone="$zone" --cluster="$cluster" --workload="$name"
  --tpu-type="$accelerator" --num-slices=1 --docker-image="$image" --max-restarts="$restarts"
  --termination-grace-period-seconds=600 --command="${run# }"
)
if [[ $yes ]]; then
  command -v xpk >/dev/null || refuse "there is no xpk on this machine: pip install xpk"
  exec "${command[@]}"
fi
printf -v line ' %q' "${command[@]}"
echo "${line# }"
