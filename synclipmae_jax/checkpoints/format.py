"""The format of a checkpoint on disk: one item per top-level part of the parameters, and a manifest of hashes.

    <step>/<item>/...       parameters of one part; `opt_state` is also an item
    <step>/meta.json        step, hash of the frozen parameters, versions, and the run's stamp
    <step>/checksums.json   sha256 of every file above: written last, verified first
    <step>/scores.json      the evaluators' scores of this step, written after the evaluation

A step is written under a temporary name and renamed when its manifest is complete. A killed process therefore leaves
complete steps and temporary files, never a partial step. The hashes exist because Orbax loads a file with a flipped
byte without an error. No other package imports Orbax.
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

from synclipmae_jax import sharding
from synclipmae_jax.types import InputError, Params

MANIFEST, META, SCORES = "checksums.json", "meta.json", "scores.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def _orbax():
  """Orbax takes a third of a second to import, and who only looks at a manifest needs none of it."""
  from orbax.checkpoint import v1

  return v1


def save_items(directory: str | Path, items: Mapping[str, Params], meta: Mapping[str, Any]) -> None:
  """Writes one step directory with its manifest and returns when it is complete (used by converters).

  The arrays are not copied first, so they may take half of the memory; the caller must not change them during the save.
  The files of a failed or interrupted save are removed. Raises InputError if `directory` exists.
  """
  place = epath.Path(directory).absolute()
  if place.exists():
    raise InputError(f"{place} already exists")
  place.parent.mkdir(parents=True, exist_ok=True)
  context = _orbax().Context()
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
  """sha256 of the manifest of a step; it depends on every byte of the files of the step."""
  return hashlib.sha256((directory / MANIFEST).read_bytes()).hexdigest()


def tree_hash(tree: Params) -> str:
  """sha256 over paths, dtypes, shapes and values; '' for a tree without leaves. Independent of the mesh."""
  leaves = sharding.tree_paths(tree)
  digest = hashlib.sha256()
  for path, leaf in leaves:
    value = leaf if getattr(leaf, "is_fully_addressable", True) else multihost_utils.process_allgather(leaf, tiled=True)
    value = np.ascontiguousarray(jax.device_get(value))
    digest.update(f"{path} {value.dtype} {value.shape}\n".encode())
    digest.update(value.tobytes())
  return digest.hexdigest() if leaves else ""


def start_save(directory, items: Mapping[str, Any], meta: Mapping[str, Any]) -> Callable[[], None]:
  """Copies the arrays and starts writing. The returned function writes the manifest and renames the step."""
  partial = directory.parent / f"{directory.name}.saving"
  response = _orbax().save_checkpointables_async(partial, with_leaves(items), overwrite=True)

  def finish() -> None:
    response.result()
    if jax.process_index() == 0:
      # Orbax writes the directory's path into this file. A published checkpoint must not contain local paths.
      if (note := partial / "commit_success.txt").exists():
        note.write_text("")
      write_json(partial / META, meta)
      write_json(partial / MANIFEST, _checksums(partial))
      partial.rename(directory)

  return finish


def with_leaves(items: Mapping[str, Any]) -> dict[str, Any]:
  """The items with leaves: Orbax refuses an empty item and then hangs."""
  return {name: tree for name, tree in items.items() if jax.tree.leaves(tree)}


def _checksums(directory, names: Sequence[str] | None = None) -> dict[str, str]:
  """sha256 by relative path, of all files except the manifest and the scores, which are written later."""
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
  """The damage of a step in a few words; '' if it agrees with its manifest (without `verify`: in file names only)."""
  manifest = read_json(directory / MANIFEST)
  if not manifest or not isinstance(manifest, dict):
    return f"no readable {MANIFEST}"
  if elsewhere := [name for name in manifest if name.startswith("/") or ".." in name.split("/")]:
    return f"{MANIFEST} names a file outside the step, {elsewhere[0]}"  # it might be an endless device
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
  metadata = _orbax().checkpointables_metadata(directory).metadata
  return {item: metadata[item] for item in items_of(directory)}


def refuse_difference(complaint: str, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
  """Raises InputError with both sides of a difference in keys, shapes or dtypes."""
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
  except (OSError, ValueError):  # absent, unreadable or truncated
    return None


def write_json(path, value) -> None:
  temporary = path.parent / f".{path.name}"
  temporary.write_text(json.dumps(value, indent=1, sort_keys=True))
  temporary.replace(path)


def versions() -> dict[str, str]:
  return {name: importlib.metadata.version(name) for name in PACKAGES}


def load_items(directory, abstract: Mapping[str, Any]) -> dict[str, Any]:
  """Items of a step, each leaf placed by its sharding in `abstract`; items without leaves are returned unchanged."""
  return {**abstract, **_orbax().load_checkpointables(directory, with_leaves(abstract))}


def load_one(directory, item: str, abstract: Params) -> Params:
  """One item; leaves that are `...` in `abstract` are not read."""
  return _orbax().load_checkpointables(directory, {item: abstract})[item]
