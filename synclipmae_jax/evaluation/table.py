"""Formats numbers for tables and JSON: cells, headings, markdown tables, nested dicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from synclipmae_jax.metrics.bootstrap import Estimate


def nest(flat: Mapping[str, Any], convert: Callable[[Any], Any]) -> dict[str, dict[str, Any]]:
  """{"acc/k1": x} -> {"acc": {"k1": convert(x)}}."""
  nested: dict[str, dict[str, Any]] = {}
  for path, value in flat.items():
    group, name = path.split("/")
    nested.setdefault(group, {})[name] = convert(value)
  return nested


def number_or_null(value: float) -> float | None:
  return None if math.isnan(value) else float(value)


def value_or_null(estimate: Estimate) -> float | None:
  return number_or_null(estimate.value)


def interval_or_null(estimate: Estimate) -> list[float] | None:
  return None if math.isnan(estimate.low) else [estimate.low, estimate.high]


def heading(name: str) -> str:
  group, which = name.split("/")
  return f"R@{which[3:]}" if group == "r_precision" else f"{group.capitalize()[:3]} {which.upper()}"


def cell(name: str, value: float) -> str:
  if math.isnan(value):
    return "-"
  return f"{value:.2f}" if "offset" in name else f"{100 * value:.1f}"


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
  widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
  line = lambda cells: "| " + " | ".join(
    text.rjust(width) if i else text.ljust(width) for i, (text, width) in enumerate(zip(cells, widths, strict=True))
  ) + " |"  # fmt: skip
  rule = "|" + "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths)) + "|"
  return [line(head), rule, *map(line, body)]
