"""The format of a checkpoint on disk: one item per top-level part of the parameters, and a manifest of hashes.

    <step>/<item>/...       parameters of one part; `opt_state` is an item like them
    <step>/meta.json        step, hash of the frozen parameters, versions, and the run's own stamp
    <step>/checksums.json   sha256 of every file above: written last, verified first
    <step>/scores.json      the evaluators' scores of this step, written after the evaluation

A step is written under another name and renamed when its manifest is complete. A process killed at any moment therefore
leaves whole steps and debris, never half a step. Orbax itself loads a file with a flipped byte without an error, which
is why the hashes exist. No other room imports Orbax.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from synclipmae_jax import sharding
from synclipmae_jax.types import InputError, Params

MANIFEST, META, SCORES = "checksums.json", "meta.json", "scores.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def save_items(directory: str | Path, items: Mapping[str, Params], meta: Mapping[str, Any]) -> None:
  """Writes one step directory, with its manifest, and returns when it is whole (converters).

  The arrays may be as large as half the memory: they are not copied first, since nobody changes them meanwhile. What a
  failed or interrupted save has written is removed.
  """
  place = epath.Path(directory).absolute()
  if place.exists():
    raise InputError(f"{place} exists already")
  place.parent.mkdir(parents=True, exist_ok=True)
  context = ocp.Context()
  context.memory.deepcopy_host_arrays = False
  context.memory.write_concurrent_bytes = 256 * 2**20
  try:
    with context:
      start_save(place, items, {**meta, "versions": versions()})()
  except BaseException:
    for path in place.parent.glob(f"{place.name}.saving*"):
      path.rmtree()
    raise


def manifest_hash(directory) -> str:
  """sha256 of the manifest of a step: it changes with any byte of its files."""
  return hashlib.sha256((directory / MANIFEST).read_bytes()).hexdigest()


def tree_hash(tree: Params) -> str:
  """sha256 over paths, dtypes, shapes and values; '' for a tree without leaves. The same on any mesh."""
  leaves = sharding.tree_paths(tree)
  digest = hashlib.sha256()
  for path, leaf in leaves:
    value = leaf if getattr(leaf, "is_fully_addressable", True) else multihost_utils.process_allgather(leaf, tiled=True)
    value = np.ascontiguousarray(jax.device_get(value))
    digest.update(f"{path} {value.dtype} {value.shape}\n".encode())
    digest.update(value.tobytes())
  return digest.hexdigest() if leaves else ""


def start_save(directory, items: Mapping[str, Any], meta: Mapping[str, Any]) -> Callable[[], None]:
  """Copies the arrays and begins to write; the returned function ends it: manifest, then the final name."""
  partial = directory.parent / f"{directory.name}.saving"
  response = ocp.save_checkpointables_async(partial, with_leaves(items), overwrite=True)

  def finish() -> None:
    response.result()
    if jax.process_index() == 0:
      # Orbax writes into it where it stands: a checkpoint is given away, the folders of a machine are not.
      if (note := partial / "commit_success.txt").exists():
        note.write_text("")
      write_json(partial / META, meta)
      write_json(partial / MANIFEST, _checksums(partial))
      partial.rename(directory)

  return finish


def with_leaves(items: Mapping[str, Any]) -> dict[str, Any]:
  """Orbax refuses an empty item, and hangs after refusing it."""
  return {name: tree for name, tree in items.items() if jax.tree.leaves(tree)}


def _checksums(directory, names: Sequence[str] | None = None) -> dict[str, str]:
  """sha256 by relative path; all files, but for the manifest itself and the scores, which come later."""
  if names is None:
    names = sorted(_files(directory))
  sums = {}
  for name in names:
    if name not in (MANIFEST, SCORES) and (directory / name).is_file():
      with (directory / name).open("rb") as file:
        sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
  return sums


def _files(directory, prefix: str = "") -> list[str]:
  names = []
  for path in directory.iterdir():
    names += _files(path, f"{prefix}{path.name}/") if path.is_dir() else [prefix + path.name]
  return names


def damage_of(directory, *, verify: bool = True) -> str:
  """What is wrong with a step, in a few words; '' when it agrees with its manifest (not `verify`: in names alone)."""
  manifest = read_json(directory / MANIFEST)
  if not manifest or not isinstance(manifest, dict):
    return f"no readable {MANIFEST}"
  if elsewhere := [name for name in manifest if name.startswith("/") or ".." in name.split("/")]:
    return f"{MANIFEST} names a file elsewhere, {elsewhere[0]}"  # which might be a device without an end
  there = {name: digest for name, digest in manifest.items() if (directory / name).exists()}
  sums = _checksums(directory, list(there)) if verify else there
  missing = sorted(set(manifest) - set(sums))
  changed = sorted(name for name in sums if sums[name] != manifest[name])
  if missing:
    return f"missing {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
  if changed:
    return f"changed {changed[0]}" + (f" and {len(changed) - 1} more" if len(changed) > 1 else "")
  return ""


def saved_shapes(directory) -> dict[str, Any]:
  metadata = ocp.checkpointables_metadata(directory).metadata
  return {item: metadata[item] for item in items_of(directory)}


def refuse_difference(complaint: str, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
  """Raises InputError with both sides of the difference in keys, shapes and types."""
  saved, wanted = _describe(saved), _describe(wanted)
  if saved == wanted:
    return
  lines = [f"{complaint}:"]
  for title, names in (
    ("only in the checkpoint", sorted(set(saved) - set(wanted))),
    ("only in this model", sorted(set(wanted) - set(saved))),
    ("different", sorted(name for name in set(saved) & set(wanted) if saved[name] != wanted[name])),
  ):
    if names:
      lines.append(f"  {title} ({len(names)}):")
      lines += [
        f"    {name}: {' in the checkpoint, here '.join(side[name] for side in (saved, wanted) if name in side)}"
        for name in names[:8]
      ]
      lines += ["    ..."] if len(names) > 8 else []
  raise InputError("\n".join(lines))


def _describe(tree) -> dict[str, str]:
  return {path: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}" for path, leaf in sharding.tree_paths(tree)}


def items_of(directory) -> list[str]:
  return sorted(path.name for path in directory.iterdir() if path.is_dir()) if directory.is_dir() else []


def steps_in(directory) -> list[int]:
  names = (path.name for path in directory.iterdir()) if directory.is_dir() else ()
  return sorted(int(name) for name in names if name.isdecimal())


def read_json(path) -> Any:
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError):  # absent, unreadable, or cut short
    return None


def write_json(path, value) -> None:
  temporary = path.parent / f".{path.name}"
  temporary.write_text(json.dumps(value, indent=1, sort_keys=True))
  temporary.replace(path)


def versions() -> dict[str, str]:
  return {name: importlib.metadata.version(name) for name in PACKAGES}


def load_items(directory, abstract: Mapping[str, Any]) -> dict[str, Any]:
  """Items of a step as `abstract` says, each leaf placed by its sharding; items without leaves pass through."""
  return {**abstract, **ocp.load_checkpointables(directory, with_leaves(abstract))}


def load_one(directory, item: str, abstract: Params) -> Params:
  """One item; a leaf `...` of `abstract` is left unread."""
  return ocp.load_checkpointables(directory, {item: abstract})[item]
