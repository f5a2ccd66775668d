"""The one training loop. A run told in order: look at what is there, compile nothing in vain, then repeat
save -> evaluate -> next batch -> step, until the last step, a signal or a loss that is no number."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from synclipmae_jax import sharding
from synclipmae_jax.checkpoints import checkpoint
from synclipmae_jax.train import flops
from synclipmae_jax.train.initial_items import Initialisation, ResizePosition, fill, plan_item
from synclipmae_jax.train.interrupt import Interrupt
from synclipmae_jax.train.logging import Logger
from synclipmae_jax.train.optim import Optimizer
from synclipmae_jax.train.state import TrainState, abstract_state, init_state
from synclipmae_jax.train.step import check_batch, make_train_step
from synclipmae_jax.types import Batch, Evaluator, InputError, Params, Task, TrainBatches

Pictures = Callable[..., Mapping[str, np.ndarray]]  # (trainable, frozen, *, step) -> name -> uint8 [H, W, 3]


class NonFiniteLoss(InputError):
  """A loss or gradient was not a number; nothing was saved after it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
  """How a run ended."""

  step: int  # updates applied
  metrics: Mapping[str, Any]  # scores of the last evaluation, else the last step's metrics
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
  negatives_clips: int | None = None,
  log_every: int = 10,
  eval_every: int | None = None,
  checkpoint_every: int = 500,
  keep_last: int = 2,
  keep_best: int = 0,
  best_metric: str | None = None,
  best_mode: str = "max",
  evaluators: Sequence[Evaluator] = (),
  pictures: Pictures | None = None,
  pictures_every: int | None = None,
  initial_items: Mapping[str, str | Path | None] | None = None,
  resize_position: ResizePosition | None = None,
  stamp: Mapping[str, Any] | None = None,
  tensorboard: bool = False,
) -> TrainResult:
  """Trains `task` to `total_steps` updates; started again on the same workdir it goes on where it was, bit for bit.

  `train_batches(step)` opens this host's stream at a step; `batch_size` counts the clips of all hosts. `eval_every`
  None: at the end only. Scores are logged as `<evaluator>/<metric>`, and `best_metric` is such a name. `initial_items`
  (item -> checkpoint that holds it; None: it could have been given) replaces initial parameters, positional tables of
  another grid by way of `resize_position`; a checkpoint in the workdir takes precedence. What came from where goes to
  the terminal and to WORKDIR/initialisation.json.
  `stamp` (config, preprocessing, git revision) goes into every checkpoint's meta.json, and so do the donors' licences.

  Raises InputError, before anything is compiled, for a batch that does not divide, for a workdir made with another
  model and for one whose checkpoints are all damaged; NonFiniteLoss during training.
  """
  check_batch(
    batch_size,
    mesh=mesh,
    accumulation=accumulation,
    negatives_clips=negatives_clips,
    processes=jax.process_count(),
  )
  # Restore before building anything: a workdir of another model is refused while that still costs nothing.
  checkpoints = checkpoint.Checkpointer(
    workdir, keep_last=keep_last, keep_best=keep_best, best_metric=best_metric, best_mode=best_mode, stamp=stamp
  )
  step = checkpoints.last_whole_step()
  abstract, abstract_frozen = abstract_state(task, optimizer, mesh)
  if step is not None:
    state = checkpoints.restore(step, abstract)
    frozen = checkpoints.restore_frozen(abstract_frozen) if jax.tree.leaves(abstract_frozen) else abstract_frozen
  # Made by a compiled function, so that with several processes the keys are global arrays.
  init_key, train_key = jax.jit(
    lambda: tuple(jax.random.split(jax.random.key(seed))), out_shardings=NamedSharding(mesh, PartitionSpec())
  )()
  if step is None or frozen is None:
    fresh, frozen, initialisation = _initial(
      task, optimizer, mesh, init_key, initial_items or {}, resize_position, abstract, abstract_frozen
    )
    state = fresh if step is None else state
  resumed, step = step is not None, step or 0
  if step > total_steps:
    raise InputError(f"{workdir} is at step {step} already, beyond the {total_steps} steps asked for")

  # The frozen parameters are not in the checkpoints, so each checkpoint says which ones it was trained with.
  frozen_hash = checkpoint.tree_hash(frozen)
  before = checkpoint.load_meta(checkpoints.directory / str(step)) if resumed else {}
  if resumed and before["frozen_sha256"] != frozen_hash:
    raise InputError(f"the frozen parameters are not those that step {step} in {workdir} was trained with")
  checkpoints.stamp["donors"] = before.get("donors", {}) if resumed else initialisation.donors()
  if frozen_hash:
    checkpoints.save_frozen(frozen, frozen_hash)

  train_step = make_train_step(
    task, optimizer, mesh=mesh, accumulation=accumulation, negatives_clips=negatives_clips
  )
  log = Logger(workdir, step=step, total_steps=total_steps, tensorboard=tensorboard)
  log.parameters(state.trainable, frozen)
  if resumed:
    unread = [name for name, directory in (initial_items or {}).items() if directory]
    aside = f"; its checkpoint takes precedence over the initial {', '.join(unread)}" if unread else ""
    log.say(f"resuming {workdir} at step {step} of {total_steps}{aside}")
  else:
    log.say("\n".join(initialisation.lines()))
    if jax.process_index() == 0:
      initialisation.write(Path(workdir) / "initialisation.json")

  batches: Iterator[Batch] | None = None
  saved_step = step if resumed else None
  scores: Mapping[str, Any] = {}
  with Interrupt() as interrupt:
    steps = _Steps(log, interrupt, task, mesh=mesh, batch_size=batch_size, every=log_every, total_steps=total_steps)
    try:
      while True:
        # Save before anything else happens at this step: what follows may crash, be interrupted or take long.
        last, stop = step == total_steps, interrupt.stop
        due_eval = bool(evaluators) and (last or bool(eval_every and step and step % eval_every == 0))
        due_save = last or stop or due_eval or bool(checkpoint_every and step and step % checkpoint_every == 0)
        if due_save and saved_step != step:
          steps.settle()  # a loss that is no number must be seen before its step is saved
          checkpoints.save(state, step, frozen_hash=frozen_hash)
          saved_step = step
        if stop:
          break

        # Evaluate the state that was just saved. On resuming, make up for an evaluation that was cut off; at the end
        # always evaluate, so that a finished run started again shows its result again.
        if due_eval and (last or not checkpoints.is_scored(step)):
          found = interrupt.breakable(
            functools.partial(_evaluate, evaluators, state.trainable, frozen, step=step, final=last)
          )
          if found is not None:
            scores = found
            log.scalars(step, scores)
            checkpoints.score(step, scores)
        if pictures and (last or (pictures_every and step and step % pictures_every == 0)):
          images = interrupt.breakable(functools.partial(pictures, state.trainable, frozen, step=step))
          log.images(step, images or {})
        if last:
          break
        if interrupt.stop:  # it came during the evaluation: back to the top, where nothing is left to save
          continue

        # The stream is a pure function of the step: opened once, here, at the step where the state stands.
        started = time.perf_counter()
        try:
          batches = train_batches(step) if batches is None else batches
          batch = sharding.to_global(_checked(next(batches), batch_size), mesh)
        except Exception:
          if not interrupt.stop:  # a Ctrl-C ends the data workers too
            raise
          continue
        data_wait = time.perf_counter() - started
        state, metrics = train_step(state, frozen, batch, train_key)
        step += 1
        # Read the metrics of the step before: the device computes this one meanwhile.
        steps.push(step, metrics, started=started, data_wait=data_wait, frames=batch["frames"].shape[1])
      steps.settle()
      checkpoints.wait()
    except (NonFiniteLoss, OSError) as error:  # OSError: a full disk, met by the log or by the data
      checkpoints.close()
      kept = checkpoints.steps()
      last_good = f"{checkpoints.directory / str(kept[-1])}" if kept else "none was saved yet"
      kind = NonFiniteLoss if isinstance(error, NonFiniteLoss) else InputError
      raise kind(f"{error}; the last good checkpoint: {last_good}") from error
    finally:
      checkpoints.close()
      log.close()
      if hasattr(batches, "close"):  # ends the data workers
        batches.close()
  if interrupt.stop:
    log.say(f"{interrupt.stop}: saved step {step} in {checkpoints.directory}; to resume, run the same command again")
  return TrainResult(
    step=step,
    metrics=scores or steps.latest,
    stopped=interrupt.stop,
    trainable=state.trainable,
    frozen=frozen,
  )


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
  """Fresh parameters, with the given items taken from other checkpoints; these are read, and refused, first."""
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
    name: (f"no --config.init.{name} given" if name in directories else "as always")
    + (", and frozen so" if name in abstract_frozen else "")
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
  clips = len(batch["index"]) * jax.process_count()
  if clips != batch_size:
    raise InputError(f"the stream gives batches of {clips} clips, batch_size says {batch_size}")
  return batch


