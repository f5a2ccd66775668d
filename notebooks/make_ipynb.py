"""Makes the .ipynb of this folder from the .py beside them, without outputs:

python notebooks/make_ipynb.py
"""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat

SCRIPTS = sorted(Path(__file__).parent.glob("[0-9]*.py"))


def notebook_text(script: Path) -> str:
  """The notebook of a script, the same in every call: cells are named by their number."""
  notebook = jupytext.read(script)
  for number, cell in enumerate(notebook.cells):
    cell.id = f"cell-{number:02}"
  nbformat.validate(notebook)
  return nbformat.writes(notebook) + "\n"


def main() -> None:
  for script in SCRIPTS:
    script.with_suffix(".ipynb").write_text(notebook_text(script), encoding="utf-8")


if __name__ == "__main__":
  main()
