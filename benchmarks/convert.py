"""Time and memory of full-size conversions on the command line, with random weights in the released naming and size.

    python benchmarks/convert.py [NAME ...] [--dir DIR] [--verify]

Targets on 2 cores and 24 GiB: wav2vec2 under 1 minute, Sapiens under 2, VACE-1.3B (bfloat16) under 10 within 12 GiB;
anonymous memory at most 2.6 x the result + 1 GiB. The files take up to 9 GiB of disk while it runs, which is about
fifteen minutes. A JSON line a donor and ratio: seconds to those of the target, memory to the size of the result.
"""

from __future__ import annotations

import functools
import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import side_by_side

NAMES = ("sapiens", "wav2vec2", "wan_vae", "wan_vace")

arguments = side_by_side.parser(__doc__)
arguments.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(NAMES)} (default: all)")
arguments.add_argument("--dir", help="folder for the files (default: a temporary directory)")
arguments.add_argument("--verify", action="store_true", help="include the comparison of the result with the file")
if __name__ == "__main__":
  flags = side_by_side.parse(arguments)
  if unknown := sorted(set(flags.names) - set(NAMES)):
    arguments.error(f"{unknown[0]!r} is not one of {', '.join(NAMES)}")

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from synclipmae_jax.convert import donor
from synclipmae_jax.convert.rules import invert
from synclipmae_jax.sharding import tree_paths

# Sizes of the released models, and the dtype of their files.
FULL = {
  "sapiens": (
    dict(image_size=1024, patch=16, width=1024, depth=24, heads=16, mlp_width=4096, class_token=True), "float32",
  ),
  "wav2vec2": (
    dict(width=768, depth=12, heads=12, mlp_width=3072, conv_width=512, pos_kernel=128, pos_groups=16), "float32",
  ),
  "wan_vae": (dict(base=96, latent=16, multipliers=(1, 2, 4, 4)), "float32"),
  "wan_vace": (
    dict(
      width=1536, depth=30, heads=12, mlp_width=8960, text_width=4096, time_features=256, hints=15, stride=2
    ), "bfloat16",
  ),
}  # fmt: skip
SECONDS = {"sapiens": 120, "wav2vec2": 60, "wan_vace": 600}


def write(name: str, path: Path) -> int:
  """Writes a full-size file of random weights; returns the number of parameters."""
  that, (sizes, dtype) = donor.load(name), FULL[name]
  leaves = {
    path: np.broadcast_to(np.float32(0), leaf.shape)
    for item, module in that.modules(**sizes).items()
    for path, leaf in tree_paths({item: module.abstract})
    if path != "visual_encoder/prompt_tokens"
  }
  random = np.random.default_rng(0)
  shapes = {key: make().shape for key, make in invert(that.namings[0].rules, leaves).items()}
  kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
  save_file({key: random.standard_normal(shape, np.float32).astype(kind) for key, shape in shapes.items()}, path)
  return sum(math.prod(shape) for shape in shapes.values())


def main(flags) -> int:
  missed = False
  for name in flags.names or NAMES:
    with tempfile.TemporaryDirectory(dir=flags.dir) as place:
      source, result = Path(place, f"{name}.safetensors"), Path(place, name)
      known = {"parameters": write(name, source), "dtype": FULL[name][1]}
      words = [name, "--src", source, "--dst", result, "--dtype", known["dtype"], "--json"]
      words += ["--verify"] * flags.verify
      command = [sys.executable, "-m", "synclipmae_jax.convert", *map(str, words)]
      done = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
      shutil.rmtree(result)
    seconds, peak, size = done["seconds"], done["peak_gib"], done["result_gib"]
    limit = min(2.6 * size + 1, 12)
    missed |= seconds > SECONDS.get(name, math.inf) or peak > limit
    show = functools.partial(side_by_side.print_ratio, "convert", seconds=seconds, peak_gib=peak, **known)
    if name in SECONDS:
      show(f"{name}, time", seconds / SECONDS[name], of="conversion / its limit", unit="seconds", target="<= 1")
    show(f"{name}, memory", peak / size, of="peak of anonymous memory / result", unit="bytes",
         target=f"<= {limit / size:.2f}")  # fmt: skip
  return int(missed)


if __name__ == "__main__":
  sys.exit(main(flags))
