"""Import rules between the packages (CONTRIBUTING.md)."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "synclipmae_jax"
SHARED = {"types", "sharding"}
ARRAYS = SHARED | {"losses", "text_losses", "metrics", "models", "decoding", "baselines"}
MAY_IMPORT = {
  "types": set(),
  "sharding": {"types"},  # InputError
  "figures": set(),
  "web_page": set(),
  "data": {"types", "data"},
  "text": {"types", "text"},
  "losses": SHARED,
  "text_losses": SHARED,
  "metrics": SHARED | {"metrics"},
  "models": SHARED | {"models"},
  "decoding": SHARED | {"models", "decoding"},
  "checkpoints": SHARED | {"checkpoints"},
  "train": SHARED | {"checkpoints", "train"},
  "baselines": ARRAYS,
  "tasks": ARRAYS | {"tasks"},
  "evaluation": ARRAYS | {"text", "checkpoints", "figures", "web_page", "tasks", "evaluation"},
  "convert": SHARED | {"models", "baselines", "checkpoints", "convert"},
  "inference": SHARED | {"data", "models", "checkpoints", "inference"},
  "sync": SHARED | {"data", "metrics", "figures", "web_page", "inference", "sync"},
  "lipread": SHARED | {"data", "text", "models", "decoding", "checkpoints", "inference", "lipread"},
  "probing": SHARED | {"data", "probing"},
  "dub": ARRAYS | {"data", "checkpoints", "tasks", "inference", "dub"},
  "pretrained": SHARED | {"inference", "sync"},
  "run": ARRAYS
  | {
    "data",
    "text",
    "checkpoints",
    "train",
    "tasks",
    "evaluation",
    "figures",
    "web_page",
    "convert",
    "inference",
    "sync",
    "probing",
    "pretrained",
    "run",
  },
  "apps": ARRAYS
  | {
    "data",
    "text",
    "checkpoints",
    "convert",
    "evaluation",
    "figures",
    "web_page",
    "inference",
    "sync",
    "pretrained",
    "run",
    "lipread",
    "probing",
    "dub",
    "apps",
  },
  "main": {"types", "train", "run"},
  "compile": {"types", "run"},
}


def modules() -> dict[str, Path]:
  """Every module of the package by its dotted name below the package."""
  found = {}
  for path in PACKAGE.rglob("*.py"):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
  return found


def imported_modules(path: Path, known: Mapping[str, Path]) -> set[str]:
  """The modules of the package that a file imports anywhere."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "synclipmae_jax":
      module = ".".join(node.module.split(".")[1:])
      for alias in node.names:
        inner = f"{module}.{alias.name}".lstrip(".")
        found.add(inner if inner in known else module)
    elif isinstance(node, ast.Import):
      found |= {alias.name.split(".", 1)[1] for alias in node.names if alias.name.startswith("synclipmae_jax.")}
  return found - {""}


def rooms_of(names: set[str]) -> set[str]:
  return {name.split(".")[0] for name in names}


def test_every_room_has_a_rule():
  rooms = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
  assert rooms - {"__init__"} == MAY_IMPORT.keys()


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_room_imports_only_what_it_may(room):
  known = modules()
  files = {name: path for name, path in known.items() if name.split(".")[0] == room}
  assert files
  wrong = {
    name: extra for name, path in files.items() if (extra := rooms_of(imported_modules(path, known)) - MAY_IMPORT[room])
  }
  assert not wrong


@pytest.mark.parametrize("of", [lambda name: name, lambda name: name.split(".")[0]], ids=["modules", "rooms"])
def test_there_are_no_import_cycles(of):
  known = modules()
  graph: dict[str, set[str]] = {}
  for name, path in known.items():
    graph.setdefault(of(name), set()).update({of(other) for other in imported_modules(path, known)} - {of(name)})
  graph.pop("", None)  # the exports of the package are imported on first use
  tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the cycle


def test_no_module_has_a_generic_name():
  assert not [path for path in PACKAGE.rglob("*.py") if path.stem in ("utils", "helpers", "common", "misc")]


def test_foreign_frameworks_are_not_imported():
  for path in PACKAGE.rglob("*.py"):
    roots = {
      name.split(".")[0]
      for node in ast.walk(ast.parse(path.read_text()))
      if isinstance(node, ast.Import | ast.ImportFrom)
      for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    assert "tensorflow" not in roots
    if "convert" not in path.parts:
      assert not roots & {"torch", "transformers", "diffusers", "safetensors"}
    if path.relative_to(PACKAGE) != Path("checkpoints/format.py"):
      assert "orbax" not in roots


def test_a_data_worker_imports_no_jax():
  code = (
    "import sys, synclipmae_jax, synclipmae_jax.data.pipeline, synclipmae_jax.data.prepare\n"
    "heavy = {'jax', 'flax', 'tensorflow', 'matplotlib', 'skimage', 'ai_edge_litert', 'synclipmae_jax.models'}\n"
    "heavy &= set(sys.modules)\n"
    "assert not heavy, heavy"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_exports_lazily():
  import synclipmae_jax

  assert synclipmae_jax.SyncLipMAE.__name__ == "SyncLipMAE"
  with pytest.raises(AttributeError):
    synclipmae_jax.nothing  # noqa: B018
