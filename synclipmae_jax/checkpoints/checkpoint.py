"""Checkpoints: one item per top-level part of the parameters, a manifest of hashes, and a way back from damage.

    WORKDIR/checkpoints/<step>/<item>/...       parameters of one part; `opt_state` is an item like them
    WORKDIR/checkpoints/<step>/meta.json        step, hash of the frozen parameters, versions, and the run's own stamp
    WORKDIR/checkpoints/<step>/checksums.json   sha256 of every file above: written last, verified first
    WORKDIR/checkpoints/<step>/scores.json      what the evaluators found for this step, once they have run
    WORKDIR/checkpoints/frozen/<item>/...       frozen parameters, saved once

A step is written under another name and renamed when its manifest is complete, so a process killed at any moment
leaves whole steps and debris, never half a step. Orbax itself loads a file with a flipped byte without a word: hence
the hashes. Nothing else in the package imports Orbax.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
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
from synclipmae_jax.train.state import TrainState
from synclipmae_jax.types import InputError, Params

MANIFEST, META, SCORES = "checksums.json", "meta.json", "scores.json"
OPT_STATE, FROZEN = "opt_state", "frozen"
_LOOK_SECONDS = 5  # between two looks, while a save of many processes is waited for
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Checkpointer:
  """The checkpoints of one training run: saves in the background, keeps the last and the best, restores what is whole.

  Every process of the run calls every method; process 0 alone writes manifests and deletes.
  """

  def __init__(
    self,
    workdir: str | Path,
    *,
    keep_last: int = 2,
    keep_best: int = 0,
    best_metric: str | None = None,
    best_mode: str = "max",
    stamp: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
  ):
    """`keep_best` steps are kept beside the last ones by `best_metric` of their scores; `stamp` goes into meta.json."""
    if keep_last < 1 or best_mode not in ("max", "min"):
      raise InputError(f"keep_last must be at least 1 and best_mode max or min, got {keep_last} and {best_mode!r}")
    if keep_best and not best_metric:
      raise InputError("keep_best needs best_metric, the name of a score")
    self.directory = epath.Path(workdir).absolute() / "checkpoints"
    self._keep_last, self._keep_best = keep_last, keep_best
    self._best_metric, self._sign = best_metric, 1 if best_mode == "max" else -1
    self.stamp, self._say = dict(stamp or {}), say
    self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
    self._saving: concurrent.futures.Future | None = None
    self._saving_name = ""
    if jax.process_index() == 0:
      self.directory.mkdir(parents=True, exist_ok=True)
      for path in self.directory.iterdir():  # debris of a process that was killed while saving
        if not path.name.isdecimal() and path.name != FROZEN and not path.name.endswith(".damaged"):
          path.rmtree() if path.is_dir() else path.unlink()
    self._barrier("opened")

  # Saving

  def save(self, state: TrainState, step: int, *, frozen_hash: str = "") -> None:
    """Starts saving `state` as `step`; returns once its arrays are copied, so that the next step may donate them."""
    self.wait()
    meta = {**self.stamp, "step": step, "frozen_sha256": frozen_hash, "versions": _versions()}
    self._start(str(step), {**state.trainable, OPT_STATE: state.opt_state}, meta)

  def _start(self, name: str, items: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    self._saving_name, self._saving = name, concurrent.futures.Future()
    try:
      finish = _start_save(self.directory / name, items, meta)
      self._saving = self._worker.submit(lambda: (finish(), self._prune()))
    except Exception as error:  # on this process alone, perhaps: `wait` tells the others
      self._saving.set_exception(error)

  def wait(self) -> None:
    """Returns when nothing is being saved any more.

    Raises InputError, on every process, where one of them could not finish the save.
    """
    if self._saving is None:
      return
    saving, self._saving = self._saving, None
    outcomes = [None]
    while None in outcomes:  # from time to time all look whether one has failed: the others' saves would wait for it
      concurrent.futures.wait([saving], timeout=_LOOK_SECONDS if jax.process_count() > 1 else None)
      error = saving.exception() if saving.done() else None  # whatever the file system raises, through several layers
      outcomes = sharding.gather((_reason(error) if error else "") if saving.done() else None)
      if reasons := [reason for reason in outcomes if reason]:
        kept = f"the last whole one is step {self.steps()[-1]}" if self.steps() else "there is none before it"
        raise InputError(
          f"checkpoint {self._saving_name} could not be written to {self.directory} ({reasons[0]}); {kept}"
        ) from error

  def score(self, step: int, scores: Mapping[str, Any]) -> None:
    """Notes the scores of a saved step and forgets steps that are now neither among the last nor among the best."""
    self.wait()
    if jax.process_index() == 0:
      _write_json(self.directory / str(step) / SCORES, scores)
      self._prune()

  def save_frozen(self, frozen: Params, frozen_hash: str) -> None:
    """Saves the frozen parameters, unless these very ones are there already."""
    directory = self.directory / FROZEN
    meta = _read_json(directory / META) or {}
    if _from_first_process(np.bool_(meta.get("frozen_sha256") == frozen_hash)):
      return
    if jax.process_index() == 0 and directory.exists():  # left by a run that never saved a step
      directory.rmtree()
    self._start(FROZEN, frozen, {"frozen_sha256": frozen_hash, "versions": _versions()})
    self.wait()

  # Restoring

  def steps(self) -> list[int]:
    """Saved steps, ascending."""
    return _steps(self.directory)

  def is_scored(self, step: int) -> bool:
    """Whether `step` has been evaluated; the same answer on every process."""
    return bool(_from_first_process(np.bool_((self.directory / str(step) / SCORES).exists())))

  def last_whole_step(self) -> int | None:
    """Newest step that agrees with its manifest; None for a fresh workdir.

    A damaged step is named, with its damage, and set aside as `<step>.damaged`. Raises InputError where all are.
    """
    found = -1
    if jax.process_index() == 0:
      steps = self.steps()
      for step in reversed(steps):
        damage = _damage(self.directory / str(step))
        if not damage:
          found = step
          break
        self._say(f"checkpoint {step} is damaged ({damage}); set aside, trying the one before it")
        aside = self.directory / f"{step}.damaged"
        if aside.exists():
          aside.rmtree()
        (self.directory / str(step)).rename(aside)
      found = -2 if steps and found < 0 else found
    found = int(_from_first_process(np.int64(found)))
    if found == -2:
      raise InputError(f"every checkpoint in {self.directory} is damaged; start in another workdir or delete them")
    return None if found < 0 else found

  def restore(self, step: int, abstract: TrainState) -> TrainState:
    """State of `step`, placed as `abstract` says (any mesh). Raises InputError where its parameters differ in kind."""
    directory = self.directory / str(step)
    wanted = {**abstract.trainable, OPT_STATE: abstract.opt_state}
    _compare(f"{directory} was made with another model", _saved_shapes(directory), wanted)
    saved = wanted | ocp.load_checkpointables(directory, _with_leaves(wanted))
    opt_state = saved.pop(OPT_STATE)
    return TrainState(jax.device_put(np.int32(step), abstract.step.sharding), saved, opt_state)

  def restore_frozen(self, abstract: Params) -> Params | None:
    """Frozen parameters as saved; None where they are missing, or damaged (which is said)."""
    directory = self.directory / FROZEN
    missing = not directory.exists()
    if jax.process_index() == 0 and not missing and (damage := _damage(directory)):
      self._say(f"the frozen parameters in {directory} are damaged ({damage}); making them anew")
      directory.rmtree()
      missing = True
    if _from_first_process(np.bool_(missing)):
      return None
    _compare(f"{directory} was made with another model", _saved_shapes(directory), abstract)
    return {**abstract, **ocp.load_checkpointables(directory, _with_leaves(abstract))}

  # Housekeeping

  def _prune(self) -> None:
    if jax.process_index() != 0:
      return
    steps = self.steps()
    keep = set(steps[-self._keep_last :])
    if self._keep_best:
      scored = {step: (_read_json(self.directory / str(step) / SCORES) or {}) for step in steps}
      ranked = sorted(
        (self._sign * scores[self._best_metric], step)
        for step, scores in scored.items()
        if scores.get(self._best_metric) is not None
      )
      keep |= {step for _, step in ranked[-self._keep_best :]}
    for step in set(steps) - keep:
      # Renamed first: killed in the middle of a deletion, it must not look like a damaged checkpoint.
      (self.directory / str(step)).rename(self.directory / f"{step}.deleting").rmtree()

  def _barrier(self, name: str) -> None:
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(f"checkpointer {name}")

  def close(self) -> None:
    """Waits for a save under way, without raising."""
    if self._saving is not None:
      concurrent.futures.wait([self._saving])
    self._worker.shutdown(wait=False)


# Reading checkpoints without a run


def resolve_step(directory: str | Path, *, say: Callable[[str], None] = print, verify: bool = True) -> Path:
  """Directory of a whole step: `directory` itself, or the newest whole step of a workdir or `checkpoints` folder.

  Damaged steps are passed over by name; without `verify` files need only be there. Read-only. Raises InputError where
  nothing whole is found.
  """
  directory = epath.Path(directory).absolute()
  if (directory / MANIFEST).exists():
    if damage := _damage(directory, verify=verify):
      raise InputError(f"checkpoint {directory} is damaged ({damage})")
    return directory
  if (directory / "checkpoints").is_dir():
    directory = directory / "checkpoints"
  for step in reversed(_steps(directory)):
    if damage := _damage(directory / str(step), verify=verify):
      say(f"checkpoint {step} is damaged ({damage}); trying the one before it")
    else:
      return directory / str(step)
  raise InputError(f"no whole checkpoint in {directory}")


@dataclasses.dataclass(frozen=True)
class SavedItem:
  """One item of a checkpoint, found and not yet read. `leaves`: nested dicts of what has a shape and a dtype."""

  name: str
  directory: Path  # of the step, or of the frozen parameters beside the steps
  leaves: Params
  meta: Mapping[str, Any]

  def refuse_difference(self, saved: Params, wanted: Params) -> None:
    """Raises InputError with both sides where `saved`, of this item, differs from what the model has."""
    _compare(f"item {self.name!r} of {self.directory} does not fit", {self.name: saved}, {self.name: wanted})

  def load(self, abstract: Params) -> Params:
    """The leaves as `abstract` says: numpy, or placed by a ShapeDtypeStruct's sharding; `...` leaves one unread."""
    return ocp.load_checkpointables(self.directory, {self.name: abstract})[self.name]


