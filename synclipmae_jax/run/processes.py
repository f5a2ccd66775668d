"""Connects the processes of one job, and ends a process when another one is lost."""

from __future__ import annotations

import os
import re
import sys
import threading
from typing import NoReturn

import jax

from synclipmae_jax.types import InputError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
LOST = 134  # exit status when another process is lost; equal to that of JAX's own abort, which may come first
_GRACE = 10  # seconds in which the other processes may fail in the same way
# JAX has no exception type for a lost process: Gloo raises ValueError, a pod raises JaxRuntimeError.
_LOSS = re.compile(r"gloo|heartbeat|coordination|socket closed|^(UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED)", re.IGNORECASE)


def initialise(*, heartbeat_seconds: int = 100) -> None:
  """Connects this process to the others of its job.

  The addresses come from the cluster (TPU pods, GKE, Slurm, Open MPI) or else from the environment:
  JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID. A process without a heartbeat
  for `heartbeat_seconds` counts as lost; JAX then ends all others with SIGABRT. Raises InputError if no other processes
  are found.
  """
  # JAX would handle SIGTERM. The training loop must handle it: all processes agree on the step to save.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    count, index = (int(os.environ[name]) if name in os.environ else None for name in (COUNT, INDEX))
    jax.distributed.initialize(
      num_processes=count, process_id=index, heartbeat_timeout_seconds=heartbeat_seconds
    )  # JAX itself reads the address
  except (ValueError, TypeError, RuntimeError) as error:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise InputError(
      f"--distributed finds no other processes ({reason}): on a cluster that JAX does not know, set"
      f" {ADDRESS}, {COUNT} and {INDEX}; omit the flag for a single process"
    ) from error


def is_loss(error: Exception) -> bool:
  """Whether `error` means that a computation over all processes failed because one of them is lost."""
  return isinstance(error, ValueError | jax.errors.JaxRuntimeError) and bool(_LOSS.search(str(error)))


def leave(status: int) -> NoReturn:
  """Ends this process after a failure with `status`, within seconds.

  A normal exit would wait for the threads of a save that failed, and for the other processes, which wait for this one
  in a shared computation. When this process ends, they fail too.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  if status != LOST:  # all processes may have the same error: let each print it before it is cut off
    farewell = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    farewell.start()
    farewell.join(_GRACE)
  os._exit(status)
