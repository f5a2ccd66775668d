"""The labels of clips as targets of a probe.

| labels    | of a clip | classes |
|---|---|---|
| `emotion` | one name; clips without one, or in which it changes, are left out | the corpus' vocabulary |
| `actions` | any number of names; clips of which nobody knows are left out | the corpus' vocabulary |
| `shown`   | any number, from the true motion of SynthTalk (`data.synthtalk.shown`) | those of its table |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from synclipmae_jax.data.synthtalk.shown import SHOWN, shown_actions
from synclipmae_jax.types import InputError

LABELS = ("emotion", "actions", "shown")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled:
  """The clips of records that have labels."""

  rows: np.ndarray  # int [N], of the records
  keys: tuple[str, ...]
  identities: tuple[str, ...]
  targets: np.ndarray  # bool [N, C]
  unlabelled: int  # clips that are left out


def is_several(labels: str) -> bool:
  """Whether a clip may have several of these labels at once. Raises InputError for unknown ones."""
  if labels not in LABELS:
    raise InputError(f"unknown data.labels {labels!r}: one of {', '.join(LABELS)}")
  return labels != "emotion"


def classes_of(labels: str, vocabularies: Mapping[str, Sequence[str]], leave_out: Sequence[str] = ()) -> list[str]:
  """The classes of records, in the order of their vocabulary. Raises InputError if there are none."""
  is_several(labels)
  found = list(SHOWN) if labels == "shown" else list(vocabularies.get(labels, ()))
  if not found:
    known = ", ".join(vocabularies) or "none"
    raise InputError(
      f"these records have no labels {labels!r} (vocabularies: {known}): give those of a labelled corpus"
    )
  if unknown := sorted({*leave_out} - {*found}):
    raise InputError(f"data.leave_out names {unknown[0]!r}, which is no class: {', '.join(found)}")
  return [name for name in found if name not in leave_out]


def label_clips(records: Iterable[Mapping[str, Any]], labels: str, classes: Sequence[str]) -> Labelled:
  """The labels of records (`data.records`), in their order. Of several labels those beside `classes` do not count."""
  rows, keys, identities, targets, count = [], [], [], [], 0
  place = {name: number for number, name in enumerate(classes)}
  for row, record in enumerate(records):
    count += 1
    if (names := _names(record, labels)) is None:
      continue
    chosen = [place[name] for name in names if name in place]
    if labels == "emotion" and not chosen:
      continue
    target = np.zeros(len(classes), bool)
    target[chosen] = True
    rows.append(row)
    keys.append(record["key"])
    identities.append(record["identity"])
    targets.append(target)
  return Labelled(
    rows=np.array(rows, int), keys=tuple(keys), identities=tuple(identities),
    targets=np.reshape(np.array(targets, bool), (-1, len(classes))), unlabelled=count - len(rows),
  )  # fmt: skip


def _names(record: Mapping[str, Any], labels: str) -> tuple[str, ...] | None:
  match labels:
    case "emotion":
      return (record["emotion"],) if record["emotion"] else None
    case "actions":
      return record["actions"]
  return shown_actions(record["truth"], record["truth_names"])
