"""What the gate on A/V offsets is worth: two runs on real footage of which a third is out of sync, gate on and off.

    python benchmarks/sync_gate.py [OUT] [--raw FOLDER] [--sync-model CHECKPOINT]       about half an hour on two cores

FOLDER is a corpus as `synclipmae prepare` reads it, say GRID; default: SynthTalk, made in OUT/raw. Of its training
clips a third is shifted by up to 10 frames and prepared as footage of unknown lag, once with the gate and once without.
A model of the preset `demo` is trained on each, with the same seed and steps, and both are measured on the same
held-out clips, which are not shifted. Prints two JSON lines, of Acc and of R@1, with what the gate found. Started again
it continues.

The embedded model has learned from SynthTalk and GRID, which flatters it there; --sync-model names another, or `lips`.
"""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import side_by_side

OUT = Path(__file__).parents[1] / "runs" / "sync_gate"

arguments = side_by_side.parser(__doc__)
arguments.add_argument("out", nargs="?", type=Path, default=OUT, help="folder of the runs (default: runs/sync_gate)")
arguments.add_argument("--raw", type=Path, help="folder of a corpus (default: SynthTalk, made in OUT/raw)")
arguments.add_argument("--sync-model", help="checkpoint of the gate: a workdir or a step (default: the embedded one)")
arguments.add_argument("--min-sync", type=float, default=0.0, help="of the gate, as in `synclipmae prepare`")
arguments.add_argument("--preset", default="demo", help="of configs/pretrain.py")
arguments.add_argument("--steps", type=int, default=400)
arguments.add_argument("--clips", type=int, default=600, help="for training")
arguments.add_argument("--held-out", type=int, default=64, help="clips")
arguments.add_argument("--size", type=int, default=96, help="pixels of the clips")
arguments.add_argument("--seed", type=int, default=0)
arguments.add_argument("--workers", type=int, default=os.cpu_count())
if __name__ == "__main__":
  flags = side_by_side.parse(arguments)

import numpy as np

from synclipmae_jax.data import corpora
from synclipmae_jax.data.media.remux import fix_lag
from synclipmae_jax.data.prepare import prepare
from synclipmae_jax.data.quality import IN_SYNC, Gates
from synclipmae_jax.data.synthtalk.corpus import write_corpus
from synclipmae_jax.types import FPS

ROOT = Path(__file__).parents[1]
MAX_SHIFT = 10  # frames
ARMS = {"gate_off": False, "gate_on": True}


def write_shifted(items, folder: Path, *, seed: int) -> dict[str, int]:
  """Copies of the files, a third of them shifted; the shift of every copy in frames, positive: the picture is late."""
  rng = np.random.default_rng(seed)
  every = [shift for shift in range(-MAX_SHIFT, MAX_SHIFT + 1) if abs(shift) > IN_SYNC]
  shifts = np.zeros(len(items), int)
  moved = rng.permutation(len(items))[: len(items) // 3]
  shifts[moved] = rng.choice(every, len(moved))
  folder.mkdir(parents=True, exist_ok=True)
  found = {}
  for item, shift in zip(items, shifts.tolist(), strict=True):
    copy = folder / f"{item.identity}-{item.path.stem}{item.path.suffix if not shift else '.mkv'}"
    found[copy.name] = shift
    if not copy.exists():
      if shift:
        fix_lag(item.path, copy, lag_ms=-1000 / FPS * shift)
      else:
        copy.symlink_to(item.path.resolve())
  return found


def write_held_out(items, folder: Path) -> None:
  """The held-out files as a packed GRID folder with the one split `test`, which takes any files of lag 0."""
  folder.mkdir(parents=True, exist_ok=True)
  lines = ["file\tspeaker\tsplit\ttext"]
  for item in items:
    copy = folder / f"{item.identity}-{item.path.name}"
    if not copy.is_symlink():
      copy.symlink_to(item.path.resolve())
    lines.append(f"{copy.name}\t{item.speaker}\ttest\t{item.text}")
  (folder / "clips.tsv").write_text("\n".join(lines) + "\n")


def found_by_gate(manifest, shifts: dict[str, int]) -> dict:
  """How many clips were shifted, and what the gate did with them."""
  counts = Counter(
    shifted=0, in_sync=0, shifted_corrected=0, shifted_corrected_rightly=0, in_sync_corrected=0, refused=0
  )
  for entry in manifest.entries:
    shift = shifts[entry["file"]]
    kind = "shifted" if shift else "in_sync"
    counts["refused"] += len(entry["refused"])
    for clip in entry["clips"]:
      counts[kind] += 1
      if "offset" in clip:
        counts[f"{kind}_corrected"] += 1
        counts["shifted_corrected_rightly"] += bool(shift) and abs(clip["offset"] - shift) <= IN_SYNC
  return dict(counts)


def spread(items: list, count: int) -> list:
  """As many of the items, evenly spread."""
  return [items[k] for k in np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)]


