"""Runs a job: a configuration in, a workdir out.

    python -m synclipmae_jax.main --config=configs/pretrain.py:demo --workdir=runs/demo

Started again on the same workdir it resumes. Any field of the configuration can be overridden, typed and checked:
--config.optimizer.peak_lr=5e-4. The workdir holds config.json, initialisation.json, metrics.jsonl, parameters.txt,
checkpoints/, eval.json and pictures.

Exit status: 0 done; 1 the loss is no number; 2 wrong input; 130 after Ctrl-C, 143 after SIGTERM, the state saved.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, and behind a colon its preset.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; an existing one is resumed.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of many processes, as found by jax.distributed (pods).")


def main(_argv: Sequence[str]) -> int:
  """Runs the job of the flags; the exit status."""
  # Here and not above: a data worker imports this module again, and needs none of it.
  import jax

  from synclipmae_jax import job
  from synclipmae_jax.train.loop import NonFiniteLoss
  from synclipmae_jax.types import InputError

  logging.set_verbosity(logging.WARNING)  # the libraries' own progress reports
  try:
    if DISTRIBUTED.value:
      jax.distributed.initialize()
    result = job.run(
      CONFIG.value, Path(WORKDIR.value), overrides=config_flags.get_override_values(flags.FLAGS["config"])
    )
  except KeyboardInterrupt:  # outside the loop, which saves first
    print("\ninterrupted: what was made is kept; to go on, run the same command again", file=sys.stderr)
    return 130
  except (InputError, OSError) as error:
    sentence = " ".join(str(error).split()) if isinstance(error, OSError) else error
    print(f"synclipmae_jax.main: {sentence}", file=sys.stderr)
    return 1 if isinstance(error, NonFiniteLoss) else 2
  return {None: 0, "sigint": 130, "sigterm": 143}[result.stopped]


def parse_flags(argv: Sequence[str]) -> list[str]:
  """Like absl's own, but a wrong flag or configuration is one sentence, whatever raised it."""
  try:
    rest = flags.FLAGS(argv)
    if len(rest) > 1:
      raise flags.Error(f"what is {rest[1]!r}? every argument starts with --")
    for flag in (CONFIG, WORKDIR):
      if not flags.FLAGS["help"].value and flag.value is None:
        raise flags.Error(f"--{flag.name} is missing")
    return rest
  except (AttributeError, KeyError) as error:  # ml_collections names the field, without its path
    unknown = re.search(r"\w+", str(error)).group()
    sentence = str(error).strip("'\"")
    sentence = f"the configuration has no such field: {next((a for a in argv if unknown in a), sentence)}"
    print(f"synclipmae_jax.main: {sentence} (see --help)", file=sys.stderr)
    sys.exit(2)
  except (flags.Error, ValueError, TypeError, SyntaxError, OSError) as error:
    sentence = str(error.args[0] if error.args else error).strip().splitlines()[-1]
    print(f"synclipmae_jax.main: {sentence} (see --help)", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)
