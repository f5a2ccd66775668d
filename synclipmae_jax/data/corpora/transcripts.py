"""The transcripts of LRS2 and LRS3: `name.txt` beside `name.mp4`.

Text:  SO WE WENT HOME
Conf:  5
(empty)
WORD START END ASDSCORE
SO 0.10 0.32 7.1
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from synclipmae_jax.data.corpora import reading
from synclipmae_jax.types import InputError


def read(path: Path) -> dict[str, Any]:
  """The text and the times of its words (in `pretrain`), lower-case, as fields of SourceItem; braces are left out.

  What is missing or damaged is named in the provenance and does not cost the file.
  """
  if not path.is_file():
    return {"provenance": {"transcript": "missing"}}
  try:
    lines = reading.read_text(path).splitlines()
    if not lines or not lines[0].startswith("Text:"):
      raise InputError(f"{path.name} does not begin with its text")
  except InputError as error:
    return {"provenance": {"transcript": str(error)}}
  known: dict[str, Any] = {"text": _plain(lines[0].removeprefix("Text:")), "text_source": "human"}
  table = next((at for at, line in enumerate(lines) if line.split()[:3] == ["WORD", "START", "END"]), len(lines))
  rows = [line.split() for line in lines[table + 1 :] if line.strip()]
  try:
    words = tuple(reading.segment(row[1], row[2], _plain(row[0])) for row in rows)
    if [word.start for word in words] != sorted(word.start for word in words):
      raise ValueError("they do not ascend")
  except (ValueError, IndexError) as error:
    return known | {"provenance": {"transcript": f"its words have damaged times ({error})"}}
  return known | {"words": tuple(word for word in words if word.label), "provenance": {"transcript": path.name}}


def _plain(text: str) -> str:
  return " ".join(text.replace("{", "").replace("}", "").lower().split())
