"""The training loop. Restore first; then save, evaluate, load a batch and step, until the last step, a signal or a loss
that is not finite."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from synclipmae_jax import checkpoints, sharding
from synclipmae_jax.train.initialisation import Initialisation, ResizePosition, fill, plan_item
from synclipmae_jax.train.interrupt import Interrupt
from synclipmae_jax.train.logging import Logger
from synclipmae_jax.train.optim import Optimizer
from synclipmae_jax.train.profiling import StepProfiler
from synclipmae_jax.train.progress import NonFiniteLoss, Steps
from synclipmae_jax.train.state import TrainState, abstract_state, init_state
from synclipmae_jax.train.step import check_batch, make_train_step
from synclipmae_jax.types import Batch, Evaluator, InputError, Params, Pictures, Task, TrainBatches

OPT_STATE = "opt_state"  # checkpoint item of the optimizer, in addition to the task's items


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
  """How a run ended."""

  step: int  # updates applied
  metrics: Mapping[str, Any]  # scores of the final evaluation, else the last step's metrics
  stopped: str | None  # None at the end, else 'sigint' or 'sigterm'; then the state is saved at `step`
  trainable: Params
  frozen: Params


def run(
  task: Task,
  *,
  workdir: str | Path,
  train_batches: TrainBatches,
  batch_size: int,
  total_steps: int,
  optimizer: Optimizer,
  mesh: Mesh,
  seed: int = 0,
  accumulation: int = 1,
  log_every: int = 10,
  eval_every: int | None = None,
  checkpoint_every: int = 500,
  keep_last: int = 2,
  keep_best: int = 0,
  best_mode: str = "max",
  evaluators: Sequence[Evaluator] = (),
  pictures: Pictures | None = None,
  pictures_every: int | None = None,
  initial_items: Mapping[str, str | Path | None] | None = None,
  frozen_by_reference: Sequence[str] = (),
  resize_position: ResizePosition | None = None,
  stamp: Mapping[str, Any] | None = None,
  tensorboard: bool = False,
  profile: Sequence[int] | None = None,
) -> TrainResult:
  """Trains `task` to `total_steps` updates; with an existing workdir it resumes bit for bit.

  `train_batches(step)` opens this host's stream at a step; `batch_size` counts the examples of all hosts. `eval_every`
  None: evaluate only at the end. Scores are logged as `<evaluator>/<metric>`; `task.best_metric`, such a name, ranks
  the `keep_best` checkpoints. After the last of these evaluations each evaluator is called once more with `final`, for
  the test data; these scores are returned, neither logged nor ranked. `initial_items` (item -> checkpoint that holds
  it, or None if none is given) replaces initial parameters; `resize_position` converts positional tables of another
  grid. A checkpoint in the workdir takes precedence. Frozen items in `frozen_by_reference` are not copied into the
  workdir: its checkpoints name the directory in `initial_items` and the hash of its manifest. The origin of the
  parameters is printed and written to WORKDIR/initialisation.json. `stamp` (config, preprocessing, git revision) goes
  into every checkpoint's meta.json, with the donors' licences and the metadata of the frozen items. `profile` (first,
  last): a trace of these steps is written to WORKDIR/profile.

  Raises InputError, before compilation, for a batch that does not divide, for a workdir of another model and for a
  workdir whose checkpoints are all damaged; NonFiniteLoss during training.
  """
  check_batch(task, batch_size, mesh=mesh, accumulation=accumulation, processes=jax.process_count())
  initial_items = initial_items or {}
  profiler = StepProfiler(profile, Path(workdir) / "profile")
  # Restore first: a workdir of another model is refused before anything is built.
  saved = checkpoints.Checkpointer(
    workdir, keep_last=keep_last, keep_best=keep_best, best_metric=task.best_metric, best_mode=best_mode, stamp=stamp
  )
  step = saved.last_whole_step()
  abstract, abstract_frozen = abstract_state(task, optimizer, mesh)
  frozen = None
  before = checkpoints.load_meta(saved.directory / str(step)) if step is not None else {}
  if step is not None:
    trainable = saved.restore(step, _items(abstract))
    opt_state = trainable.pop(OPT_STATE)
    state = TrainState(jax.device_put(np.int32(step), abstract.step.sharding), trainable, opt_state)
    frozen = _restore_frozen(saved, before, abstract_frozen, initial_items)
  # A compiled function makes the keys global arrays with several processes.
  init_key, train_key = jax.jit(
    lambda: tuple(jax.random.split(jax.random.key(seed))), out_shardings=NamedSharding(mesh, PartitionSpec())
  )()
  if step is None or frozen is None:
    fresh, frozen, initialisation = _initial(
      task, optimizer, mesh, init_key, initial_items, resize_position, abstract, abstract_frozen
    )
    state = fresh if step is None else state
  resumed, step = step is not None, step or 0
  if step > total_steps:
    raise InputError(f"{workdir} is at step {step} already, beyond the {total_steps} steps asked for")

  # The frozen parameters are not in the checkpoints. Each checkpoint stores their hash instead.
  frozen_hash = checkpoints.tree_hash(frozen)
  if resumed and before["frozen_sha256"] != frozen_hash:
    raise InputError(f"the frozen parameters are not those that step {step} in {workdir} was trained with")
  if resumed:
    saved.stamp |= {name: before[name] for name in ("donors", "frozen") if name in before}
  else:
    saved.stamp |= {"donors": initialisation.donors(), "frozen": initialisation.frozen(frozen_by_reference)}
  copied = {name: item for name, item in frozen.items() if not _reference(saved.stamp, name)}
  if jax.tree.leaves(copied):
    saved.save_frozen(copied, frozen_hash)

  train_step = make_train_step(task, optimizer, mesh=mesh, accumulation=accumulation)
  log = Logger(workdir, step=step, total_steps=total_steps, tensorboard=tensorboard)
  log.parameters(state.trainable, frozen)
  if resumed:
    unread = [name for name, directory in initial_items.items() if directory]
    aside = f"; its checkpoint takes precedence over the initial {', '.join(unread)}" if unread else ""
    log.say(f"resuming {workdir} at step {step} of {total_steps}{aside}")
  else:
    log.say("\n".join(initialisation.lines()))
    if jax.process_index() == 0:
      initialisation.write(Path(workdir) / "initialisation.json")

  batches: Iterator[Batch] | None = None
  saved_step = step if resumed else None
  scores: Mapping[str, Any] = {}
  with Interrupt() as interrupt, profiler:
    steps = Steps(log, interrupt, task, mesh=mesh, every=log_every, total_steps=total_steps)
    try:
      while True:
        # Save first: the rest of this iteration may crash, be interrupted or take long.
        last, stop = step == total_steps, interrupt.stop
        due_eval = bool(evaluators) and (last or bool(eval_every and step and step % eval_every == 0))
        due_save = last or stop or due_eval or bool(checkpoint_every and step and step % checkpoint_every == 0)
        if due_save and saved_step != step:
          steps.settle()  # detect a loss that is not finite before its step is saved
          saved.save(_items(state), step, frozen_hash=frozen_hash)
          saved_step = step
        if stop:
          break

        # Evaluate the state that was just saved. After resuming, repeat an evaluation that was interrupted. At the end
        # always evaluate: a finished run that is started again prints its result again.
        if due_eval and (last or not saved.is_scored(step)):
          evaluate = functools.partial(_evaluate, evaluators, state.trainable, frozen, step=step)
          if (found := interrupt.breakable(functools.partial(evaluate, final=False))) is not None:
            log.scalars(step, found)
            saved.score(step, found)
          if last and not interrupt.stop:
            scores = interrupt.breakable(functools.partial(evaluate, final=True)) or {}
        if pictures and (last or (pictures_every and step and step % pictures_every == 0)):
          images = interrupt.breakable(functools.partial(pictures, state.trainable, frozen, step=step))
          log.images(step, images or {})
        if last:
          break
        if interrupt.stop:  # the signal came during the evaluation: the state is already saved
          continue

        # The stream is a pure function of the step: open it once, at the current step.
        started = time.perf_counter()
        try:
          batches = train_batches(step) if batches is None else batches
          batch = sharding.to_global(_checked(next(batches), batch_size), mesh)
        except Exception:
          if not interrupt.stop:  # Ctrl-C also ends the data workers
            raise
          continue
        data_wait = time.perf_counter() - started
        state, metrics = profiler.run(step + 1, train_step, state, frozen, batch, train_key)
        step += 1
        # Read the metrics of the previous step while the device computes this one.
        steps.push(step, metrics, batch, started=started, wait=data_wait)
      steps.settle()
      saved.wait()
    except (NonFiniteLoss, OSError) as error:  # OSError: a full disk, from the log or the data
      saved.close()
      kept = saved.steps()
      last_good = f"{saved.directory / str(kept[-1])}" if kept else "none was saved yet"
      kind = NonFiniteLoss if isinstance(error, NonFiniteLoss) else InputError
      raise kind(f"{error}; the last good checkpoint: {last_good}") from error
    finally:
      saved.close()
      log.close()
      if hasattr(batches, "close"):  # ends the data workers
        batches.close()
  if interrupt.stop:
    log.say(f"{interrupt.stop}: saved step {step} in {saved.directory}; to resume, run the same command again")
  return TrainResult(
    step=step,
    metrics=scores or steps.latest,
    stopped=interrupt.stop,
    trainable=state.trainable,
    frozen=frozen,
  )


def _items(state: TrainState) -> dict[str, Any]:
  """The items of a checkpoint."""
  return {**state.trainable, OPT_STATE: state.opt_state}


def _reference(meta: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
  """Reference to the frozen item `name` in a checkpoint's metadata; None if the workdir holds a copy."""
  return meta.get("frozen", {}).get(name, {}).get("reference")


