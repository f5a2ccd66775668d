"""python -m synclipmae_jax.data.synthtalk --out DIR --train 240 --val 48 --test 60: writes the corpus."""

from __future__ import annotations

import argparse
import sys

from synclipmae_jax.data.synthtalk.clip import HEADS
from synclipmae_jax.data.synthtalk.corpus import write_corpus
from synclipmae_jax.types import InputError


def main() -> int:
  parser = argparse.ArgumentParser(prog="python -m synclipmae_jax.data.synthtalk", description=write_corpus.__doc__)
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.add_argument("--out", required=True, metavar="DIR")
  parser.add_argument("--train", type=int, default=240, help="clips of the training split (default: %(default)s)")
  parser.add_argument("--val", type=int, default=48, help="clips of the validation split (default: %(default)s)")
  parser.add_argument("--test", type=int, default=60, help="clips of the test split (default: %(default)s)")
  parser.add_argument("--seconds", type=float, default=6.0, help="length of a clip (default: %(default)s)")
  parser.add_argument("--size", type=int, default=112, help="width and height in pixels (default: %(default)s)")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--heads", choices=HEADS, default="flat", help="how people look (default: %(default)s)")
  parser.add_argument("--workers", type=int, default=None, help="processes (default: one per core)")
  parser.add_argument("--quiet", action="store_true", help="no progress bar")
  flags = parser.parse_args()
  try:
    print(write_corpus(
      flags.out, clips={split: getattr(flags, split) for split in ("train", "val", "test")}, seconds=flags.seconds,
      size=flags.size, seed=flags.seed, heads=flags.heads, workers=flags.workers, progress=not flags.quiet,
    ))  # fmt: skip
  except InputError as error:
    print(error, file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
