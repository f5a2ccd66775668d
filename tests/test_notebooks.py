"""The notebooks: each is made of its script, is stripped, uses what exists, and runs from first cell to last."""

import ast
import importlib.util
import os
import sys
from pathlib import Path

import nbformat
import pytest
from ml_collections import ConfigDict
from nbclient import NotebookClient

from synclipmae_jax.run.config_files import load_config

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("make_ipynb", ROOT / "notebooks" / "make_ipynb.py")
make_ipynb = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_ipynb)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What a run must have printed.
SAID = {
  "01_sync": ("delay the sound by 160 ms", "encoded anew: nothing", "cannot be told"),
  "02_factors": ("'identity': (100,",),
  "03_probe": ("prior", "it plays:"),
  "04_convert": ("RANDOM", "'visual_encoder'", "position resized", "left out: nothing"),
  "05_pretrain_tpu": ("4 devices: cpu", "resuming", "the same, bit for bit"),
  "06_dub": ("audio: 75 of 75 pictures dubbed", "known: True", "score at lag 0"),
}
# The configuration that a notebook changes as `config`.
CONFIGURED = {"03_probe": "probe.py:emotion", "04_convert": "pretrain.py:tiny", "05_pretrain_tpu": "pretrain.py:tiny"}
of_each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
  return nbformat.read(path, as_version=4)


def code(path) -> list[str]:
  return [cell.source for cell in read(path).cells if cell.cell_type == "code"]


def test_all_are_there():
  assert [path.stem for path in NOTEBOOKS] == list(SAID)


@of_each
def test_a_notebook_is_made_of_its_script_and_has_no_outputs(path):
  assert path.read_text() == make_ipynb.notebook_text(path.with_suffix(".py")), "run: make notebooks"
  assert all(not cell.outputs and cell.execution_count is None for cell in read(path).cells if cell.cell_type == "code")


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
  monkeypatch.setitem(sys.modules, "google.colab", object())
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


def test_every_field_of_a_configuration_exists():
  assert [path.stem for path in NOTEBOOKS if "load_config(" in "".join(code(path))] == list(CONFIGURED)
  for notebook, name in CONFIGURED.items():
    for node in ast.walk(ast.parse("\n".join(code(ROOT / "notebooks" / f"{notebook}.ipynb")))):
      names, found = chain(node), load_config(name)
      for field in names[1:] if names[:1] == ["config"] else ():
        if not isinstance(found, ConfigDict) or field == "update":
          break
        assert field in found, f"{'.'.join(names)} is no field of {name}"
        found = found[field]


@pytest.mark.slow
@of_each
def test_a_notebook_runs(path, tmp_path):
  environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": os.environ["FAST_COMPILE"]}
  notebook = read(path)
  NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute(
    env=environment
  )
  outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
  said = "".join(output.text for output in outputs if output.output_type == "stream")
  for words in SAID[path.stem]:
    assert words in said, said
  assert any("image/png" in output.get("data", {}) for output in outputs)
