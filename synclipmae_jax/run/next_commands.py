"""Suggested commands after a run."""

from __future__ import annotations

import sys
from pathlib import Path


def _python() -> Path:
  """The interpreter, as a relative path if it is inside the current folder."""
  here = Path(sys.executable)
  return here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here


def after_pretraining(workdir: Path) -> str:
  """Commands for an ablation and a run on other footage."""
  here = _python()
  again = f"{here} -m synclipmae_jax.main --config=configs/pretrain.py"
  ablation, yours, on_yours = (workdir.parent / name for name in ("demo_A1", "yours", "on_yours"))
  sources = f"--config.data.sources=\"(('{yours}', 1.0),)\""
  return f"""Results: eval.json, metrics.jsonl, pictures and checkpoints in {workdir}
Next:
  {again}:demo,A1 --workdir={ablation}   # an ablation of the paper's appendix
  {here.with_name("synclipmae")} prepare --raw YOUR_VIDEOS --out {yours} --size 96   # prepare your own footage
  {again}:demo --workdir={on_yours} {sources}   # train on it
"""


def after_syncnet(workdir: Path) -> str:
  """Command for the table of the protocol with this model."""
  return f"""Results: eval.json, metrics.jsonl, calibrated parameters and checkpoints in {workdir}
Next:
  {_python()} -m synclipmae_jax.main --config=configs/sync.py --workdir={workdir.parent / "sync"} \\
    --config.models="(('linear', None), ('syncnet', '{workdir}'), ('synclipmae', None))"   # compared with other models
"""
