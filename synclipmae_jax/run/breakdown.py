"""Where the cost of a compiled step arises: by named part of the model, and by pass.

The names are `jax.named_scope`s of the code, which the compiler keeps with its instructions. A fusion counts where its
result belongs. What the compiler adds has no name of the code: `other/copy` are its copies. The sums are those of
`hlo.read_cost`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypedDict

PARTS = (
  "augmentation", "visual_encoder", "speech_encoder", "audio_adapter", "decoder", "losses", "dit", "vace", "audio_pack",
  "optimizer",
)  # fmt: skip
LAYERS = ("convolutions", "norm", "self_attention", "cross_attention", "scores", "mlp")
OTHER = "other"
# Of a block that is computed again for the gradient, only `recomputed` is what the rematerialisation costs.
FORWARD, RECOMPUTED, BACKWARD = "forward", "recomputed", "backward"


class Row(TypedDict):
  """The cost of one part in one pass, of a step on one chip."""

  part: str  # of PARTS, with the layers of LAYERS below it, "decoder/self_attention/scores"; or below OTHER
  run: str  # FORWARD, RECOMPUTED or BACKWARD
  flops: float
  hbm_bytes: float


def breakdown(by_name: Mapping[str, tuple[float, float]]) -> list[Row]:
  """The rows of `hlo.Cost.by_name`, those that move most first."""
  rows: dict[tuple[str, str], Row] = {}
  for name, (flops, hbm_bytes) in by_name.items():
    part, run = place_of(name)
    row = rows.setdefault((part, run), Row(part=part, run=run, flops=0.0, hbm_bytes=0.0))
    row["flops"] += flops
    row["hbm_bytes"] += hbm_bytes
  return sorted(rows.values(), key=lambda row: -row["hbm_bytes"])


def place_of(op_name: str) -> tuple[str, str]:
  """(part, pass) of a name of `hlo.Cost.by_name`, like `jit(step)/transpose(jvp(decoder))/mlp/dot_general`."""
  if re.fullmatch(r"[\w.\-]+", op_name):  # of an instruction
    return f"{OTHER}/{op_name}", FORWARD
  words = re.findall(r"\w+", op_name)
  part = next((word for word in words if word in PARTS), OTHER)
  layers = dict.fromkeys(word for word in words if word in LAYERS)
  run = RECOMPUTED if "rematted_computation" in words else BACKWARD if "transpose(" in op_name else FORWARD
  return "/".join([part, *layers]), run


def table(rows: Sequence[Row]) -> str:
  """The rows as text, with their sum."""
  flops, hbm_bytes = sum(row["flops"] for row in rows), sum(row["hbm_bytes"] for row in rows)
  lines = [("part", "pass", "GB of HBM", "share", "TFLOP", "share")]
  for row in (*rows, Row(part="all", run="", flops=flops, hbm_bytes=hbm_bytes)):
    moved, computed = row["hbm_bytes"], row["flops"]
    lines.append(
      (row["part"], row["run"], f"{moved / 1e9:.2f}", _share(moved, hbm_bytes), f"{computed / 1e12:.3f}",
       _share(computed, flops))
    )  # fmt: skip
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
  return "\n".join(
    "  ".join(
      cell.ljust(width) if i < 2 else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    )
    for line in lines
  )


def _share(part: float, whole: float) -> str:
  return f"{part / whole:.1%}" if whole else "-"
