"""Texts by clip, as recognisers write them: references and hypotheses to compare.

    .json    AV-HuBERT's `hypo-*.json`: {"utt_id": [...], "ref": [...], "hypo": [...]}, which holds both sides
    .jsonl   one object a line with a key and a text
    .tsv     a table with a head (.csv: parted by commas), one column of keys and one of texts
    .trn     sclite: `text (key)`
    other    Kaldi: `key text`

Names of the columns and fields are those of KEYS, REFERENCES and HYPOTHESES.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from synclipmae_jax.types import InputError

KEYS = ("key", "utt_id", "id", "clip", "file", "name")
REFERENCES = ("ref", "reference", "label")
HYPOTHESES = ("hypo", "hyp", "hypothesis", "prediction", "text")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
  """The texts of a file by key, and the references that it holds beside them (empty: none)."""

  texts: Mapping[str, str]
  references: Mapping[str, str]


def read_texts(path: str | os.PathLike) -> Texts:
  """The texts of a file in one of the formats above. Raises InputError for another content, and for a key twice."""
  path = Path(path)
  try:
    content = path.read_text("utf-8-sig")
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"the texts {path} cannot be read ({error})") from error
  try:
    rows = list(_rows(content, path.suffix.lower()))
  except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
    raise InputError(f"the texts {path} do not have the form of a {path.suffix or 'Kaldi'} file ({error})") from error
  if not rows:
    raise InputError(f"there is no text in {path}")
  texts: dict[str, str] = {}
  references: dict[str, str] = {}
  for key, text, reference in rows:
    if key in texts:
      raise InputError(f"{path} has two texts of {key}")
    texts[key] = text
    if reference is not None:
      references[key] = reference
  return Texts(texts=texts, references=references)


def _rows(content: str, suffix: str) -> Iterator[tuple[str, str, str | None]]:
  """(key, text, reference or None)."""
  lines = [line for line in content.splitlines() if line.strip()]
  match suffix:
    case ".json":
      fields = json.loads(content)
      names = _columns(fields)
      columns = [fields[name] for name in names if name]
      if len({len(column) for column in columns}) != 1:
        raise ValueError("its lists differ in length")
      for row in zip(*columns, strict=True):
        yield str(row[0]), str(row[1]), str(row[2]) if names[2] else None
    case ".jsonl":
      for line in lines:
        yield _row(json.loads(line))
    case ".tsv" | ".csv":
      for record in csv.DictReader(lines, delimiter="\t" if suffix == ".tsv" else ","):
        yield _row(record)
    case ".trn":
      for line in lines:
        found = re.fullmatch(r"(.*)\(([^()]+)\)\s*", line)
        if not found:
          raise ValueError(f"{line!r} has no (key)")
        yield found[2], found[1].strip(), None
    case _:
      for line in lines:
        key, _, text = line.strip().partition(" ")
        yield key, text.strip(), None


def _row(record: Mapping[str, str]) -> tuple[str, str, str | None]:
  key, text, reference = _columns(record)
  return str(record[key]), record[text] or "", record[reference] if reference else None


def _columns(record: Mapping[str, object]) -> tuple[str, str, str | None]:
  names = {name.lower(): name for name in record}
  found = [next((names[name] for name in known if name in names), None) for known in (KEYS, HYPOTHESES, REFERENCES)]
  if None in found[:2]:
    raise ValueError(f"it has {', '.join(record)}, but no column of keys ({', '.join(KEYS)}) and of texts")
  return found[0], found[1], found[2]
