"""Initialises items from other checkpoints and reports the origin of every leaf.

A checkpoint of this package must fit an item exactly. A checkpoint that a converter made from a donor's weights
(`conversion` in its meta.json) may differ in the leaves that the entry `optional` lists with a reason: leaves that the
donor lacks and leaves that this model lacks. Its positional table may have another grid, and its floating-point type
may differ.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from synclipmae_jax import checkpoints, sharding
from synclipmae_jax.types import InputError, Params

ResizePosition = Callable[[np.ndarray, int], np.ndarray]  # (table [n * n, D], grid) -> [grid * grid, D]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitialItem:
  """How a checkpoint fills one item of the model. Paths are those of the leaves within the item."""

  saved: checkpoints.SavedItem
  loaded: tuple[str, ...]
  resized: Mapping[str, tuple[int, int]]  # path -> side of the donor's square grid, side of the model's
  fresh: Mapping[str, str]  # path of the model -> why it stays freshly initialised
  left_out: Mapping[str, str]  # path of the checkpoint -> why it is not used
  parameters: int  # number of parameters that are loaded or resized
  cast: tuple[str, ...]  # dtypes that are cast to the model's
  resize_position: ResizePosition | None
  frozen: bool

  def load(self, abstract: Params) -> dict[str, jax.Array]:
    """The leaves that the checkpoint provides, by path, each placed by the sharding in `abstract`."""
    wanted = dict(sharding.tree_paths(abstract))
    ask = {path: wanted[path] for path in self.loaded}
    saved = sharding.tree_paths(self.saved.leaves)
    # A broadcast scalar describes a numpy leaf without allocating memory.
    ask |= {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in saved if path in self.resized}
    tree = jax.tree.unflatten(jax.tree.structure(self.saved.leaves), [ask.get(path, ...) for path, _ in saved])
    given = dict(sharding.tree_paths(self.saved.load(tree)))
    for path, (_, grid) in self.resized.items():
      table = self.resize_position(given[path], grid).astype(wanted[path].dtype)
      given[path] = jax.make_array_from_callback(table.shape, wanted[path].sharding, table.__getitem__)
    return {path: given[path] for path in (*self.loaded, *self.resized)}

  def fill(self, item: Params) -> Params:
    """`item` (arrays or shapes with shardings) with the leaves that the checkpoint provides."""
    return fill(item, self.load(item))

  def lines(self) -> list[str]:
    """Report for the terminal: the origin of the parameters, by subtree."""
    conversion = self.saved.meta.get("conversion")
    donor = f"{conversion['donor']}, " if conversion else ""
    cast = f", cast from {' and '.join(self.cast)}" if self.cast else ""
    lines = [
      f"{self.saved.name}: {self.parameters:,} parameters in {len(self.loaded) + len(self.resized)} leaves"
      f" from {donor}{self.saved.directory}{cast}"
    ]
    lines += [f"  {path} resized from {old} x {old} to {new} x {new}" for path, (old, new) in self.resized.items()]
    sides = {*self.loaded, *self.resized, *self.fresh, *self.left_out}
    for title, leaves in (("freshly initialised", self.fresh), ("left out", self.left_out)):
      for reason in dict.fromkeys(leaves.values()):
        names = _subtrees([path for path in leaves if leaves[path] == reason], sides)
        lines.append(f"  {title}: {', '.join(names)} ({reason})")
    return lines

  def to_json(self) -> dict[str, Any]:
    return {
      "from": str(self.saved.directory),
      "conversion": self.saved.meta.get("conversion"),
      "parameters": self.parameters,
      "loaded": list(self.loaded),
      "cast_from": list(self.cast),
      "resized": {path: {"from": [old, old], "to": [new, new]} for path, (old, new) in self.resized.items()},
      "fresh": dict(self.fresh),
      "left_out": dict(self.left_out),
    }


def plan_item(
  directory: str | Path,
  name: str,
  items: Mapping[str, Params],
  *,
  frozen: bool,
  resize_position: ResizePosition | None = None,
  verify: bool = True,
) -> InitialItem:
  """How the checkpoint in `directory` fills item `name` of the model's `items` (shapes); reads no parameters.

  No leaf of a `frozen` item may stay freshly initialised. Without `resize_position` a positional table of another grid
  does not fit. `verify`: compare the files with their manifest first.
  Raises InputError if the model or the checkpoint has no such item, if the checkpoint is damaged, and, with both sides
  of the difference, if it does not fit.
  """
  wanted = dict(sharding.tree_paths(items.get(name, {})))
  if not wanted:
    filled = sorted(item for item, tree in items.items() if jax.tree.leaves(tree))
    raise InputError(f"this model has no item {name!r} to start from {directory}; it has {filled}")
  found = checkpoints.find_item(directory, name, verify=verify)
  saved = dict(sharding.tree_paths(found.leaves))
  conversion = found.meta.get("conversion")
  if conversion is None:
    found.refuse_difference(saved, wanted)
  optional = (conversion or {}).get("optional", {})

  both = [path for path in wanted if path in saved and _castable(saved[path], wanted[path])]
  loaded = [path for path in both if saved[path].shape == wanted[path].shape]
  grids = {path: _grids(saved[path], wanted[path]) for path in both if re.search(r"(^|/)position$", path)}
  resized = {path: sides for path, sides in grids.items() if resize_position and sides and path not in loaded}
  fresh, left_out = {}, {}
  for pattern, reason in optional.items():
    matching = [path for path in {**wanted, **saved} if re.fullmatch(pattern, f"{name}/{path}")]
    left_out |= {path: reason for path in matching if path not in wanted}
    if not all(path in loaded for path in matching if path in wanted):
      # All leaves of a pattern or none: a bias is not usable without its kernel.
      fresh |= {path: reason for path in matching if path in wanted}
      loaded = [path for path in loaded if path not in fresh]

  explained = {*loaded, *resized, *left_out, *(() if frozen else fresh)}
  unexplained = lambda leaves: {path: leaf for path, leaf in leaves.items() if path not in explained}
  found.refuse_difference(unexplained(saved), unexplained(wanted))
  given = [*loaded, *resized]
  return InitialItem(
    saved=found,
    loaded=tuple(loaded),
    resized=resized,
    fresh=fresh,
    left_out=left_out,
    parameters=sum(math.prod(wanted[path].shape) for path in given),
    cast=tuple(sorted({np.dtype(saved[path].dtype).name for path in given if saved[path].dtype != wanted[path].dtype})),
    resize_position=resize_position,
    frozen=frozen,
  )


def fill(item: Params, leaves: Mapping[str, jax.Array]) -> Params:
  """`item` with some of its leaves, by path, replaced."""
  return jax.tree.unflatten(
    jax.tree.structure(item), [leaves.get(path, leaf) for path, leaf in sharding.tree_paths(item)]
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Initialisation:
  """Origin of the parameters of a new run."""

  items: Sequence[InitialItem]
  fresh: Mapping[str, str]  # items that are freshly initialised -> why

  def lines(self) -> list[str]:
    lines = [line for item in self.items for line in item.lines()]
    for reason in dict.fromkeys(self.fresh.values()):
      names = [name for name in self.fresh if self.fresh[name] == reason]
      lines.append(f"{', '.join(names)}: freshly initialised ({reason})")
    return lines

  def donors(self) -> dict[str, Any]:
    """Donor, licence and source of every item that started from converted weights."""
    conversions = {item.saved.name: item.saved.meta.get("conversion") for item in self.items}
    kept = ("donor", "licence", "source")
    return {name: {key: said.get(key) for key in kept} for name, said in conversions.items() if said}

  def frozen(self, by_reference: Sequence[str] = ()) -> dict[str, Any]:
    """Entry `frozen` of a checkpoint's metadata: configuration and preprocessing of the frozen items that came from
    another checkpoint, and the location of those kept `by_reference`.

    Raises InputError if an item in `by_reference` is not frozen or did not start from a checkpoint.
    """
    plans = {item.saved.name: item for item in self.items if item.frozen}
    if missing := sorted(set(by_reference) - set(plans)):
      raise InputError(
        f"only a frozen item that starts from a checkpoint can be kept by reference, not {', '.join(missing)}"
      )
    kept = ("task", "config", "preprocessing", "conversion", "revision", "step")
    said = {name: {key: plan.saved.meta[key] for key in kept if key in plan.saved.meta} for name, plan in plans.items()}
    for name in by_reference:
      directory = plans[name].saved.directory
      said[name]["reference"] = {"directory": str(directory), "manifest_sha256": checkpoints.manifest_hash(directory)}
    return said

  def write(self, path: Path) -> None:
    items = {item.saved.name: item.to_json() for item in self.items}
    items |= {name: {"from": None, "fresh": reason} for name, reason in self.fresh.items()}
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(items, indent=1) + "\n")
    partial.replace(path)


def _castable(saved, wanted) -> bool:
  return saved.dtype == wanted.dtype or all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in (saved, wanted))


def _grids(saved, wanted) -> tuple[int, int] | None:
  """Sides of the square grids of two positional tables of equal width; None if they are not such tables."""
  old, new = (math.isqrt(leaf.shape[0]) for leaf in (saved, wanted))
  same = saved.shape == (old * old, wanted.shape[-1]) and wanted.shape == (new * new, saved.shape[-1])
  return (old, new) if same else None


def _subtrees(chosen: Sequence[str], paths: set[str]) -> list[str]:
  """The smallest set of subtrees that contains the chosen paths and no others."""
  found = []
  for path in chosen:
    parts = path.split("/")
    prefixes = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    inside = lambda prefix: {other for other in paths if f"{other}/".startswith(f"{prefix}/")}
    found.append(next(prefix for prefix in prefixes if inside(prefix) <= set(chosen)))
  return list(dict.fromkeys(found))
