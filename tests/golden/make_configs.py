"""Writes tests/golden/configs/: every preset of every configuration, resolved, and what each ablation changes in it.

    python tests/golden/make_configs.py

Run it after a deliberate change of a value, and commit the difference.
"""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "configs"


def resolve_all() -> dict[str, dict[str, Any]]:
  """`FILE-PRESET` -> {"values": {field path: value}, "ablations": {name: {field path: value}}}."""
  resolved = {}
  for path in sorted((ROOT / "configs").glob("*.py")):
    config = _load(path)
    for preset in _names(config, "?"):
      values = _flat(config, preset)
      ablations = {name: _flat(config, f"{preset},{name}") for name in _names(config, f"{preset},?")}
      resolved[f"{path.stem}-{preset}"] = {
        "values": values,
        "ablations": {name: _changes(values, changed) for name, changed in ablations.items()},
      }
  return resolved


def text(resolved: dict[str, Any]) -> str:
  """One field a line, so that a difference names the field."""
  return json.dumps(resolved, indent=1, sort_keys=True) + "\n"


def _load(path: Path) -> ModuleType:
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _names(config: ModuleType, wrong: str) -> list[str]:
  """The presets, or the ablations, that a configuration lists when it refuses a wrong one."""
  try:
    config.get_config(wrong)
  except ValueError as error:
    kind = "ablation" if "," in wrong else "preset"
    listed = re.fullmatch(rf"unknown {kind} '\?'[^:]*: (?:one of )?(.*)", str(error))
    return re.split(r", | or ", listed[1]) if listed else []
  raise AssertionError(f"{config.__name__} takes {wrong!r}")


def _flat(config: ModuleType, argument: str) -> dict[str, Any]:
  found: dict[str, Any] = {}

  def walk(value: Any, path: str) -> None:
    if isinstance(value, dict) and value:
      for name, inner in value.items():
        walk(inner, f"{path}.{name}" if path else name)
    else:
      found[path] = value

  walk(json.loads(config.get_config(argument).to_json_best_effort()), "")
  return found


def _changes(values: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in changed.items() if name not in values or values[name] != value}


def main() -> None:
  GOLDEN.mkdir(exist_ok=True)
  for path in GOLDEN.glob("*.json"):
    path.unlink()
  for name, resolved in resolve_all().items():
    (GOLDEN / f"{name}.json").write_text(text(resolved))


if __name__ == "__main__":
  main()
