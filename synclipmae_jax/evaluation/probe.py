"""The report of a linear probe: scores beside those of the prior, other choices of features, every class, pictures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synclipmae_jax.evaluation import pictures
from synclipmae_jax.evaluation.report import write_entries, write_text
from synclipmae_jax.evaluation.table import interval_or_null, markdown, number_or_null, value_or_null
from synclipmae_jax.metrics.classification import METRICS, Scores

_HEADS = {
  "accuracy": "accuracy", "balanced_accuracy": "balanced", "auc_micro": "AUC micro", "auc_macro": "AUC macro",
  "map": "mAP",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One choice of features, with the strength of L2 that was chosen for it."""

  name: str
  scores: Scores
  l2: float

  def to_json(self) -> dict[str, Any]:
    found = {
      name: {"value": value_or_null(estimate), "ci95": interval_or_null(estimate)}
      for name, estimate in self.scores.estimates.items()
    }
    return {"features": self.name, "l2": self.l2, **found}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeReport:
  """The first of `rows` is the probe that is kept; `to_json` is the entry `probe` of eval.json."""

  labels: str
  encoder: str
  checkpoint: str
  rows: Sequence[Row]
  split: str
  fitted: tuple[int, int]  # clips, people
  judged: tuple[int, int]
  notes: Sequence[str]

  @property
  def scores(self) -> Scores:
    return self.rows[0].scores

  def to_json(self) -> dict[str, Any]:
    """Fractions in 0..1; null where a number is not defined."""
    of = lambda counts: dict(zip(("clips", "people"), counts, strict=True))
    numbers = lambda values: {
      name: value if isinstance(value, int) else number_or_null(float(value)) for name, value in values.items()
    }
    return {
      "labels": self.labels,
      "encoder": self.encoder,
      "checkpoint": self.checkpoint,
      "split": self.split,
      "rows": [row.to_json() for row in self.rows],
      "prior": numbers(self.scores.prior),
      "classes_counted": self.scores.counted,
      "classes": {name: numbers(dataclasses.asdict(score)) for name, score in self.scores.classes.items()},
      "confusion": None if self.scores.confusion is None else self.scores.confusion.tolist(),
      "fitted_on": of(self.fitted),
      "judged_on": of(self.judged),
      "notes": list(self.notes),
    }

  def markdown(self) -> str:
    several = self.scores.confusion is None
    body = [["prior", *(_percent(self.scores.prior[name]) for name in METRICS)]]
    body += [[row.name, *(_with_interval(row.scores, name) for name in METRICS)] for row in self.rows]
    classes = [
      [name, str(score.clips), *map(_percent, (score.precision, score.recall, score.auc, score.average_precision))]
      for name, score in self.scores.classes.items()
    ]
    accuracy = (
      "Accuracy is the share of right entries at 0.5, balanced the mean of both recalls" if several
      else "Balanced accuracy is the mean recall of the classes"
    )  # fmt: skip
    return "\n".join([
      f"{self.encoder} ({self.checkpoint}), {self.labels}",
      "",
      *markdown(["%", *(_HEADS[name] for name in METRICS)], body),
      "",
      f"Fitted on {self.fitted[0]} clips of {self.fitted[1]} people, measured on {self.judged[0]} clips of"
      f" {self.judged[1]} people of the split {self.split}; in brackets the 95 % interval over clips. {accuracy}. AUC"
      f" macro and mAP count {self.scores.counted} of {len(self.scores.classes)} classes. The prior gives every clip"
      " the frequencies of the clips fitted on.",
      "",
      *markdown(["class, %", "clips", "precision", "recall", "AUC", "AP"], classes),
      "",
      *(f"Note: {note}." for note in self.notes),
    ])  # fmt: skip

  def write(self, workdir: Path) -> list[str]:
    """Writes the entry of eval.json, probe.md and pictures into WORKDIR; returns their names."""
    write_entries(workdir, {"probe": self.to_json()})
    write_text(workdir / "probe.md", f"# Linear probe\n\n{self.markdown()}\n")
    pictures.class_bars(
      workdir / "classes.png", {name: score.auc for name, score in self.scores.classes.items()}, label="AUC", chance=0.5
    )
    if self.scores.confusion is None:
      return ["eval.json", "probe.md", "classes.png"]
    pictures.confusion(workdir / "confusion.png", self.scores.confusion, list(self.scores.classes))
    return ["eval.json", "probe.md", "classes.png", "confusion.png"]


def _percent(value: float) -> str:
  return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _with_interval(scores: Scores, name: str) -> str:
  estimate = scores.estimates[name]
  interval = "" if math.isnan(estimate.low) else f" [{_percent(estimate.low)}, {_percent(estimate.high)}]"
  return _percent(estimate.value) + interval
