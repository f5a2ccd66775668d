"""What every benchmark promises of its command line; nothing is measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COMMANDS = [path.stem for path in sorted(BENCHMARKS.glob("*.py")) if '__name__ == "__main__"' in path.read_text()]
HELP = """
import contextlib, io, runpy, sys
for path in sys.argv[1:]:
  said, sys.argv = io.StringIO(), [path, "--help"]
  try:
    with contextlib.redirect_stdout(said):
      runpy.run_path(path, run_name="__main__")
  except SystemExit as end:
    assert end.code == 0, path
  assert len(said.getvalue()) > 300, path
  heavy = {"jax", "torch", "numpy", "av", "synclipmae_jax"} & set(sys.modules)
  assert not heavy, (path, heavy)
"""


def run(*words, **options):
  return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=60, **options)


def test_each_answers_help_before_it_imports_anything_heavy():
  done = run("-c", HELP, *(BENCHMARKS / f"{name}.py" for name in COMMANDS), env={"PYTHONPATH": str(BENCHMARKS)})
  assert not done.returncode, done.stderr


def test_each_is_in_the_table_and_no_other_is():
  table = (BENCHMARKS / "README.md").read_text()
  listed = [
    line.split("`")[1].removesuffix(".py") for line in table.splitlines() if line.startswith("| `") and ".py" in line
  ]
  assert sorted(listed) == COMMANDS and len(COMMANDS) > 10


def test_each_prints_its_ratios_in_the_one_way():
  texts = {name: (BENCHMARKS / f"{name}.py").read_text() for name in COMMANDS}
  assert not [name for name, text in texts.items() if "print_ratio" not in text]


@pytest.mark.parametrize("name", ["ablations", "paper_recipe"])
def test_arguments_behind_the_dashes_are_those_of_the_runs(name, tmp_path):
  """A command with an unknown flag of its own is refused; the same behind -- reaches the runs."""
  code = "import sys, side_by_side, runpy; sys.argv = sys.argv[1:]; m = runpy.run_path(sys.argv[0])\n"
  code += "print(side_by_side.parse_with_rest(m['arguments']))"
  environment = {"PYTHONPATH": f"{BENCHMARKS}:{BENCHMARKS.parent}"}
  ask = lambda *words: run("-c", code, BENCHMARKS / f"{name}.py", tmp_path, *words, env=environment)
  assert "['--config.seed=1', '-x']" in ask("--steps", "3", "--", "--config.seed=1", "-x").stdout
  assert "unrecognized arguments: --config.seed=1" in ask("--config.seed=1").stderr


def test_the_line_of_a_ratio(monkeypatch, capsys):
  monkeypatch.syspath_prepend(BENCHMARKS)
  import side_by_side

  times = [side_by_side.Times(wall=[4.0, 6.0, 8.0], cpu=[1.0, 2.0, 3.0]), side_by_side.steady(2.0, 3)]
  side_by_side.print_ratio("b", "n", side_by_side.ratio(*times), of="x / y", target="<= 1", more=5)
  side_by_side.print_ratio("b", "n", side_by_side.ratio(*times), of="x / y", unit="processor time")
  side_by_side.print_ratio("b", "n", 0.5, of="x / y", unit="bytes")
  lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [(line["ratio"], line["quartiles"]) for line in lines] == [(3.0, [2.5, 3.5]), (1.0, [0.75, 1.25]), (0.5, None)]
  first = {
    "benchmark": "b",
    "name": "n",
    "unit": "wall time",
    "of": "x / y",
    "target": "<= 1",
    "processor_time": 1.0,
    "more": 5,
  }
  assert first.items() <= lines[0].items() and all("load" in line for line in lines)


def test_a_missing_module_is_one_sentence(monkeypatch, capsys):
  monkeypatch.syspath_prepend(BENCHMARKS)
  import side_by_side

  monkeypatch.setattr(sys, "argv", ["x"])
  monkeypatch.setitem(side_by_side.EXTRAS, "no_such_module", "convert")
  with pytest.raises(SystemExit, match=r'needs no_such_module: pip install -e ".\[convert\]"'):
    side_by_side.parse(side_by_side.parser("x"), needs=["no_such_module"])
