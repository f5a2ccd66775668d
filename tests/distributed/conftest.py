"""Makes the toy task and the footage of other tests importable."""

import pathlib
import sys

for folder in ("train", "data"):
  sys.path.append(str(pathlib.Path(__file__).parents[1] / folder))