def _restore_frozen(
  saved: checkpoints.Checkpointer,
  before: Mapping[str, Any],
  abstract: Params,
  directories: Mapping[str, str | Path | None],
) -> Params | None:
  """Frozen parameters of a resumed run; None if they must be created again.

  An item by reference is read from the directory in `directories` if there is one (it may have been moved), otherwise
  from the recorded directory.
  """
  frozen = {name: item for name, item in abstract.items() if not _reference(before, name)}
  if jax.tree.leaves(frozen):
    restored = saved.restore_frozen(frozen)
    if restored is None:
      return None
    frozen = dict(restored)
  for name, item in abstract.items():
    if (reference := _reference(before, name)) is not None:
      reference = {**reference, "directory": directories.get(name) or reference["directory"]}
      found = checkpoints.find_reference(name, reference, owner=str(saved.directory.parent))
      frozen[name] = plan_item(found.directory, name, abstract, frozen=True, verify=False).fill(item)
  return {name: frozen[name] for name in abstract}


def _initial(
  task: Task,
  optimizer: Optimizer,
  mesh: Mesh,
  key,
  directories: Mapping[str, str | Path | None],
  resize_position: ResizePosition | None,
  abstract: TrainState,
  abstract_frozen: Params,
) -> tuple[TrainState, Params, Initialisation]:
  """Fresh parameters, with the given items from other checkpoints, which are read and checked first."""
  wanted = {**abstract.trainable, **abstract_frozen}
  plans = [
    plan_item(directory, name, wanted, frozen=name in abstract_frozen, resize_position=resize_position)
    for name, directory in directories.items()
    if directory
  ]
  leaves = {plan.saved.name: plan.load(wanted[plan.saved.name]) for plan in plans}
  state, frozen = init_state(task, optimizer, mesh, key)
  trainable, frozen = (
    {name: fill(item, leaves.get(name, {})) for name, item in tree.items()} for tree in (state.trainable, frozen)
  )
  fresh = {
    name: (f"no --config.init.{name} given" if name in directories else "always")
    + (", frozen" if name in abstract_frozen else "")
    for name, item in wanted.items()
    if name not in leaves and jax.tree.leaves(item)
  }
  return dataclasses.replace(state, trainable=trainable), frozen, Initialisation(items=plans, fresh=fresh)


def _evaluate(evaluators: Sequence[Evaluator], trainable: Params, frozen: Params, *, step: int, final: bool):
  return {
    f"{evaluator.name}/{name}": value.item() if hasattr(value, "item") else value
    for evaluator in evaluators
    for name, value in evaluator(trainable, frozen, step=step, final=final).items()
  }


def _checked(batch: Batch, batch_size: int) -> Batch:
  examples = len(batch["index"]) * jax.process_count()
  if examples != batch_size:
    raise InputError(f"the stream yields batches of {examples} examples, but batch_size is {batch_size}")
  return batch
