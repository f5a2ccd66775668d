"""Reading checkpoints without the run that wrote them: the newest whole step, one item alone, the meta data."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from synclipmae_jax.checkpoints.format import (
  MANIFEST,
  META,
  SCORES,
  damage_of,
  items_of,
  load_one,
  manifest_hash,
  read_json,
  refuse_difference,
  saved_shapes,
  steps_in,
)
from synclipmae_jax.types import InputError, Params

FROZEN = "frozen"  # folder beside the steps


def resolve_step(directory: str | os.PathLike, *, say: Callable[[str], None] = print, verify: bool = True) -> Path:
  """Directory of a whole step: `directory` itself, or the newest whole step of a workdir or `checkpoints` folder.

  Damaged steps are passed over by name; without `verify` files need only be there. Read-only. Raises InputError where
  nothing whole is found.
  """
  folder = epath.Path(directory).absolute()
  if (folder / MANIFEST).exists():
    if damage := damage_of(folder, verify=verify):
      raise InputError(f"checkpoint {folder} is damaged ({damage})")
    return folder
  if (folder / "checkpoints").is_dir():
    folder = folder / "checkpoints"
  for step in reversed(steps_in(folder)):
    if damage := damage_of(folder / str(step), verify=verify):
      say(f"checkpoint {step} is damaged ({damage}); trying the one before it")
    else:
      return folder / str(step)
  raise InputError(f"no whole checkpoint in {folder}")


@dataclasses.dataclass(frozen=True)
class SavedItem:
  """One item of a checkpoint, found and not yet read. `leaves`: nested dicts of what has a shape and a dtype."""

  name: str
  directory: Path  # of the step, or of the frozen parameters beside the steps
  leaves: Params
  meta: Mapping[str, Any]

  def refuse_difference(self, saved: Params, wanted: Params) -> None:
    """Raises InputError with both sides where `saved`, of this item, differs from what the model has."""
    complaint = f"item {self.name!r} of {self.directory} does not fit"
    refuse_difference(complaint, {self.name: saved}, {self.name: wanted})

  def load(self, abstract: Params) -> Params:
    """The leaves as `abstract` says: numpy, or placed by a ShapeDtypeStruct's sharding; `...` leaves one unread."""
    return load_one(self.directory, self.name, abstract)


def find_item(directory: str | Path, item: str, *, verify: bool = True) -> SavedItem:
  """`item` in a workdir or a step. Frozen items stand beside the steps, or in the directory that the meta data name.

  Raises InputError where the item is not there or not whole.
  """
  step = resolve_step(directory, verify=verify)
  holder = next((place for place in (step, step.parent / FROZEN) if (place / item).is_dir()), None)
  if holder is None:
    reference = _references(step).get(item)
    if reference is None:
      raise InputError(f"checkpoint {step} has no item {item!r}; it has {list_items(step)}")
    return find_reference(item, reference, owner=str(step), verify=verify)
  if holder != step and (damage := damage_of(holder, verify=verify)):
    raise InputError(f"checkpoint {holder} is damaged ({damage})")
  leaves = saved_shapes(holder)[item]
  if not jax.tree.leaves(leaves):  # what Orbax makes of metadata that it cannot read
    raise InputError(f"checkpoint {holder} is damaged (what is in {item!r} cannot be read)")
  return SavedItem(item, holder, leaves, read_json(holder / META) or {})


def find_reference(item: str, reference: Mapping[str, Any], *, owner: str, verify: bool = True) -> SavedItem:
  """A frozen item that `owner` keeps by reference: `directory` and `manifest_sha256` of the checkpoint that holds it.

  Raises InputError where the directory is gone or holds other files than it did.
  """
  directory = Path(reference["directory"])
  if not directory.is_dir():
    raise InputError(f"the frozen {item} of {owner} is kept by reference, and {directory} is not there")
  found = find_item(directory, item, verify=verify)
  if manifest_hash(found.directory) != reference["manifest_sha256"]:
    raise InputError(f"the frozen {item} of {owner} is kept by reference, and {directory} holds other parameters now")
  return found


def list_items(directory: str | Path) -> list[str]:
  """Items of a step, or of the newest whole one of a workdir, the frozen ones and those by reference included."""
  step = resolve_step(directory)
  return items_of(step) + items_of(step.parent / FROZEN) + sorted(_references(step))


def _references(step: Path) -> dict[str, Mapping[str, Any]]:
  """Frozen items that a step keeps by reference -> their `directory` and `manifest_sha256`."""
  frozen = (read_json(step / META) or {}).get("frozen", {})
  return {name: said["reference"] for name, said in frozen.items() if said.get("reference")}


def load_item(directory: str | Path, item: str, abstract: Params | None = None) -> Params:
  """One item (`visual_encoder`, `speech_encoder`, ...) alone, as nested dicts; the others are not read.

  `directory`: as for `find_item`. Without `abstract` the leaves are numpy arrays; with it (ShapeDtypeStructs, sharded
  or not) they must agree key by key and are placed as it says.
  """
  saved = find_item(directory, item)
  if abstract is None:
    # A broadcast scalar describes a numpy leaf without taking memory for it.
    abstract = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), saved.leaves)
  else:
    saved.refuse_difference(saved.leaves, abstract)
  return saved.load(abstract)


def load_meta(directory: str | Path) -> dict[str, Any]:
  """meta.json of a step (or of the newest whole one), with the evaluators' scores, if any, under `metrics`."""
  step = epath.Path(directory).absolute()
  step = step if (step / META).exists() else resolve_step(directory)
  return {**read_json(step / META), "metrics": read_json(step / SCORES) or {}}
