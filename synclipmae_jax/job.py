"""One job from a configuration: records, task, training, evaluation, and what is printed at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from synclipmae_jax import sharding
from synclipmae_jax.checkpoints.checkpoint import save_items
from synclipmae_jax.data import pipeline
from synclipmae_jax.data.prepare import prepare
from synclipmae_jax.data.records import open_records
from synclipmae_jax.data.synthtalk.corpus import write_corpus
from synclipmae_jax.evaluation.pretrain import COLUMNS, PretrainPictures, SyncEvaluator
from synclipmae_jax.evaluation.syncnet import SyncNetEvaluator
from synclipmae_jax.models.position import resize_position
from synclipmae_jax.pretrained import build_model
from synclipmae_jax.run.clock import Clock
from synclipmae_jax.tasks.pretrain import Pretrain
from synclipmae_jax.tasks.syncnet import SyncNetTask
from synclipmae_jax.train import loop
from synclipmae_jax.train.initial_items import plan_item
from synclipmae_jax.train.optim import make_optimizer
from synclipmae_jax.train.step import check_batch
from synclipmae_jax.types import FPS, SAMPLE_RATE, EvalClip, InputError, Params, Task

REFERENCE_CLIPS = 500  # training clips that the linear baseline and the ceiling are fitted on, at most
# Fields that make a model what it is: a workdir holds one model. Of these, some say how it is computed, not what it is.
MODEL_FIELDS = ("task", "model.", "data.image_size", "data.clip_frames", "data.audio_frames")
COMPUTING_FIELDS = {"model.compute_dtype", "model.unroll", "model.remat", "model.embed_visible"}


def run(config: ConfigDict, workdir: Path, *, overrides: dict[str, Any] | None = None) -> loop.TrainResult:
  """The whole job. What the user can mend raises InputError, and nothing is made or compiled before it is checked."""
  clock = Clock()
  started = time.perf_counter()
  training = build_training(config)
  task, mesh = training.task, training.mesh
  items = initial_items(config, task, resuming=has_checkpoints(workdir))
  check_workdir(config, workdir)

  sources = find_sources(config, workdir, clock)
  stamped = stamp(config, sources)
  clips, remark = evaluation_clips(config, sources, jax.process_index(), jax.process_count())
  shown = list(itertools.islice(evaluation_clips(config, sources, 0, 1)[0], COLUMNS))  # the same on every process
  write_config(config, workdir, overrides or {})

  def train_batches(step: int, host_index: int = jax.process_index(), host_count: int = jax.process_count()):
    return pipeline.train_batches(
      sources,
      seed=config.seed,
      batch_size=config.train.batch_clips // host_count,
      clip_frames=config.data.clip_frames,
      audio_context_frames=config.data.audio_frames,
      image_size=config.data.image_size,
      start_step=step,
      workers=config.data.workers,
      host_index=host_index,
      host_count=host_count,
    )

  evaluated = dict(
    clips=list(clips),
    train_clips=lambda: pipeline.eval_clips(
      sources[0].directory, split="train", image_size=config.data.image_size, max_clips=REFERENCE_CLIPS
    ),
    workdir=workdir,
    remark=remark,
  )
  draw = None
  if config.task == "syncnet":
    evaluator = SyncNetEvaluator(
      task,
      **evaluated,
      batches=lambda: itertools.islice(train_batches(0, 0, 1), config.train.calibration_batches),
      save=lambda step, params: save_calibrated(workdir, step, params, task=task, stamp=stamped),
    )
  else:
    evaluator = SyncEvaluator(task.model, **evaluated, mesh=mesh)
    draw = PretrainPictures(task.model, clips=shown, workdir=workdir, mesh=mesh)

  with clock("training"):
    result = loop.run(
      task,
      workdir=workdir,
      train_batches=train_batches,
      batch_size=config.train.batch_clips,
      total_steps=config.train.steps,
      optimizer=training.optimizer,
      mesh=mesh,
      seed=config.seed,
      **training.split,
      log_every=config.train.log_every,
      eval_every=config.train.eval_every,
      checkpoint_every=config.train.checkpoint_every,
      keep_last=config.train.keep_last,
      keep_best=config.train.keep_best,
      best_metric="sync/r_precision/top1",
      evaluators=[clock.timed("evaluation", evaluator)] if shown else (),
      pictures=clock.timed("pictures", draw) if shown and draw else None,
      pictures_every=config.train.pictures_every,
      initial_items=items,
      resize_position=resize_position,
      stamp=stamped,
      tensorboard=config.train.tensorboard,
    )
  # The loop's own time is what evaluation and pictures, which it calls, leave of it.
  clock.seconds["training"] -= sum(clock.seconds.get(part, 0.0) for part in ("evaluation", "pictures"))
  if result.stopped is None and jax.process_index() == 0:
    if evaluator.report is not None:
      if draw:
        with clock("pictures"):
          evaluator.draw_curves()
      print(f"\n{evaluator.report.table()}\n")
    else:
      print("\nThere is no clip to evaluate on.\n")
    print(clock.table(time.perf_counter() - started))
    print(next_commands(workdir, task=config.task))
  return result


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """What a train step is made of. `split`: keyword arguments of the step and of the loop, how a batch is divided."""

  task: Task
  mesh: Mesh
  optimizer: optax.GradientTransformation
  split: Mapping[str, int]


def build_training(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Training:
  """Task, mesh over `devices` (default: all) and optimizer of a configuration. Raises InputError."""
  task = build_task(config)
  try:
    mesh = sharding.make_mesh(config.train.mesh, devices)
  except InputError as error:
    raise InputError(f"{error}; this would do: --config.train.mesh=\"(('data', -1),)\"") from None
  split = dict(accumulation=config.train.accumulation, negatives_clips=task.negatives_clips)
  hosts = len({device.process_index for device in mesh.devices.flat})
  check_batch(config.train.batch_clips, mesh=mesh, processes=hosts, **split)
  warmup = min(config.optimizer.warmup_steps, config.train.steps)  # a few steps are a run too
  optimizer = make_optimizer(**{**config.optimizer, "warmup_steps": warmup}, total_steps=config.train.steps)
  return Training(task=task, mesh=mesh, optimizer=optimizer, split=split)


def _pretrain(config: ConfigDict, loss: dict[str, Any]) -> Pretrain:
  return Pretrain(build_model(config.to_dict()), **loss)


def _syncnet(config: ConfigDict, loss: dict[str, Any]) -> SyncNetTask:
  data = config.data
  shapes = dict(frame_size=data.image_size, clip_frames=data.clip_frames, audio_frames=data.audio_frames)
  return SyncNetTask(**config.model, **shapes, **loss)


TASKS: dict[str, Callable[[ConfigDict, dict[str, Any]], Task]] = {"pretrain": _pretrain, "syncnet": _syncnet}


def build_task(config: ConfigDict) -> Task:
  """The task of a configuration. Here, at the border, the configuration becomes keyword arguments."""
  if config.task not in TASKS:
    raise InputError(f"unknown task {config.task!r}: what can be trained is {', '.join(TASKS)}")
  if config.seed < 0:
    raise InputError(f"the seed must be 0 or more, not {config.seed}")
  loss = config.loss.to_dict()
  if loss["negatives_clips"] == 0:  # all of the micro-batch
    loss["negatives_clips"] = config.train.batch_clips // max(config.train.accumulation, 1)
  try:
    return TASKS[config.task](config, loss)
  except (TypeError, ValueError, ArithmeticError) as error:
    raise InputError(f"this configuration makes no model: {error}") from error


def initial_items(config: ConfigDict, task: Task, *, resuming: bool) -> dict[str, str | None]:
  """Items that may start from a checkpoint -> its directory, or None where none is given.

  A directory that does not fit is refused here already, from its keys and shapes; `resuming`, none is looked at. A
  frozen encoder of random numbers is refused, unless that is asked for by name.
  """
  if "init" not in config:
    return {}
  items = {name: config.init[name] or None for name in ("visual_encoder", "speech_encoder", "decoder")}
  trainable, frozen = jax.eval_shape(task.init, jax.random.key(0))
  needed = set(config.init.require)
  if not config.init.allow_random_frozen:
    needed |= {name for name, params in frozen.items() if jax.tree.leaves(params)}
  for name in sorted(name for name in needed if not items.get(name)):
    why = "is frozen, and random numbers would stay random" if name in frozen else "starts from donor weights here"
    way_out = "--config.init.allow_random_frozen" if name in frozen else "--config.init.require='()'"
    raise InputError(
      f"the {name} {why}: give its converted checkpoint with --config.init.{name}=DIR, or pass {way_out}"
      f"{' and a shorter --config.init.require' if name in frozen and name in config.init.require else ''}"
    )
  for name, directory in items.items():
    if directory and not resuming:
      wanted = dict(items={**trainable, **frozen}, frozen=name in frozen, resize_position=resize_position)
      try:  # the loop, which reads the files, will compare them with their manifest
        plan_item(directory, name, **wanted, verify=False)
      except InputError as error:
        raise InputError(f"--config.init.{name}={directory}: {error}") from None
  return items


def has_checkpoints(workdir: Path) -> bool:
  """Whether a run in `workdir` has saved anything."""
  return any(path.name.isdecimal() for path in (workdir / "checkpoints").glob("*"))


def check_workdir(config: ConfigDict, workdir: Path) -> None:
  """Refuses a workdir that holds another model, before anything in it is touched; says what else differs."""
  try:
    before = json.loads((workdir / "config.json").read_text())["config"]
  except (FileNotFoundError, ValueError, KeyError):  # none, or one that a killed run left half
    return
  before, now = (dict(_flatten(tree)) for tree in (before, _resolved(config)))
  changed = {
    field: f"{field} {before.get(field)} -> {now.get(field)}"
    for field in sorted(before.keys() | now.keys())
    if before.get(field) != now.get(field)
  }
  other = [text for field, text in changed.items() if field.startswith(MODEL_FIELDS) and field not in COMPUTING_FIELDS]
  if other and has_checkpoints(workdir):
    raise InputError(f"{workdir} was made with another model ({', '.join(other)}): name another workdir")
  if changed and jax.process_index() == 0:
    print(f"this run differs from the one that made {workdir}: {', '.join(changed.values())}")


def find_sources(config: ConfigDict, workdir: Path, clock: Clock) -> list[pipeline.Source]:
  """The records to train on; the embedded corpus is written and prepared first, unless it is there already."""
  if config.data.sources:
    try:
      return [pipeline.Source(directory=str(path), weight=float(weight)) for path, weight in config.data.sources]
    except (TypeError, ValueError):
      raise InputError(
        f"data.sources is a tuple of (directory, weight), like (('DIR', 1.0),), not {config.data.sources!r}"
      ) from None
  if not config.data.synthtalk:
    raise InputError(
      "there is nothing to train on: give --config.data.sources=\"(('DIR', 1.0),)\" with what `synclipmae prepare`"
      " made, or use the preset demo, which makes its own data"
    )
  corpus = config.data.synthtalk
  raw, out = workdir / "data" / "synthtalk", workdir / "data" / "prepared"
  bars = sys.stderr.isatty()  # in a log file they are noise
  if jax.process_index() == 0:
    print(f"SynthTalk: {corpus.train} clips to train on, {corpus.test} to test on, in {workdir / 'data'}", flush=True)
    with clock("synthesis"):
      write_corpus(
        raw,
        clips={"train": corpus.train, "test": corpus.test},
        seconds=corpus.seconds,
        size=corpus.size,
        seed=corpus.seed,
        progress=bars,
      )
    with clock("preparing"):
      manifest = prepare(
        raw,
        out,
        corpus="synthtalk",
        faces="precomputed",
        size=config.data.image_size,
        workers=os.cpu_count() or 1,
        progress=bars,
      )
    if refused := manifest.summary()["reasons"]:
      print(f"{len(refused)} files were refused, see {out / 'manifest.jsonl'}")
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("data is prepared")
  return [pipeline.Source(directory=out)]


def evaluation_clips(
  config: ConfigDict,
  sources: Sequence[pipeline.Source],
  host_index: int,
  host_count: int,
  image_size: int | None = None,
) -> tuple[Iterable[EvalClip], str]:
  """A host's share of the clips of the first source to evaluate on, held out where it has such a split, and a remark
  where it has not. `image_size`: other than the configuration's."""
  directory, wanted = sources[0].directory, config.data.eval_split
  split, missing = wanted, ""
  try:
    open_records(directory, split=wanted)
  except InputError:
    split, missing = "train", f"{directory} has no split {wanted!r}: "
  clips = pipeline.eval_clips(
    directory,
    split=split,
    image_size=image_size or config.data.image_size,
    max_clips=config.data.eval_clips,
    host_index=host_index,
    host_count=host_count,
  )
  return clips, f"{missing}these are training clips" if split == "train" else ""