def find_item(directory: str | Path, item: str, *, verify: bool = True) -> SavedItem:
  """`item` in a workdir or a step; frozen items are found beside the steps. Raises InputError where it is not whole."""
  step = resolve_step(directory, verify=verify)
  holder = next((place for place in (step, step.parent / FROZEN) if (place / item).is_dir()), None)
  if holder is None:
    raise InputError(f"checkpoint {step} has no item {item!r}; it has {_items(step) + _items(step.parent / FROZEN)}")
  if holder != step and (damage := _damage(holder, verify=verify)):
    raise InputError(f"checkpoint {holder} is damaged ({damage})")
  leaves = _saved_shapes(holder)[item]
  if not jax.tree.leaves(leaves):  # what Orbax makes of metadata that it cannot read
    raise InputError(f"checkpoint {holder} is damaged (what is in {item!r} cannot be read)")
  return SavedItem(item, holder, leaves, _read_json(holder / META) or {})


def list_items(directory: str | Path) -> list[str]:
  """Items of a step, or of the newest whole one of a workdir, the frozen ones beside the steps included."""
  step = resolve_step(directory)
  return _items(step) + _items(step.parent / FROZEN)


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
  return {**_read_json(step / META), "metrics": _read_json(step / SCORES) or {}}


def save_items(directory: str | Path, items: Mapping[str, Params], meta: Mapping[str, Any]) -> None:
  """Writes one step directory, with its manifest, and returns when it is whole (converters).

  The arrays may be as large as half the memory: they are not copied first, since nobody changes them meanwhile. What a
  failed or interrupted save has written is removed.
  """
  directory = epath.Path(directory).absolute()
  if directory.exists():
    raise InputError(f"{directory} exists already")
  directory.parent.mkdir(parents=True, exist_ok=True)
  context = ocp.Context()
  context.memory.deepcopy_host_arrays = False
  context.memory.write_concurrent_bytes = 256 * 2**20
  try:
    with context:
      _start_save(directory, items, {**meta, "versions": _versions()})()
  except BaseException:
    for path in directory.parent.glob(f"{directory.name}.saving*"):
      path.rmtree()
    raise


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


