"""`synclipmae wer FILE… --reference FILE`: word and character error rates of what any recogniser read.

FILE holds texts by clip: a Kaldi file, .trn, .tsv, .csv, .jsonl, or the hypo-*.json of AV-HuBERT, which holds the
references too. A reference is such a file, or prepared records as DIR:SPLIT. Both sides are normalised in the same way.
A text that a system lacks counts as empty.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from synclipmae_jax.apps.footage import exit_status
from synclipmae_jax.data import labels, records
from synclipmae_jax.metrics.word_errors import ErrorState, merged
from synclipmae_jax.text import normaliser
from synclipmae_jax.text.hypotheses import read_texts
from synclipmae_jax.text.normaliser import normalise
from synclipmae_jax.types import InputError

Reference = tuple[str, str, str]  # text, corpus, source of the text


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    "synclipmae wer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("files", metavar="FILE", nargs="+", help="what a system read; its row has the name of the file")
  parser.add_argument("--reference", metavar="FILE|DIR:SPLIT", help="what was said")
  parser.add_argument("--labels", choices=labels.TEXT_SOURCES, help="who wrote the reference, where it does not say so")
  parser.add_argument("--json", action="store_true", help="print one object")
  args = parser.parse_args(argv)
  return exit_status("wer", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
  from synclipmae_jax.evaluation.vsr import error_entries, error_table

  given = _references(args.reference, args.labels or "") if args.reference else None
  states: dict[str, ErrorState] = {}
  for file in args.files:
    read = read_texts(file)
    references = given or {key: (text, "", args.labels or "") for key, text in read.references.items()}
    if not references:
      raise InputError(f"{file} holds no references: name what was said with --reference")
    if strange := sorted(read.texts.keys() - references.keys()):
      raise InputError(f"{file} has {len(strange)} clips that the reference lacks, such as {strange[0]}")
    if missing := len(references.keys() - read.texts.keys()):
      print(f"synclipmae wer: {file} lacks {missing} of {len(references)} clips; they count as empty", file=sys.stderr)
    name = Path(file).stem
    states[name if name not in states else str(file)] = merged(
      ErrorState.of(key, normalise(text), normalise(read.texts.get(key, "")), corpus=corpus, label_source=source)
      for key, (text, corpus, source) in references.items()
    )
  if args.json:
    print(json.dumps({"normaliser": normaliser.VERSION, "systems": error_entries(states)}, allow_nan=False))
  else:
    print(error_table(states))
  return 0


def _references(reference: str, source: str) -> Mapping[str, Reference]:
  directory, _, split = reference.rpartition(":")
  if directory and Path(directory).is_dir():
    opened = records.open_records(directory, split=split)
    found = {}
    for index in range(len(opened)):
      record = opened[index]
      if record["text"].strip():
        found[record["key"]] = (record["text"], record["corpus"], source or record["text_source"])
    if not found:
      raise InputError(f"no clip of {reference} has a text")
    return found
  return {key: (text, "", source) for key, text in read_texts(reference).texts.items()}


if __name__ == "__main__":
  sys.exit(main())