def stamp(config: ConfigDict, sources: Sequence[pipeline.Source]) -> dict[str, Any]:
  """What a checkpoint says about itself: the configuration, the preprocessing it was trained on, the revision."""
  return {
    "task": config.task,
    "config": _resolved(config),
    "preprocessing": {
      **open_records(sources[0].directory, split="train").preprocessing,
      "image_size": config.data.image_size,
      "fps": FPS,
      "sample_rate": SAMPLE_RATE,
      **({"embed_visible": config.model.embed_visible} if "embed_visible" in config.model else {}),
    },
    "revision": revision(),
  }


def save_calibrated(
  workdir: Path, step: int, params: Params, *, task: SyncNetTask, stamp: Mapping[str, Any]
) -> None:
  """WORKDIR/calibrated/STEP: SyncNet with the statistics of its batch norm, ready to use."""
  directory = workdir / "calibrated" / str(step)
  if not directory.exists():
    meta = {**stamp, "sizes": task.sizes, "similarity": task.similarity}
    save_items(directory, {"syncnet": params["syncnet"]}, meta)


def revision() -> str | None:
  """The git revision of the code, with + where it was changed; None outside a checkout."""
  here = Path(__file__).parent
  with contextlib.suppress(OSError, subprocess.CalledProcessError):
    ask = lambda *words: subprocess.run(
      ["git", *words], cwd=here, check=True, capture_output=True, text=True
    ).stdout.strip()
    return ask("rev-parse", "HEAD") + ("+" if ask("status", "--porcelain", "--", str(here)) else "")
  return None


