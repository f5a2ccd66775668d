"""The checkpoints of one training run: saving, retention and restoring.

WORKDIR/checkpoints/<step>/     see `checkpoints.format`
WORKDIR/checkpoints/frozen/     frozen parameters, saved once; those by reference are only in the metadata
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from synclipmae_jax import sharding
from synclipmae_jax.checkpoints.format import (
  META,
  SCORES,
  damage_of,
  load_items,
  read_json,
  refuse_difference,
  saved_shapes,
  start_save,
  steps_in,
  versions,
  write_json,
)
from synclipmae_jax.checkpoints.reading import FROZEN
from synclipmae_jax.types import InputError, Params

_LOOK_SECONDS = 5  # polling interval while several processes wait for a save


class Checkpointer:
  """The checkpoints of one training run: saves in the background, keeps the last and the best, restores complete steps.

  Every process of the run calls every method. Only process 0 writes manifests and deletes.
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
    """Keeps the `keep_last` newest steps and the `keep_best` steps by `best_metric`; `stamp` goes into meta.json."""
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
      for path in self.directory.iterdir():  # left by a process that was killed while saving
        if not path.name.isdecimal() and path.name != FROZEN and not path.name.endswith(".damaged"):
          path.rmtree() if path.is_dir() else path.unlink()
    self._barrier("opened")

  # Saving

  def save(self, items: Mapping[str, Any], step: int, *, frozen_hash: str = "") -> None:
    """Starts saving `items` as `step`. Returns when their arrays are copied, so that the next step may donate them."""
    self.wait()
    meta = {**self.stamp, "step": step, "frozen_sha256": frozen_hash, "versions": versions()}
    self._start(str(step), items, meta)

  def _start(self, name: str, items: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    self._saving_name, self._saving = name, concurrent.futures.Future()
    try:
      finish = start_save(self.directory / name, items, meta)
      self._saving = self._worker.submit(self._finish_and_prune, finish)
    except Exception as error:  # the other processes may succeed: `wait` informs them
      self._saving.set_exception(error)

  def _finish_and_prune(self, finish: Callable[[], None]) -> None:
    finish()
    self._prune()

  def wait(self) -> None:
    """Returns when no save is in progress.

    Raises InputError on every process if one of them could not finish the save.
    """
    if self._saving is None:
      return
    saving, self._saving = self._saving, None
    outcomes: list[str | None] = [None]
    while None in outcomes:  # poll, because the saves of the others wait for a process that failed
      concurrent.futures.wait([saving], timeout=_LOOK_SECONDS if jax.process_count() > 1 else None)
      error = saving.exception() if saving.done() else None  # Orbax passes on file system errors of many types
      outcomes = sharding.gather((_reason(error) if error else "") if saving.done() else None)
      if reasons := [reason for reason in outcomes if reason]:
        kept = f"the last complete one is step {self.steps()[-1]}" if self.steps() else "there is no earlier one"
        raise InputError(
          f"checkpoint {self._saving_name} could not be written to {self.directory} ({reasons[0]}); {kept}"
        ) from error

  def score(self, step: int, scores: Mapping[str, Any]) -> None:
    """Stores the scores of a saved step and deletes the steps that are neither among the last nor among the best."""
    self.wait()
    if jax.process_index() == 0:
      write_json(self.directory / str(step) / SCORES, scores)
      self._prune()

  def save_frozen(self, frozen: Params, frozen_hash: str) -> None:
    """Saves the frozen parameters unless they are saved already.

    `frozen_hash` covers all frozen parameters, including those that the checkpoint keeps by reference.
    """
    directory = self.directory / FROZEN
    meta = read_json(directory / META) or {}
    if _from_first_process(np.bool_(meta.get("frozen_sha256") == frozen_hash)):
      return
    if jax.process_index() == 0 and directory.exists():  # left by a run that never saved a step
      directory.rmtree()
    self._start(FROZEN, frozen, {"frozen_sha256": frozen_hash, "versions": versions()})
    self.wait()

  # Restoring

  def steps(self) -> list[int]:
    """Saved steps, ascending."""
    return steps_in(self.directory)

  def is_scored(self, step: int) -> bool:
    """Whether `step` has been evaluated; the same answer on every process."""
    return bool(_from_first_process(np.bool_((self.directory / str(step) / SCORES).exists())))

  def last_whole_step(self) -> int | None:
    """Newest step that agrees with its manifest; None for a fresh workdir.

    A damaged step is reported and renamed to `<step>.damaged`. Raises InputError if all steps are damaged.
    """
    found = -1
    if jax.process_index() == 0:
      steps = self.steps()
      for step in reversed(steps):
        damage = damage_of(self.directory / str(step))
        if not damage:
          found = step
          break
        self._say(f"checkpoint {step} is damaged ({damage}) and was renamed; trying the previous one")
        aside = self.directory / f"{step}.damaged"
        if aside.exists():
          aside.rmtree()
        (self.directory / str(step)).rename(aside)
      found = -2 if steps and found < 0 else found
    found = int(_from_first_process(np.int64(found)))
    if found == -2:
      raise InputError(f"every checkpoint in {self.directory} is damaged; use another workdir or delete them")
    return None if found < 0 else found

  def restore(self, step: int, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Items of `step`, placed as in `abstract` (any mesh). Raises InputError if keys, shapes or dtypes differ."""
    directory = self.directory / str(step)
    refuse_difference(f"{directory} was made with another model", saved_shapes(directory), abstract)
    return load_items(directory, abstract)

  def restore_frozen(self, abstract: Params) -> Params | None:
    """The saved frozen parameters; None if they are missing or damaged. Damage is reported."""
    directory = self.directory / FROZEN
    missing = not directory.exists()
    if jax.process_index() == 0 and not missing and (damage := damage_of(directory)):
      self._say(f"the frozen parameters in {directory} are damaged ({damage}); creating them again")
      directory.rmtree()
      missing = True
    if _from_first_process(np.bool_(missing)):
      return None
    refuse_difference(f"{directory} was made with another model", saved_shapes(directory), abstract)
    return load_items(directory, abstract)

  # Housekeeping

  def _prune(self) -> None:
    if jax.process_index() != 0:
      return
    steps = self.steps()
    keep = set(steps[-self._keep_last :])
    if self._keep_best:
      scored = {step: (read_json(self.directory / str(step) / SCORES) or {}) for step in steps}
      ranked = sorted(
        (self._sign * scores[self._best_metric], step)
        for step, scores in scored.items()
        if scores.get(self._best_metric) is not None
      )
      keep |= {step for _, step in ranked[-self._keep_best :]}
    for step in set(steps) - keep:
      # Rename first: an interrupted deletion must not look like a damaged checkpoint.
      (self.directory / str(step)).rename(self.directory / f"{step}.deleting").rmtree()

  def _barrier(self, name: str) -> None:
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(f"checkpointer {name}")

  def close(self) -> None:
    """Waits for a save in progress, without raising."""
    if self._saving is not None:
      concurrent.futures.wait([self._saving])
    self._worker.shutdown(wait=False)


def _from_first_process(value):
  return multihost_utils.broadcast_one_to_all(value) if jax.process_count() > 1 else value


def _reason(error: BaseException) -> str:
  """The first line of the innermost cause."""
  while error.__cause__ is not None:
    error = error.__cause__
  return (str(error).strip().splitlines() or [type(error).__name__])[0]
