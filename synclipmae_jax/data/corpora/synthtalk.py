"""SynthTalk as `data.synthtalk` writes it: corpus.json, and <split>/<split>_00000.mp4 with the truth beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from synclipmae_jax.data.corpora import SourceItem
from synclipmae_jax.types import InputError, Segment


def recognises(raw: Path) -> bool:
  return (raw / "corpus.json").exists()


def items(raw: Path) -> Iterator[SourceItem]:
  """Every clip that corpus.json promises, whether or not its file is there."""
  try:
    corpus = json.loads((raw / "corpus.json").read_text())
    splits = dict(corpus["splits"])
    vocabularies = {"emotion": tuple(corpus["expressions"]), "actions": tuple(corpus["actions"])}
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(f"{raw / 'corpus.json'} is not that of a SynthTalk corpus ({error})") from error
  for split, count in splits.items():
    for number in range(count):
      stem = raw / split / f"{split}_{number:05d}"
      path, truth_path = stem.with_suffix(".mp4"), stem.with_suffix(".truth.npz")
      known = _read(truth_path)
      labels = json.loads(str(known.get("labels", "{}")))
      words = json.loads(str(known.get("words", "[]")))
      yield SourceItem(
        path=path,
        key=path.relative_to(raw).as_posix(),
        corpus="synthtalk",
        split=split,
        identity=str(known.get("identity", "")),
        split_group=str(known.get("identity", path.stem)),
        speaker=str(known.get("voice", "")),
        text=str(known.get("text", "")),
        text_source="synthetic",
        words=tuple(Segment(*word) for word in words),
        vocabularies=vocabularies,
        emotion=labels.get("expression", ""),
        actions=tuple(labels["actions"]) if "actions" in labels else None,
        lag=int(known["lag"]) if "lag" in known else None,
        faces_path=stem.with_suffix(".faces.npz"),
        truth_path=truth_path,
        provenance={"version": str(corpus.get("version", "")), "seed": str(corpus.get("seed", ""))},
      )


def _read(path: Path) -> dict[str, np.ndarray]:
  """The small entries of a truth file; none where it is missing or damaged (its video then stands without truth)."""
  try:
    with np.load(path) as stored:
      return {name: stored[name] for name in stored.files if name not in ("truth", "phones")}
  except Exception:  # damage shows in a dozen ways
    return {}
