"""The ablations of the paper's appendix (Table 6), each trained for the same steps on the same data.

    python benchmarks/ablations.py                            in runs/ablations, preset `demo`
    python benchmarks/ablations.py OUT --only A1 C1 --steps 900 -- --config.seed=1      further arguments of every run

Runs `synclipmae_jax.main` once for the whole model (`ours`, which makes the data) and once for every ablation, in
OUT/NAME, and prints a table of the test split on stderr and a JSON line of each ablation: its Acc at K = 5 over that of
the whole model. Started again it resumes the run that was interrupted; a run whose line is in OUT/rows.jsonl is not
repeated. A run of `demo` takes as long as `make demo`: an hour and more for all six on two cores.

Every model is scored through the views that it was trained with. B1 says something with wav2vec 2.0 only: the "last
layer" of the log-mel front end is its smoothest, so that B1 loses by construction.
"""

import json
import subprocess
import sys
from pathlib import Path

import side_by_side

OUT = Path(__file__).parents[1] / "runs" / "ablations"
PAPER = {"A1": 12.68, "A2": 61.07, "A3": 65.91, "B1": 58.34, "C1": 64.31, "ours": 68.41}  # Table 6: Acc, K = 5, in %

arguments = side_by_side.parser(__doc__)
arguments.add_argument("out", nargs="?", type=Path, default=OUT, help="folder of the runs (default: runs/ablations)")
arguments.add_argument("--preset", default="demo")
arguments.add_argument("--steps", type=int, default=None, help="of every run (default: those of the preset)")
arguments.add_argument("--only", nargs="+", choices=PAPER, default=list(PAPER), metavar="NAME")
if __name__ == "__main__":
  flags, more = side_by_side.parse_with_rest(arguments)

from synclipmae_jax.evaluation.table import markdown

ROOT = Path(__file__).parents[1]
WHOLE = "ours"


def command(out: Path, name: str, *, preset: str, steps: int | None, more: list[str]) -> list[str]:
  """The command of a run. Only that of the whole model has data to make."""
  config = f"configs/pretrain.py:{preset}" + ("" if name == WHOLE else f",{name}")
  words = [sys.executable, "-m", "synclipmae_jax.main", f"--config={config}", f"--workdir={out / name}", *more]
  words += [] if steps is None else [f"--config.train.steps={steps}"]
  if name != WHOLE and not any(word.startswith("--config.data.sources=") for word in more):
    words.append(f"--config.data.sources=(('{out / WHOLE / 'data' / 'prepared'}', 1.0),)")
  return words


def row(name: str, report: dict) -> dict:
  """What is printed of an eval.json."""
  factors = report.get("factors") or {}
  groups = {token: of_one["groups"] for token, of_one in factors.get("tokens", {}).items()}
  numbers = {key: report[key] for key in ("split", "clips", "acc", "offset", "r_precision")}
  return {"name": name, **numbers, "factors": groups or None, "leak_max": factors.get("leak_max")}


def table(rows: list[dict]) -> str:
  """Acc and R-precision in %, as in the paper, and the paper's own Acc at K = 5."""
  percent = lambda value: "-" if value is None else f"{100 * value:.1f}"
  columns = [*(("acc", k) for k in ("k1", "k5", "k15")), *(("r_precision", f"top{k}") for k in (1, 2, 3))]
  body = [
    [one["name"], *(percent(one[group][key]) for group, key in columns), f"{PAPER[one['name']]:.1f}"] for one in rows
  ]
  head = ["", *(f"Acc {key.upper()}" if group == "acc" else f"R@{key[3:]}" for group, key in columns), "paper, K5"]
  return "\n".join(markdown(head, body))


def run_all(out: Path, commands: dict[str, list[str]], settings: dict) -> list[dict]:
  """Runs every command that has no line in OUT/rows.jsonl yet; returns the lines of all."""
  out.mkdir(parents=True, exist_ok=True)
  done, rows = out / "rows.jsonl", []
  lines = [json.loads(line) for line in done.read_text().splitlines()] if done.exists() else []
  if any(line["settings"] != settings for line in lines):
    sys.exit(f"{out} holds runs of other settings ({lines[0]['settings']}): choose another folder")
  for name, words in commands.items():
    found = next((line for line in lines if line["name"] == name), None)
    if found is None:
      subprocess.run(words, cwd=ROOT, check=True, stdout=sys.stderr)
      found = {**row(name, json.loads((out / name / "eval.json").read_text())), "settings": settings}
      with done.open("a") as file:
        file.write(json.dumps(found) + "\n")
    print(json.dumps(found), file=sys.stderr, flush=True)
    rows.append(found)
  return rows


def print_ratios(benchmark: str, rows: list[dict], whole: str, text: str) -> None:
  """Prints the table, and Acc at K = 5 of every run over that of the run `whole`, if that is among them."""
  print(text, file=sys.stderr)
  accuracy = {one["name"]: one["acc"]["k5"] for one in rows}
  for one in rows:
    if one["name"] != whole and accuracy.get(whole):
      of = f"{one['name']} / {whole}"
      side_by_side.print_ratio(
        benchmark, of, accuracy[one["name"]] / accuracy[whole], of=of, unit="Acc, K = 5", row=one
      )


def main(flags, more: list[str]) -> None:
  out = flags.out.resolve()
  settings = {"preset": flags.preset, "steps": flags.steps, "arguments": more}
  commands = {
    name: command(out, name, preset=flags.preset, steps=flags.steps, more=more)
    for name in sorted({WHOLE, *flags.only}, key=lambda name: (name != WHOLE, name))
  }
  rows = run_all(out, commands, settings)
  print_ratios("ablations", rows, WHOLE, table(rows))


if __name__ == "__main__":
  main(flags, more)
