"""Reads checkpoints without the run that wrote them: the newest complete step, a single item, the metadata."""

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
  """Directory of a complete step: `directory` itself, or the newest one of a workdir or `checkpoints` folder.

  Damaged steps are reported and skipped; without `verify` files must exist but are not hashed. Read-only. Raises
  InputError if no complete step is found.
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
      say(f"checkpoint {step} is damaged ({damage}); trying the previous one")
    else:
      return folder / str(step)
  raise InputError(f"no complete checkpoint in {folder}")


@dataclasses.dataclass(frozen=True)
class SavedItem:
  """One item of a checkpoint, not yet read. `leaves`: nested dicts of objects with a shape and a dtype."""

  name: str
  directory: Path  # of the step, or of the frozen parameters beside the steps
  leaves: Params
  meta: Mapping[str, Any]

  def refuse_difference(self, saved: Params, wanted: Params) -> None:
    """Raises InputError, with both sides of the difference, if `saved` (of this item) differs from `wanted`."""
    complaint = f"item {self.name!r} of {self.directory} does not fit"
    refuse_difference(complaint, {self.name: saved}, {self.name: wanted})

  def load(self, abstract: Params) -> Params:
    """The leaves as in `abstract`: numpy, or placed by a ShapeDtypeStruct's sharding; `...` skips a leaf."""
    return load_one(self.directory, self.name, abstract)

  def load_as(self, wanted: Params) -> Params:
    """The leaves as numpy arrays, widened where they were stored in half precision to take less room.

    Raises InputError if they differ from `wanted` in name, shape or otherwise in dtype, or are damaged.
    """
    widened = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, _widened(x.dtype)), self.leaves)
    self.refuse_difference(widened, wanted)
    try:
      return jax.tree.map(lambda x: x.astype(_widened(x.dtype)), self.load(numpy_leaves(self.leaves)))
    except Exception as error:
      complaint = f"checkpoint {self.directory} is damaged: its {self.name} cannot be read ({error!r})"
      raise InputError(complaint) from error


def _widened(dtype: Any) -> np.dtype:
  return np.dtype(np.float32) if dtype == np.float16 else np.dtype(dtype)


def numpy_leaves(leaves: Params) -> Params:
  """What `SavedItem.load` is given to return numpy arrays. Broadcast scalars describe them without their memory."""
  return jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), leaves)


def find_item(directory: str | Path, item: str, *, verify: bool = True) -> SavedItem:
  """`item` in a workdir or a step. Frozen items are beside the steps, or in the directory named in the metadata.

  Raises InputError if the item is missing or damaged.
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
  if not jax.tree.leaves(leaves):  # Orbax returns this for unreadable metadata
    raise InputError(f"checkpoint {holder} is damaged ({item!r} cannot be read)")
  return SavedItem(item, holder, leaves, read_json(holder / META) or {})


def find_reference(item: str, reference: Mapping[str, Any], *, owner: str, verify: bool = True) -> SavedItem:
  """A frozen item that `owner` keeps by reference: `directory` and `manifest_sha256` of the checkpoint that holds it.

  Raises InputError if the directory is missing or its files have changed.
  """
  directory = Path(reference["directory"])
  if not directory.is_dir():
    raise InputError(f"the frozen {item} of {owner} is kept by reference, but {directory} does not exist")
  found = find_item(directory, item, verify=verify)
  if manifest_hash(found.directory) != reference["manifest_sha256"]:
    raise InputError(f"the frozen {item} of {owner} is kept by reference, but {directory} holds other parameters")
  return found


def list_items(directory: str | Path) -> list[str]:
  """Items of a step, or of the newest complete one of a workdir, including frozen items and those by reference."""
  step = resolve_step(directory)
  return items_of(step) + items_of(step.parent / FROZEN) + sorted(_references(step))


def _references(step: Path) -> dict[str, Mapping[str, Any]]:
  """Frozen items that a step keeps by reference -> their `directory` and `manifest_sha256`."""
  frozen = (read_json(step / META) or {}).get("frozen", {})
  return {name: said["reference"] for name, said in frozen.items() if said.get("reference")}


def load_item(directory: str | Path, item: str, abstract: Params | None = None) -> Params:
  """A single item (`visual_encoder`, `speech_encoder`, ...) as nested dicts; other items are not read.

  `directory`: as for `find_item`. Without `abstract` the leaves are numpy arrays. With `abstract` (ShapeDtypeStructs,
  sharded or not) all keys must agree, and the leaves are placed by its shardings.
  """
  saved = find_item(directory, item)
  if abstract is None:
    abstract = numpy_leaves(saved.leaves)
  else:
    saved.refuse_difference(saved.leaves, abstract)
  return saved.load(abstract)


def load_meta(directory: str | Path) -> dict[str, Any]:
  """meta.json of a step (or of the newest complete one), with the evaluators' scores, if any, under `metrics`."""
  step = epath.Path(directory).absolute()
  step = step if (step / META).exists() else resolve_step(directory)
  return {**read_json(step / META), "metrics": read_json(step / SCORES) or {}}
