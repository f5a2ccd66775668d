"""The notebooks: each agrees with its script, is stripped, uses what exists, and runs from the first cell to the last."""

import ast
import importlib
import os
from pathlib import Path

import jupytext
import nbformat
import pytest
from ml_collections import ConfigDict
from nbclient import NotebookClient

from synclipmae_jax.run.config_files import load_config
from synclipmae_jax.types import InputError

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What a run must have printed.
SAID = {
  "01_sync": ("delay the sound by 160 ms", "encoded anew: nothing", "cannot be told"),
  "02_factors": ("'identity': (100,",),
  "03_probe": ("prior", "it plays:"),
  "04_convert": ("RANDOM", "'visual_encoder'", "position resized", "left out: nothing"),
  "05_pretrain_tpu": ("4 devices: cpu", "resuming", "the same, bit for bit"),
}
of_each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
  return nbformat.read(path, as_version=4)


def code(path) -> list[str]:
  return [cell.source for cell in read(path).cells if cell.cell_type == "code"]


def test_all_are_there():
  assert [path.stem for path in NOTEBOOKS] == list(SAID)


@of_each
def test_a_notebook_is_its_script_without_outputs(path):
  notebook, script = read(path), jupytext.read(path.with_suffix(".py"))
  nbformat.validate(notebook)
  cells = lambda of: [(cell.cell_type, cell.source) for cell in of.cells]
  assert cells(notebook) == cells(script), f"run: make notebooks ({path.name} and its .py differ)"
  assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
  assert not [cell.id for cell in notebook.cells if cell.metadata]


def test_all_install_alike():
  wanted = None
  for path in NOTEBOOKS:
    lines = [line for line in code(path)[0].splitlines() if not line.startswith("EXTRAS =")]
    wanted = wanted or lines
    assert lines == wanted and lines[0].startswith('REPOSITORY = ""')


def test_the_install_cell_asks_for_the_repository_on_colab(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(SystemExit, match="choose the kernel"):
    exec(code(NOTEBOOKS[0])[0], {})
  monkeypatch.setitem(importlib.import_module("sys").modules, "google.colab", object())
  with pytest.raises(SystemExit, match="Set REPOSITORY"):
    exec(code(NOTEBOOKS[0])[0], {})


def chain(node: ast.AST) -> list[str]:
  """["a", "b", "c"] of the expression a.b.c; [] of another."""
  names = []
  while isinstance(node, ast.Attribute):
    names.insert(0, node.attr)
    node = node.value
  return [node.id, *names] if isinstance(node, ast.Name) else []


@of_each
def test_what_a_notebook_uses_exists(path):
  tree = ast.parse("\n".join(code(path)))
  known = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "synclipmae_jax":
      module = importlib.import_module(node.module)
      for alias in node.names:
        if not hasattr(module, alias.name):  # a module that nobody has imported yet
          importlib.import_module(f"{node.module}.{alias.name}")
        known[alias.asname or alias.name] = getattr(module, alias.name)
  assert known
  for node in ast.walk(tree):
    name, *attributes = chain(node) or [""]
    found = known.get(name)
    for attribute in attributes if name in known else ():
      assert hasattr(found, attribute), f"{'.'.join([name, *attributes])}, line {node.lineno} of the code"
      found = getattr(found, attribute)


@of_each
def test_every_field_of_a_configuration_exists(path):
  tree = ast.parse("\n".join(code(path)))
  calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and chain(node.func) == ["load_config"]]
  for call in calls:
    # A preset that is a variable is the default one of the notebook: `tiny`, or the only one beside it.
    name = "".join(
      part.value if isinstance(part, ast.Constant) else "{}" for part in getattr(call.args[0], "values", [])
    )
    name = name or call.args[0].value
    config = load_config(name.format("emotion" if "probe" in name else "tiny"))
    for node in ast.walk(tree):
      names = chain(node)
      found = config
      for field in names[1:] if names[:1] == ["config"] else ():
        if not isinstance(found, ConfigDict) or field == "update":
          break
        assert field in found, f"{'.'.join(names)} is no field of {name}"
        found = found[field]


def test_load_config(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert load_config("configs/pretrain.py:tiny,A1").model.views == "uniform"
  assert load_config("pretrain.py").train.steps == 400_000
  with pytest.raises(InputError, match="unknown preset 'none'"):
    load_config("pretrain.py:none")


@pytest.mark.slow
@of_each
def test_a_notebook_runs(path, tmp_path):
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # as a user has it
  environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  notebook = read(path)
  NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute(
    env=environment
  )
  outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
  said = "".join(output.text for output in outputs if output.output_type == "stream")
  for words in SAID[path.stem]:
    assert words in said, said
  assert any("image/png" in output.get("data", {}) for output in outputs)