def write_config(config: ConfigDict, workdir: Path, overrides: dict[str, Any]) -> None:
  """WORKDIR/config.json: the resolved configuration, its overrides, the revision, the command."""
  if jax.process_index():
    return
  workdir.mkdir(parents=True, exist_ok=True)
  text = {"config": _resolved(config), "overrides": overrides, "revision": revision(), "command": sys.argv}
  partial = workdir / "config.json.tmp"
  partial.write_text(json.dumps(text, indent=2, default=str) + "\n")
  partial.replace(workdir / "config.json")


def _resolved(config: ConfigDict) -> dict[str, Any]:
  return json.loads(config.to_json_best_effort())


def _flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
  if not isinstance(tree, dict):
    yield prefix, tree
    return
  for name, value in tree.items():
    yield from _flatten(value, f"{prefix}.{name}" if prefix else name)


def next_commands(workdir: Path, *, task: str) -> str:
  """What a newcomer may want to do next, with this environment's own commands."""
  here = Path(sys.executable)
  here = here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here
  if task == "syncnet":
    return f"""Results: eval.json, metrics.jsonl, calibrated parameters and checkpoints in {workdir}
Next:
  {here} -m synclipmae_jax.main --config=configs/sync.py --workdir={workdir.parent / "sync"} \\
    --config.models="(('linear', None), ('syncnet', '{workdir}'), ('synclipmae', None))"   # beside other models
"""
  again = f"{here} -m synclipmae_jax.main --config=configs/pretrain.py"
  long, ablation, yours, on_yours = (workdir.parent / name for name in ("long", "demo_A1", "yours", "on_yours"))
  sources = f"--config.data.sources=\"(('{yours}', 1.0),)\""
  return f"""Results: eval.json, metrics.jsonl, pictures and checkpoints in {workdir}
Next:
  {again}:long --workdir={long}   # a longer budget
  {again}:demo,A1 --workdir={ablation}   # an ablation of the paper's appendix
  {here.with_name("synclipmae")} prepare --raw YOUR_VIDEOS --out {yours} --size 64   # your own footage …
  {again}:demo --workdir={on_yours} {sources}   # … and a model of it
"""
