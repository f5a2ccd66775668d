"""Runs the job of a configuration in a workdir.

    python -m synclipmae_jax.main --config=configs/pretrain.py:demo --workdir=runs/demo

The same command on the same workdir resumes the run. Any field of the configuration can be overridden, with a type
check: --config.optimizer.peak_lr=5e-4. The workdir holds config.json, initialisation.json, metrics.jsonl,
parameters.txt, checkpoints/, eval.json and pictures.

On many hosts the same command runs on each, with --distributed (synclipmae_jax/run/processes.py).

Exit status: 0 done; 1 the loss is not finite; 2 wrong input, or a checkpoint cannot be written; 130 after Ctrl-C and
143 after SIGTERM, with the state saved; 134 another process of the job is lost (detected in a shared computation, or
after 100 s at the latest).
"""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from synclipmae_jax.run.command_line import parse_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, optionally with :PRESET.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run. An existing run is resumed.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Run as one of many processes, found by jax.distributed (pods).")


def main(_argv: Sequence[str]) -> int:
  """Runs the job given by the flags; returns the exit status."""
  # Imported here because a data worker imports this module again and does not need them.
  from synclipmae_jax.run import jobs, processes
  from synclipmae_jax.train.cpu_settings import apply_cpu_settings
  from synclipmae_jax.train.loop import NonFiniteLoss
  from synclipmae_jax.types import InputError

  logging.set_verbosity(logging.WARNING)  # hides progress messages of libraries
  try:
    if "://" in WORKDIR.value:
      raise InputError(f"--workdir={WORKDIR.value} is not a folder: mount the bucket (see launch/README.md)")
    apply_cpu_settings()
    if DISTRIBUTED.value:
      processes.initialise()
    given = CONFIG.value, Path(WORKDIR.value)
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    return {None: 0, "sigint": 130, "sigterm": 143}[jobs.run(*given, overrides=overrides)]
  except KeyboardInterrupt:  # outside the training loop; the loop saves first
    print("\ninterrupted: results so far are kept; to continue, run the same command again", file=sys.stderr)
    status = 130
  except (InputError, OSError) as error:
    sentence = " ".join(str(error).split()) if isinstance(error, OSError) else error
    print(f"synclipmae_jax.main: {sentence}", file=sys.stderr)
    status = 1 if isinstance(error, NonFiniteLoss) else 2
  except Exception as error:
    if not DISTRIBUTED.value:
      raise
    if processes.is_loss(error):
      sentence = "another process of this job is lost; see its log, then start all processes again to continue"
      print(f"synclipmae_jax.main: {sentence} ({str(error).splitlines()[0]})", file=sys.stderr)
      status = processes.LOST
    else:
      traceback.print_exc()
      status = 1
  if DISTRIBUTED.value or status == 2:  # after a failed save, a thread of Orbax may wait for another for minutes
    processes.leave(status)
  return status


parse = functools.partial(parse_flags, program="synclipmae_jax.main", required=("config", "workdir"))

if __name__ == "__main__":
  app.run(main, flags_parser=parse)
