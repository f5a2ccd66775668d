"""What a newcomer may want to do after a run, as commands of this environment."""

from __future__ import annotations

import sys
from pathlib import Path


def _python() -> Path:
  """The interpreter, relative to the current folder where it lies in it."""
  here = Path(sys.executable)
  return here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here


def after_pretraining(workdir: Path) -> str:
  """A longer run, an ablation, a run on one's own footage."""
  here = _python()
  again = f"{here} -m synclipmae_jax.main --config=configs/pretrain.py"
  long, ablation, yours, on_yours = (workdir.parent / name for name in ("long", "demo_A1", "yours", "on_yours"))
  sources = f"--config.data.sources=\"(('{yours}', 1.0),)\""
  return f"""Results: eval.json, metrics.jsonl, pictures and checkpoints in {workdir}
Next:
  {again}:long --workdir={long}   # a longer budget
  {again}:demo,A1 --workdir={ablation}   # an ablation of the paper's appendix
  {here.with_name("synclipmae")} prepare --raw YOUR_VIDEOS --out {yours} --size 64   # your own footage …
  {again}:demo --workdir={on_yours} {sources}   # … and a model of it
"""


def after_syncnet(workdir: Path) -> str:
  """The protocol's table with this model in it."""
  return f"""Results: eval.json, metrics.jsonl, calibrated parameters and checkpoints in {workdir}
Next:
  {_python()} -m synclipmae_jax.main --config=configs/sync.py --workdir={workdir.parent / "sync"} \\
    --config.models="(('linear', None), ('syncnet', '{workdir}'), ('synclipmae', None))"   # beside other models
"""
