"""The recipe of preset `paper`, and changes of one of its open values, at the size that two cores can train.

    python benchmarks/paper_recipe.py                                      in runs/paper_recipe, on SynthTalk
    python benchmarks/paper_recipe.py --sources "(('runs/grid', 1.0),)"    on these records instead
    python benchmarks/paper_recipe.py OUT --only as_written contrast_0.1 --steps 400
    python benchmarks/paper_recipe.py OUT -- --config.model.decode_frames=1   further arguments

Preset `scaled` of configs/pretrain.py: losses, their weights, masks, jitter, optimiser and schedule of `paper`, sizes
of `demo`. The speech encoder is the log-mel front end: wav2vec 2.0 with random weights would ask another question.
Prints a table of the test split on stderr, and a JSON line of every change: its Acc at K = 5 over that of `as_written`.
It resumes (benchmarks/ablations.py). A run takes a quarter of an hour and more on two cores.
"""

import sys
from pathlib import Path

import side_by_side

OUT = Path(__file__).parents[1] / "runs" / "paper_recipe"
TRIALS = {  # name: what differs from preset `scaled`
  "as_written": {},
  "contrast_0.1": {"loss.weights.contrast": 0.1},
  "lr_2e-3": {"optimizer.peak_lr": 2e-3},
  "muon": {"optimizer.peak_lr": 6e-3, "optimizer.name": "muon"},
  "mouth": {"optimizer.peak_lr": 2e-3, "model.face_weight": 30.0, "model.mouth_weight": 300.0},
}

arguments = side_by_side.parser(__doc__)
arguments.add_argument("out", nargs="?", type=Path, default=OUT, help="folder of the runs (default: runs/paper_recipe)")
arguments.add_argument("--sources", help="records to train on, as of --config.data.sources (default: SynthTalk)")
arguments.add_argument("--steps", type=int, default=900)
arguments.add_argument("--only", nargs="+", choices=TRIALS, default=list(TRIALS), metavar="NAME")
if __name__ == "__main__":
  flags, more = side_by_side.parse_with_rest(arguments)

from ablations import print_ratios, run_all

from synclipmae_jax.evaluation.table import markdown


def table(rows: list[dict]) -> str:
  """Acc, R-precision and the factor matrix, in %."""
  percent = lambda value: "-" if value is None else f"{100 * value:.1f}"
  body = []
  for one in rows:
    factors = one["factors"] or {}
    groups = ["/".join(f"{value:.2f}" for value in factors[token].values()) for token in factors]
    scores = [*(one["acc"][k] for k in ("k1", "k5", "k15")), one["r_precision"]["top1"]]
    body.append([one["name"], *map(percent, scores), ", ".join(groups) or "-"])
  return "\n".join(markdown(["", "Acc K1", "Acc K5", "Acc K15", "R@1", "factors (vocal, ambient, identity)"], body))


def main(flags, more: list[str]) -> None:
  out = flags.out.resolve()
  if flags.sources:
    more = [*more, f"--config.data.sources={flags.sources}"]
  commands = {
    name: [
      sys.executable, "-m", "synclipmae_jax.main", "--config=configs/pretrain.py:scaled", f"--workdir={out / name}",
      f"--config.train.steps={flags.steps}", *(f"--config.{key}={value}" for key, value in TRIALS[name].items()), *more,
    ]
    for name in flags.only
  }  # fmt: skip
  rows = run_all(out, commands, {"steps": flags.steps, "arguments": more})
  print_ratios("paper_recipe", rows, "as_written", table(rows))


if __name__ == "__main__":
  main(flags, more)
