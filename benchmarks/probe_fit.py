"""Times the fit of a linear probe on 10,000 clips of 80 frames of cached features, beside scikit-learn's.

    python benchmarks/probe_fit.py [WIDTH] [CLASSES] [--clips 10000]     default: 1024 numbers (the paper's encoder), 35

Random features with labels that they tell in part; some minutes, and 4 GB of disk, or little of both with fewer clips.
Prints two JSON lines: the seconds of reading the cache to clip means and of the fit with its eleven strengths of L2 to
the target, 30 s on two cores; and the fit to scikit-learn's LogisticRegression (one a label) at the chosen strength.
`memory_gib` is beyond that of the imports. Needs scikit-learn.
"""

import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import side_by_side

arguments = side_by_side.parser(__doc__)
arguments.add_argument("width", nargs="?", type=int, default=1024, help="numbers of a token")
arguments.add_argument("classes", nargs="?", type=int, default=35, help="labels")
arguments.add_argument("--clips", type=int, default=10_000)
if __name__ == "__main__":
  flags = side_by_side.parse(arguments, needs=["sklearn"])

import numpy as np
from side_by_side import Times, in_turn, print_ratio, ratio, steady
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from synclipmae_jax.data import features, records
from synclipmae_jax.probing.linear_probe import fit
from synclipmae_jax.probing.sampling import Sampling
from synclipmae_jax.run.probe import Choice, clip_means

FRAMES, DRAWN, TARGET = 80, 250, 30.0  # frames of a clip, different noises, seconds
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


def main(width: int, classes: int, clips: int) -> None:
  rng = np.random.default_rng(0)
  levels = rng.normal(size=(clips, width)).astype(np.float32)
  truth = levels @ rng.normal(size=(width, classes)) / np.sqrt(width) + rng.logistic(0, 0.5, (clips, classes)) > 0.8
  names = [f"label {c}" for c in range(classes)]
  choice = Choice(tokens=TOKENS, sampling=Sampling(frames=FRAMES))
  found = {}
  with tempfile.TemporaryDirectory() as folder:
    write(Path(folder), clips, width, levels)
    before = peak()

    def read() -> None:
      cached = records.open_records(Path(folder) / features.Features.name / "1.0.0", split="train")
      found["means"] = clip_means(cached, np.arange(clips), [choice])[0][choice]

    times = in_turn({"reading": read}, rounds=1)

  def ours() -> None:
    found["fit"] = fit(found["means"], truth, np.arange(clips) % 5 == 0, names, several=True)

  def theirs() -> None:
    scaled = StandardScaler().fit_transform(found["means"])
    for c in range(classes):
      LogisticRegression(C=1 / (found["fit"].l2 * clips), max_iter=500).fit(scaled, truth[:, c])

  times |= in_turn({"fit": ours}, rounds=1)
  memory = peak() - before
  times |= in_turn({"scikit-learn": theirs}, rounds=1)
  whole = Times(**{
    kind: [getattr(times["reading"], kind)[0] + getattr(times["fit"], kind)[0]] for kind in ("wall", "cpu")
  })  # fmt: skip
  known = {"clips": clips, "width": width, "labels": classes, "memory_gib": round(memory, 2)}
  known |= {f"{name}_s": round(each.wall[0], 2) for name, each in times.items()}
  print_ratio("probe_fit", "reading and fit", ratio(whole, steady(TARGET, 1)), of=f"time / {TARGET:g} s",
              target="<= 1", **known)  # fmt: skip
  of = f"{len(found['fit'].held_out_loss)} strengths here / one in scikit-learn"
  print_ratio("probe_fit", "fit", ratio(times["fit"], times["scikit-learn"]), of=of, **known)


if __name__ == "__main__":
  main(flags.width, flags.classes, flags.clips)
