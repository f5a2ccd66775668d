"""Parses the flags of programs with a configuration. An error prints one sentence and exits with status 2."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from absl import flags

from synclipmae_jax.run.config_files import with_config_found


def parse_flags(argv: Sequence[str], *, program: str, required: Sequence[str]) -> list[str]:
  """Like absl's parser, but any error in a flag or the configuration prints one sentence."""
  try:
    rest = flags.FLAGS(with_config_found(argv))
    if len(rest) > 1:
      raise flags.Error(f"unexpected argument {rest[1]!r}: every argument starts with --")
    for name in required:
      if not flags.FLAGS["help"].value and flags.FLAGS[name].value is None:
        raise flags.Error(f"--{name} is missing")
    return rest
  except (AttributeError, KeyError) as error:  # ml_collections names the field without its path
    unknown = re.search(r"\w+", str(error)).group()
    sentence = str(error).strip("'\"")
    sentence = f"the configuration has no such field: {next((a for a in argv if unknown in a), sentence)}"
  except (flags.Error, ValueError, TypeError, SyntaxError, OSError) as error:
    sentence = str(error.args[0] if error.args else error).strip().splitlines()[-1]
  print(f"{program}: {sentence} (see --help)", file=sys.stderr)
  sys.exit(2)
