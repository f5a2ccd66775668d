"""Who may import whom (CONTRIBUTING.md): the rule that keeps the rooms of the house apart."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "synclipmae_jax"
SHARED = {"types", "sharding"}
MAY_IMPORT = {
  "types": set(),
  "sharding": {"types"},  # InputError
  "data": {"types", "data"},
  "losses": SHARED,
  "metrics": SHARED | {"metrics"},
  "models": SHARED | {"models"},
  "checkpoints": SHARED | {"checkpoints", "train"},
  "train": SHARED | {"checkpoints", "train"},
  "baselines": SHARED | {"metrics", "models", "losses", "baselines"},
  "tasks": SHARED | {"losses", "metrics", "models", "baselines", "tasks"},
  "evaluation": SHARED | {"losses", "metrics", "models", "baselines", "tasks", "evaluation"},
  "convert": SHARED | {"models", "baselines", "checkpoints", "convert"},
}


def imports(path: Path) -> set[str]:
  """The rooms of ours that a file imports, anywhere in it."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "synclipmae_jax":
      rest = node.module.split(".")[1:]
      found |= {rest[0]} if rest else {alias.name for alias in node.names}
    elif isinstance(node, ast.Import):
      found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("synclipmae_jax.")}
  return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_room_imports_only_what_it_may(room):
  files = [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").exists() else sorted((PACKAGE / room).rglob("*.py"))
  assert files
  wrong = {str(path.relative_to(PACKAGE)): extra for path in files if (extra := imports(path) - MAY_IMPORT[room])}
  assert not wrong


def test_no_drawer_without_a_name():
  assert not [path for path in PACKAGE.rglob("*.py") if path.stem in ("utils", "helpers", "common", "misc")]


def test_foreign_frameworks_stay_out():
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
    if path.relative_to(PACKAGE) != Path("checkpoints/checkpoint.py"):
      assert "orbax" not in roots


def test_a_data_worker_starts_light():
  code = (
    "import sys, synclipmae_jax, synclipmae_jax.data.pipeline, synclipmae_jax.data.prepare\n"
    "heavy = {'jax', 'flax', 'tensorflow', 'matplotlib', 'skimage', 'synclipmae_jax.models'} & set(sys.modules)\n"
    "assert not heavy, heavy"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_exports_lazily():
  import synclipmae_jax

  assert synclipmae_jax.SyncLipMAE.__name__ == "SyncLipMAE"
  with pytest.raises(AttributeError):
    synclipmae_jax.nothing  # noqa: B018
