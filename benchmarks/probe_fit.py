"""Times the fit of a linear probe on 10,000 clips of 80 frames of cached features, beside scikit-learn's.

    python benchmarks/probe_fit.py [WIDTH] [CLASSES]        default: 1024 numbers (the paper's encoder), 35 labels

Random features with labels that they tell in part. Prints the seconds of reading the cache to clip means, of the fit
with its eleven strengths of L2, and of scikit-learn's LogisticRegression (one a label) at the chosen strength; the
memory beyond that of the imports; the target is 30 s on two cores.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from synclipmae_jax.data import features, records
from synclipmae_jax.probing.linear_probe import fit
from synclipmae_jax.probing.sampling import Sampling
from synclipmae_jax.run.probe import Choice, clip_means

CLIPS, FRAMES, DRAWN = 10_000, 80, 250
TOKENS = ("vocal", "ambient")


def write(folder: Path, clips: int, width: int, levels: np.ndarray) -> None:
  """A cache as of `features.write_features`, of clips that do not exist; `levels` [clips, width] are their means."""
  keys = [f"{number:05d}" for number in range(clips)]
  made_of = records.Records(
    directory=folder, split="train", keys=keys, n_frames=np.full(clips, FRAMES), identities=None, preprocessing={},
    vocabularies={}, made_of={"manifest": "none"}, _source=None,
  )  # fmt: skip
  noise = np.random.default_rng(1).normal(size=(DRAWN, FRAMES, width)).astype(np.float16)

  def examples() -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    for number, key in enumerate(keys):
      tokens = noise[number % DRAWN] + levels[number].astype(np.float16)
      yield key, {name: tokens for name in TOKENS}

  builder = features.Features(
    examples={"train": examples()}, clips={"train": made_of}, checkpoint="none", data_dir=folder,
    file_format="array_record",
  )  # fmt: skip
  records.write(builder, folder)


def peak() -> float:
  """GiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(width: int, classes: int, clips: int = CLIPS) -> float:
  """Returns the seconds of reading and fitting."""
  rng = np.random.default_rng(0)
  levels = rng.normal(size=(clips, width)).astype(np.float32)
  truth = levels @ rng.normal(size=(width, classes)) / np.sqrt(width) + rng.logistic(0, 0.5, (clips, classes)) > 0.8
  names = [f"label {c}" for c in range(classes)]
  choice = Choice(tokens=TOKENS, sampling=Sampling(frames=FRAMES))
  with tempfile.TemporaryDirectory() as folder:
    write(Path(folder), clips, width, levels)
    before, started = peak(), time.perf_counter()
    cached = records.open_records(Path(folder) / features.Features.name / "1.0.0", split="train")
    means = clip_means(cached, np.arange(clips), [choice])[0][choice]
    read = time.perf_counter() - started
  started = time.perf_counter()
  fitted = fit(means, truth, np.arange(clips) % 5 == 0, names, several=True)
  seconds = time.perf_counter() - started
  memory = peak() - before
  started = time.perf_counter()
  scaled = StandardScaler().fit_transform(means)
  for c in range(classes):
    LogisticRegression(C=1 / (fitted.l2 * clips), max_iter=500).fit(scaled, truth[:, c])
  theirs = time.perf_counter() - started
  print(f"{clips} clips x {FRAMES} frames of {len(TOKENS)} x {width} numbers, {classes} labels")
  print(f"reading {read:.1f} s, fit of {len(fitted.held_out_loss)} strengths {seconds:.1f} s: {read + seconds:.1f} s")
  print(f"memory {memory:.2f} GiB; one strength in scikit-learn {theirs:.1f} s, ratio {seconds / theirs:.2f}")
  return read + seconds


if __name__ == "__main__":
  main(*(int(value) for value in (sys.argv[1:] + ["1024", "35"][len(sys.argv) - 1 :])))
