"""Every value of every preset, against what was committed: a changed default is seen, and meant."""

import difflib

import make_configs
import pytest

RESOLVED = make_configs.resolve_all()
COMMITTED = {path.stem: path for path in make_configs.GOLDEN.glob("*.json")}


def test_every_preset_is_committed_and_no_other():
  assert {"pretrain-paper", "pretrain-demo", "sync-default"} <= RESOLVED.keys()
  assert set(RESOLVED["pretrain-demo"]["ablations"]) == {"A1", "A2", "A3", "B1", "C1"}
  assert sorted(COMMITTED) == sorted(RESOLVED), "run `python tests/golden/make_configs.py` and commit what it writes"


@pytest.mark.parametrize("name", sorted(RESOLVED))
def test_values_are_those_committed(name):
  path = COMMITTED.get(name)
  committed = path.read_text().splitlines() if path else []
  now = make_configs.text(RESOLVED[name]).splitlines()
  difference = "\n".join(difflib.unified_diff(committed, now, "committed", "now", lineterm="", n=0))
  assert not difference, (
    f"{name} has changed:\n{difference}\nIf this is meant, run `python tests/golden/make_configs.py` and commit it."
  )