def call(config: str, workdir: Path, **fields) -> None:
  """Runs a configuration; its output goes to stderr."""
  words = [f"--config.{name}={value}" for name, value in fields.items()]
  command = [sys.executable, "-m", "synclipmae_jax.main", f"--config=configs/{config}", f"--workdir={workdir}", *words]
  subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)


def divide(flags, out: Path) -> tuple[list, list]:
  """Items to train on and held-out ones, as many as the flags say, evenly spread."""
  if flags.raw:
    items = [item for item in corpora.load("auto")(flags.raw.resolve()) if item.path.exists()]
    training, held_out = ([item for item in items if (item.split == "train") == wanted] for wanted in (True, False))
  else:  # its split `train` alone is in sync
    write_corpus(out / "raw", clips={"train": flags.clips + flags.held_out}, size=128, seed=flags.seed)
    items = list(corpora.load("synthtalk")(out / "raw"))
    training, held_out = items[: flags.clips], items[flags.clips :]
  return spread(training, flags.clips), spread(held_out, flags.held_out)


def main(flags) -> None:
  out = flags.out.resolve()

  from synclipmae_jax.pretrained import SyncLipMAE  # here: the processes that cut clips import this file
  from synclipmae_jax.sync.offsets import ClipOffsets, LipOffsets

  def load() -> ClipOffsets | LipOffsets:
    if flags.sync_model == "lips":
      return LipOffsets()
    model = SyncLipMAE.load(flags.sync_model)
    return ClipOffsets(model.embedder, model.calibration)

  training, held_out = divide(flags, out)
  settings = dict(size=flags.size, workers=flags.workers)

  shifts = write_shifted(training, out / "shifted", seed=flags.seed)
  write_held_out(held_out, out / "held_out")
  prepare(out / "held_out", out / "clean", corpus="grid", **settings)
  gates, report = Gates(min_sync=flags.min_sync), {}
  for name, on in ARMS.items():
    if on and not (out / name / "clips").exists():  # they are the same: the gate works on finished clips
      shutil.copytree(out / "gate_off" / "clips", out / name / "clips")
    manifest = prepare(
      out / "shifted", out / name, corpus="folder", gates=gates, offset_model=load if on else None, **settings
    )
    report[name] = found_by_gate(manifest, shifts)
  for name in ARMS:
    sources = f"(('{out / name}', 1.0),)"
    call(
      f"pretrain.py:{flags.preset}", out / f"run_{name}",
      **{"data.sources": sources, "data.image_size": flags.size, "train.steps": flags.steps, "seed": flags.seed,
         "train.eval_every": flags.steps, "train.pictures_every": flags.steps},
    )  # fmt: skip
  models = tuple(("synclipmae", str(out / f"run_{name}")) for name in ARMS)
  call(
    "sync.py", out / "measured",
    **{"models": models, "data.sources": f"(('{out / 'clean'}', 1.0),)", "data.image_size": flags.size,
       "data.eval_clips": flags.held_out},
  )  # fmt: skip
  rows = json.loads((out / "measured" / "sync.json").read_text())["rows"]
  for name, row in zip(ARMS, rows, strict=True):
    report[name] |= {"held_out_clips": row["clips"], "acc": row["acc"], "r@1": row["r_precision"]["top1"]}
  for name, score in (("Acc, K = 5", lambda row: row["acc"]["k5"]), ("R@1", lambda row: row["r@1"])):
    off, on = (score(report[arm]) for arm in ARMS)
    side_by_side.print_ratio("sync_gate", name, on / off if off else 0.0, of="gate on / gate off", unit=name,
                             steps=flags.steps, sync_model=flags.sync_model or "embedded", **report)  # fmt: skip


if __name__ == "__main__":
  main(flags)
