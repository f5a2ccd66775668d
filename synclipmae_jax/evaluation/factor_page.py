"""WORKDIR/report.html of the factor report: one page with the tables and all pictures; the numbers are in eval.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from synclipmae_jax import web_page

# Heading of a table -> the pictures below it, and what they show.
_PICTURES = {
  "What the tokens hold": {"factors": "R² of every token (rows) to every factor and every parameter."},
  "Who is who": {"roc": "Pairs of clips that are taken for one person, at every threshold."},
  "Faces decoded from several people": {
    "swaps": "Rendered people: identity of A, mouth of B, pose of C, the true picture, and what is decoded.",
  },
  "What goes together": {"correlation": "|r| of all numbers of the three tokens, over frames."},
  "What lies near": {"neighbours": "A frame, and the nearest frames of other clips by each token."},
  "One token changes": {
    "strip": "One face; in each pair of rows one token comes from the frames above, and all else stays as it is.",
  },
}


def write_page(
  workdir: Path, *, intro: str, tables: Mapping[str, str], pictures: Mapping[str, np.ndarray], notes: Sequence[str]
) -> None:
  """Replaces WORKDIR/report.html. `tables`: heading -> markdown tables and text; "" is left out."""
  parts = ["<h1>Factor report</h1>", f"<p>{web_page.text(intro)}.</p>"]
  parts += [f"<p>Note: {web_page.text(note)}.</p>" for note in notes]
  for heading in (*tables, "One token changes"):
    drawn = [
      f'<div class="wide"><p>{web_page.text(caption)}</p>{web_page.image(pictures[name], caption)}</div>'
      for name, caption in _PICTURES.get(heading, {}).items()
      if name in pictures
    ]
    parts += web_page.section(web_page.text(heading), _html(tables.get(heading, "")) + "".join(drawn))
  path = workdir / "report.html"
  partial = path.with_name(path.name + ".tmp")
  partial.write_bytes(web_page.page("Factor report", parts))
  partial.replace(path)


def _html(markdown: str) -> str:
  """Tables of `table.markdown`, and lines of text between them."""
  parts, rows = [], []
  for line in [*markdown.split("\n"), ""]:
    if line.startswith("|"):
      rows.append([cell.strip() for cell in line.strip("|").split("|")])
      continue
    if rows:
      parts.append(web_page.table(rows[0], rows[2:]))  # the second row is the rule below the headings
      rows = []
    if line:
      parts.append(f"<p>{web_page.text(line)}</p>")
  return "".join(parts)