class _Steps:
  """Reads each step's metrics one step late, so that the host never waits for the device with nothing queued on it."""

  def __init__(self, log: Logger, interrupt: Interrupt, task: Task, *, mesh: Mesh, batch_size, every, total_steps):
    self.latest: dict[str, Any] = {}
    self._log, self._interrupt = log, interrupt
    self._devices, self._batch_size, self._every, self._total = list(mesh.devices.flat), batch_size, every, total_steps
    self._flops = task.model_flops(batch_size)
    self._pending = None
    self._last_read = 0.0
    self._seconds, self._waits = [], []

  def push(self, step: int, metrics, *, started: float, data_wait: float, frames: int) -> None:
    """Queues the metrics of `step`, just dispatched, and reads those of the step before."""
    before, self._pending = self._pending, (step, metrics, self._interrupt.cast_vote(), started, data_wait, frames)
    if before is not None:
      self._read(*before)

  def settle(self) -> None:
    """Reads what is still queued."""
    before, self._pending = self._pending, None
    if before is not None:
      self._read(*before)

  def _read(self, step: int, metrics, vote, started: float, data_wait: float, frames: int) -> None:
    metrics, vote = jax.device_get((metrics, vote))
    self._interrupt.read_vote(vote)
    values = {name: float(value) for name, value in metrics.items()}
    if not values.pop("finite"):
      self._log.scalars(step, values)
      raise NonFiniteLoss(
        f"the loss or its gradient is not finite at step {step}"
        f" (loss {values['loss']:g}, gradient norm {values['grad_norm']:g}); its update was not applied"
      )
    now = time.perf_counter()
    if self.latest:
      # A step lasts from its predecessor's result to its own, or from its own start where something came between.
      self._seconds.append(now - max(started, self._last_read))
      self._waits.append(data_wait)
    else:
      self._log.say(f"compiled and ran the first step in {now - started:.1f} s")
    self._last_read, self.latest = now, values
    due = step == self._total or bool(self._every and step % self._every == 0)
    speed = self._speed(frames)
    if due:
      self._log.scalars(step, values | speed)
      self._seconds, self._waits = [], []
    self._log.progress(step, _summary(values, speed), line=due)

  def _speed(self, frames: int) -> dict[str, float]:
    """Means since the last log line; nothing where only the first step, which compiles, was seen."""
    if not self._seconds:
      return {}
    seconds = sum(self._seconds) / len(self._seconds)
    speed = {
      "step_seconds": seconds,
      "frames_per_second": self._batch_size * frames / seconds,
      "data_wait_seconds": sum(self._waits) / len(self._waits),
    }
    utilisation = flops.mfu(self._flops, seconds, self._devices)
    return speed if utilisation is None else speed | {"mfu": utilisation}


def _summary(values: Mapping[str, float], speed: Mapping[str, float]) -> str:
  terms = [name for name in values if name not in ("loss", "grad_norm", "learning_rate")]
  text = " ".join(f"{name} {values[name]:.4g}" for name in ["loss", *terms])
  if speed:
    text += f" | {speed['step_seconds'] * 1e3:.0f} ms/step, {speed['frames_per_second']:.0f} frames/s"
    text += f", data wait {speed['data_wait_seconds'] * 1e3:.0f} ms"
  return text + (f", MFU {speed['mfu']:.1%}" if "mfu" in speed else "")
