"""Text of `synclipmae prepare --probe`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from synclipmae_jax.web_page import printable

_SHOWN = 20  # refusals, and values of one kind, that are printed; --json has all


def lines(found: Mapping[str, Any]) -> Iterator[str]:
  """The lines that say what `data.probe.probe` found."""
  yield f"corpus {found['corpus']}: {found['files']} files, {found['readable']} readable, {span(found['seconds'])}"
  for split, known in found["splits"].items():
    yield f"  {split:8} {known['files']} files of {known['groups']} groups, {span(known['seconds'])}"
  for name, heading, unit in (
    ("resolutions", "pictures", ""), ("fps", "frames/s", ""), ("sample_rates", "sound", " Hz"),
  ):  # fmt: skip
    if found[name]:
      yield f"{heading}: {listed(found[name], unit)}"
  for name, count in found["labelled"].items():
    if count and name != "text_source":
      kinds = listed(found["labels"].get(name, {}))
      yield f"with {name}: {count} files" + (f" ({kinds})" if kinds else "")
  reasons = found["reasons"]
  if reasons:
    yield f"{len(reasons)} would be refused at once:"
  for file, reason in list(reasons.items())[:_SHOWN]:
    yield f"  {printable(file)}: {printable(reason)}"
  if len(reasons) > _SHOWN:
    yield f"  … and {len(reasons) - _SHOWN} more (--json lists all)"
  yield "Nothing was converted. A readable file may still be refused for its face, its sound or damage."


def span(seconds: float) -> str:
  return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.1f} s"


def listed(counts: Mapping[str, int], unit: str = "") -> str:
  """ "25 (8 files), 30 (2)", the most frequent first."""
  shown = [f"{printable(name)}{unit} {count}" for name, count in list(counts.items())[:_SHOWN]]
  return ", ".join(shown) + (", …" if len(counts) > _SHOWN else "")