# The format


def _start_save(directory, items: Mapping[str, Any], meta: Mapping[str, Any]) -> Callable[[], None]:
  """Copies the arrays and begins to write; the returned function ends it: manifest, then the final name."""
  partial = directory.parent / f"{directory.name}.saving"
  response = ocp.save_checkpointables_async(partial, _with_leaves(items), overwrite=True)

  def finish() -> None:
    response.result()
    if jax.process_index() == 0:
      # Orbax writes into it where it stands: a checkpoint is given away, the folders of a machine are not.
      if (note := partial / "commit_success.txt").exists():
        note.write_text("")
      _write_json(partial / META, meta)
      _write_json(partial / MANIFEST, _checksums(partial))
      partial.rename(directory)

  return finish


def _with_leaves(items: Mapping[str, Any]) -> dict[str, Any]:
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


def _damage(directory, *, verify: bool = True) -> str:
  """What is wrong with a step, in a few words; '' when it agrees with its manifest (not `verify`: in names alone)."""
  manifest = _read_json(directory / MANIFEST)
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


def _saved_shapes(directory) -> dict[str, Any]:
  metadata = ocp.checkpointables_metadata(directory).metadata
  return {item: metadata[item] for item in _items(directory)}


def _compare(complaint: str, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
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


def _items(directory) -> list[str]:
  return sorted(path.name for path in directory.iterdir() if path.is_dir()) if directory.is_dir() else []


def _steps(directory) -> list[int]:
  names = (path.name for path in directory.iterdir()) if directory.is_dir() else ()
  return sorted(int(name) for name in names if name.isdecimal())


def _read_json(path) -> Any:
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError):  # absent, unreadable, or cut short
    return None


def _write_json(path, value) -> None:
  temporary = path.parent / f".{path.name}"
  temporary.write_text(json.dumps(value, indent=1, sort_keys=True))
  temporary.replace(path)


def _from_first_process(value):
  return multihost_utils.broadcast_one_to_all(value) if jax.process_count() > 1 else value


def _versions() -> dict[str, str]:
  return {name: importlib.metadata.version(name) for name in PACKAGES}


def _reason(error: BaseException) -> str:
  """The first line of the innermost cause."""
  while error.__cause__ is not None:
    error = error.__cause__
  return (str(error).strip().splitlines() or [type(error).__name__])[0]
