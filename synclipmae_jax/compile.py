"""Compiles the train step of a configuration for a TPU topology, without a TPU, and reports its memory and cost.

    python -m synclipmae_jax.compile --config=configs/pretrain.py --topology=v5p:4x4x8            a report
    python -m synclipmae_jax.compile --config=configs/pretrain.py --topology=v5p:4x4x8 --json     one JSON object
    python -m synclipmae_jax.compile --config=configs/pretrain.py --topology=v5e:16x16 --search=batch
                                                                                          the largest batch that fits

`--search=remat` compiles with every policy of rematerialisation, and names the one of the shortest step that fits.
`--breakdown` says in which parts of the model, and in which pass, the bytes and FLOPs arise. `--slices=2` joins two of
the topology, with `--config.train.mesh="(('slice', 2), ('data', 1), ('fsdp', -1))"`, and says what a chip sends to the
other.

The step is that of main: the same task, mesh, shardings and donation, on shapes instead of arrays. Data and donor
weights are not needed. The compiler is libtpu, installed by `pip install "jax[tpu]"`; it needs some minutes for a step
of the paper's size. Any field of the configuration can be overridden, as for main.

Exit status: 0 the step fits; 1 it does not fit, and options are printed; 2 wrong input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from synclipmae_jax.run.ahead_of_time import EXAMPLES, run
from synclipmae_jax.run.command_line import parse_flags
from synclipmae_jax.types import InputError


def main(_argv: Sequence[str]) -> int:
  """Runs the command given by the flags; returns the exit status."""
  logging.set_verbosity(logging.WARNING)
  jax.config.update("jax_platforms", "cpu")  # do not occupy a TPU of this machine
  given = flags.FLAGS
  try:
    return run(
      given["config"].value,
      topology=given.topology,
      as_json=given.json,
      search=given.search,
      parts=given.breakdown,
      slices=given.slices,
    )
  except InputError as error:
    print(f"synclipmae_jax.compile: {error}", file=sys.stderr)
    return 2


def define_flags() -> None:
  """Defines the flags. Not done on import, because main defines --config too."""
  config_flags.DEFINE_config_file("config", None, "Configuration file, optionally with :PRESET.")
  flags.DEFINE_string("topology", None, f"Chip and torus: {EXAMPLES}.")
  flags.DEFINE_integer("slices", 1, "How many of it are joined; train.mesh needs an axis `slice` then.", lower_bound=1)
  flags.DEFINE_bool("json", False, "Print one JSON object instead of the report.")
  flags.DEFINE_bool("breakdown", False, "Say in which parts of the model the bytes and FLOPs of one chip arise.")
  flags.DEFINE_enum("search", None, ["batch", "remat"], "Find the largest batch, or the quickest remat, that fits.")


if __name__ == "__main__":
  define_flags()
  app.run(
    main,
    flags_parser=lambda argv: parse_flags(argv, program="synclipmae_jax.compile", required=("config", "topology")),
  )
