"""Many processes as one job: how they find each other, and how a process ends when another one is gone."""

from __future__ import annotations

import os
import re
import sys
import threading
from typing import NoReturn

import jax

from synclipmae_jax.types import InputError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
LOST = 134  # exit status, in a shell that of JAX's own abort, which may come first: another process is gone
_GRACE = 10  # seconds for the others to fail in the same way
# JAX has no type of its own for it: Gloo's failures are ValueErrors, a pod's JaxRuntimeErrors.
_LOSS = re.compile(r"gloo|heartbeat|coordination|socket closed|^(UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED)", re.IGNORECASE)


def initialise(*, heartbeat_seconds: int = 100) -> None:
  """Joins this process to the others of its job, as the cluster says (TPU pods, GKE, Slurm, Open MPI), or else the
  environment: JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

  A process of which nothing was heard for `heartbeat_seconds` counts as gone; JAX then ends all others by SIGABRT.
  """
  # JAX would take SIGTERM for itself. The training loop handles it: all processes agree on the step to save.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    count, index = (int(os.environ[name]) if name in os.environ else None for name in (COUNT, INDEX))
    jax.distributed.initialize(
      num_processes=count, process_id=index, heartbeat_timeout_seconds=heartbeat_seconds
    )  # JAX itself reads the address
  except (ValueError, TypeError, RuntimeError) as error:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise InputError(
      f"--distributed finds no other processes ({reason}): where JAX knows the cluster it needs nothing else, elsewhere"
      f" give {ADDRESS}, {COUNT} and {INDEX}; a single process goes without the flag"
    ) from error


def is_loss(error: Exception) -> bool:
  """Whether `error` is how a computation over all processes fails when one of them is gone."""
  return isinstance(error, ValueError | jax.errors.JaxRuntimeError) and bool(_LOSS.search(str(error)))


def leave(status: int) -> NoReturn:
  """Ends this process after a failure, with `status`, and within seconds.

  A normal exit waits for the others, which would wait for this one: in a computation that it takes no part in any
  more. Cut off, they fail too.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  if status != LOST:  # what is wrong here may be wrong everywhere: then nobody is cut off before having said so
    farewell = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    farewell.start()
    farewell.join(_GRACE)
  os._exit(status)
