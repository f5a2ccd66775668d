"""The ablations of the paper's appendix (Table 6), each trained for the same steps on the same data.

    python benchmarks/ablations.py runs/ablations --preset demo --steps 900
    python benchmarks/ablations.py runs/ablations --only A1 C1 -- --config.seed=1      further arguments of every run

Runs `synclipmae_jax.main` once for the whole model (`ours`, which makes the data) and once for every ablation, in
OUT/NAME, prints a JSON line after each, and at the end a table of the test split. Started again it resumes the run that
was interrupted; a run whose line is in OUT/rows.jsonl is not repeated. A run of `demo` takes as long as `make demo`.

Every model is scored through the views that it was trained with. B1 says something with wav2vec 2.0 only: the "last
layer" of the log-mel front end is its smoothest, so that B1 loses by construction.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from synclipmae_jax.evaluation.table import markdown

ROOT = Path(__file__).parents[1]
WHOLE = "ours"
PAPER = {"A1": 12.68, "A2": 61.07, "A3": 65.91, "B1": 58.34, "C1": 64.31, WHOLE: 68.41}  # Table 6: Acc, K = 5, in %


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
  """Runs every command that has no line in OUT/rows.jsonl yet, prints and returns the lines of all."""
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
    print(json.dumps(found), flush=True)
    rows.append(found)
  return rows


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("out", type=Path)
  parser.add_argument("--preset", default="demo")
  parser.add_argument("--steps", type=int, default=None, help="of every run (default: those of the preset)")
  parser.add_argument("--only", nargs="+", choices=PAPER, default=list(PAPER), metavar="NAME")
  parser.add_argument("more", nargs="*", help="behind --: further arguments of every run")
  flags = parser.parse_args()
  out = flags.out.resolve()
  settings = {"preset": flags.preset, "steps": flags.steps, "arguments": flags.more}
  commands = {
    name: command(out, name, preset=flags.preset, steps=flags.steps, more=flags.more)
    for name in sorted({WHOLE, *flags.only}, key=lambda name: (name != WHOLE, name))
  }
  print(table(run_all(out, commands, settings)))


if __name__ == "__main__":
  main()
