"""The toy task and the footage of the neighbouring tests."""

import pathlib
import sys

for folder in ("train", "data"):
  sys.path.append(str(pathlib.Path(__file__).parents[1] / folder))
