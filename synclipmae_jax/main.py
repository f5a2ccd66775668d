"""Runs a job: a configuration in, a workdir out.

    python -m synclipmae_jax.main --config=configs/pretrain.py:demo --workdir=runs/demo

Started again on the same workdir it resumes. Any field of the configuration can be overridden, typed and checked:
--config.optimizer.peak_lr=5e-4. The workdir holds config.json, metrics.jsonl, parameters.txt, checkpoints/, eval.json
and pictures.

Exit status: 0 done; 1 the loss is no number; 2 wrong input; 130 after Ctrl-C, 143 after SIGTERM, the state saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from synclipmae_jax import sharding
from synclipmae_jax.data import pipeline
from synclipmae_jax.data.prepare import prepare
from synclipmae_jax.data.records import open_records
from synclipmae_jax.data.synthtalk.corpus import write_corpus
from synclipmae_jax.models.synclipmae import SyncLipMAE
from synclipmae_jax.tasks.pretrain import Pretrain
from synclipmae_jax.tasks.pretrain_evaluation import PretrainPictures, SyncEvaluator
from synclipmae_jax.train import loop
from synclipmae_jax.train.optim import make_optimizer
from synclipmae_jax.train.step import check_batch
from synclipmae_jax.types import FPS, SAMPLE_RATE, EvalClip, InputError

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, and behind a colon its preset.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; an existing one is resumed.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of many processes, as found by jax.distributed (pods).")

REFERENCE_CLIPS = 120  # training clips that the linear baseline and the ceiling are fitted on


def main(_argv: Sequence[str]) -> int:
  """Runs the job of the flags; the exit status."""
  logging.set_verbosity(logging.WARNING)  # the libraries' own progress reports
  try:
    if DISTRIBUTED.value:
      jax.distributed.initialize()
    result = run(CONFIG.value, Path(WORKDIR.value), overrides=config_flags.get_override_values(flags.FLAGS["config"]))
  except InputError as error:
    print(f"synclipmae_jax.main: {error}", file=sys.stderr)
    return 1 if isinstance(error, loop.NonFiniteLoss) else 2
  return {None: 0, "sigint": 130, "sigterm": 143}[result.stopped]


def run(config: ConfigDict, workdir: Path, *, overrides: dict[str, Any] | None = None) -> loop.TrainResult:
  """The whole job: records, task, training, evaluation. Raises InputError for anything the user can mend."""
  clock = Clock()
  started = time.perf_counter()
  task = build_task(config)
  mesh = sharding.make_mesh(config.train.mesh)
  check_batch(
    config.train.batch_clips,
    mesh=mesh,
    accumulation=config.train.accumulation,
    negatives_clips=config.loss.negatives_clips,
    processes=jax.process_count(),
  )
  items = initial_items(config, task)
  write_config(config, workdir, overrides or {})

  sources = find_sources(config, workdir, clock)
  clips, remark = held_out_clips(config, sources)
  evaluator = SyncEvaluator(
    task.model,
    clips=clips,
    train_clips=lambda: pipeline.eval_clips(
      sources[0].directory, split="train", image_size=config.data.image_size, max_clips=REFERENCE_CLIPS
    ),
    workdir=workdir,
    remark=remark,
  )
  evaluators = [clock.timed("evaluation", evaluator)]
  draw = clock.timed("pictures", PretrainPictures(task.model, clips=clips, workdir=workdir))

  def train_batches(step: int):
    return pipeline.train_batches(
      sources,
      seed=config.seed,
      batch_size=config.train.batch_clips // jax.process_count(),
      clip_frames=config.data.clip_frames,
      audio_context_frames=config.data.audio_frames,
      image_size=config.data.image_size,
      start_step=step,
      workers=config.data.workers,
      host_index=jax.process_index(),
      host_count=jax.process_count(),
    )

  with clock("training"):
    result = loop.run(
      task,
      workdir=workdir,
      train_batches=train_batches,
      batch_size=config.train.batch_clips,
      total_steps=config.train.steps,
      optimizer=make_optimizer(**config.optimizer, total_steps=config.train.steps),
      mesh=mesh,
      seed=config.seed,
      accumulation=config.train.accumulation,
      negatives_clips=config.loss.negatives_clips,
      log_every=config.train.log_every,
      eval_every=config.train.eval_every,
      checkpoint_every=config.train.checkpoint_every,
      keep_last=config.train.keep_last,
      keep_best=config.train.keep_best,
      best_metric="sync/r_precision/top1",
      evaluators=evaluators if clips else (),
      pictures=draw if clips else None,
      pictures_every=config.train.pictures_every,
      initial_items=items,
      stamp=stamp(config, sources),
      tensorboard=config.train.tensorboard,
    )
  if result.stopped is None and jax.process_index() == 0:
    if evaluator.report is not None:
      with clock("pictures"):
        evaluator.draw_curves()
      print(f"\n{evaluator.report.table()}\n")
    else:
      print("\nThere is no clip to evaluate on.\n")
    clock.seconds["training"] -= sum(clock.seconds.get(part, 0.0) for part in ("evaluation", "pictures"))
    print(clock.table(time.perf_counter() - started))
    print(next_commands(workdir))
  return result


def build_task(config: ConfigDict) -> Pretrain:
  """The task of a configuration. Here, at the border, the configuration becomes keyword arguments."""
  if config.task != "pretrain":
    raise InputError(f"unknown task {config.task!r}: pretrain")
  model = config.model.to_dict()
  model["visual_encoder"]["image_size"] = config.data.image_size
  model["compute_dtype"] = jnp.dtype(model["compute_dtype"])
  try:
    return Pretrain(
      SyncLipMAE(**model, clip_frames=config.data.clip_frames, audio_frames=config.data.audio_frames),
      **config.loss.to_dict(),
    )
  except (TypeError, ValueError) as error:
    raise InputError(f"this configuration makes no model: {error}") from error


def initial_items(config: ConfigDict, task: Pretrain) -> dict[str, str]:
  """Items to start from. A frozen encoder of random numbers is refused, unless that is asked for by name."""
  items = {name: config.init[name] for name in ("visual_encoder", "speech_encoder") if config.init[name]}
  _, frozen = jax.eval_shape(task.init, jax.random.key(0))
  needed = set(config.init.require)
  if not config.init.allow_random_frozen:
    needed |= {name for name, params in frozen.items() if jax.tree.leaves(params)}
  for name in sorted(needed - set(items)):
    why = "is frozen, and random numbers would stay random" if name in frozen else "starts from donor weights here"
    way_out = "--config.init.allow_random_frozen" if name in frozen else "--config.init.require='()'"
    raise InputError(
      f"the {name} {why}: give its converted checkpoint with --config.init.{name}=DIR, or pass {way_out}"
      f"{' and a shorter --config.init.require' if name in frozen and name in config.init.require else ''}"
    )
  return items


def find_sources(config: ConfigDict, workdir: Path, clock: Clock) -> list[pipeline.Source]:
  """The records to train on; the embedded corpus is written and prepared first, unless it is there already."""
  if config.data.sources:
    return [pipeline.Source(directory=directory, weight=weight) for directory, weight in config.data.sources]
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


def held_out_clips(config: ConfigDict, sources: Sequence[pipeline.Source]) -> tuple[list[EvalClip], str]:
  """Clips to evaluate on, of the first source, and a remark where they are not held out."""
  directory = sources[0].directory
  pipeline.check_size(open_records(directory, split="train"), config.data.image_size)
  for split in (config.data.eval_split, "train"):
    with contextlib.suppress(InputError):
      clips = pipeline.eval_clips(
        directory, split=split, image_size=config.data.image_size, max_clips=config.data.eval_clips
      )
      remark = f"{directory} has no split {config.data.eval_split!r}: these are training clips"
      return list(clips), remark if split == "train" else ""
  return [], ""


def stamp(config: ConfigDict, sources: Sequence[pipeline.Source]) -> dict[str, Any]:
  """What a checkpoint says about itself: the configuration, the preprocessing it was trained on, the revision."""
  return {
    "task": config.task,
    "config": json.loads(config.to_json_best_effort()),
    "preprocessing": {
      **open_records(sources[0].directory, split="train").preprocessing,
      "image_size": config.data.image_size,
      "fps": FPS,
      "sample_rate": SAMPLE_RATE,
      "embed_visible": config.model.embed_visible,
    },
    "revision": revision(),
  }


def revision() -> str | None:
  """The git revision of the code, with + where it was changed; None outside a checkout."""
  here = Path(__file__).parent
  with contextlib.suppress(OSError, subprocess.CalledProcessError):
    ask = lambda *words: subprocess.run(  # noqa: E731
      ["git", *words], cwd=here, check=True, capture_output=True, text=True
    ).stdout.strip()
    return ask("rev-parse", "HEAD") + ("+" if ask("status", "--porcelain", "--", str(here)) else "")
  return None


def write_config(config: ConfigDict, workdir: Path, overrides: dict[str, Any]) -> None:
  """WORKDIR/config.json. A resumed run says which fields differ from those it was started with."""
  if jax.process_index():
    return
  path = workdir / "config.json"
  resolved = json.loads(config.to_json_best_effort())
  if path.exists():
    before, now = (dict(_flatten(tree)) for tree in (json.loads(path.read_text())["config"], resolved))
    for field in sorted(before.keys() | now.keys()):
      if before.get(field) != now.get(field):
        print(f"this run differs from the one that made {workdir}: {field} {before.get(field)} -> {now.get(field)}")
  workdir.mkdir(parents=True, exist_ok=True)
  text = {"config": resolved, "overrides": overrides, "revision": revision(), "command": sys.argv}
  path.write_text(json.dumps(text, indent=2, default=str) + "\n")


def _flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
  if not isinstance(tree, dict):
    yield prefix, tree
    return
  for name, value in tree.items():
    yield from _flatten(value, f"{prefix}.{name}" if prefix else name)


@dataclasses.dataclass
class Clock:
  """Where the time of a run went."""

  seconds: dict[str, float] = dataclasses.field(default_factory=dict)

  @contextlib.contextmanager
  def __call__(self, part: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
      yield
    finally:
      self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started

  def timed(self, part: str, function):
    """`function`, its time counted; other attributes (an evaluator's name) pass through."""
    return _Timed(self, part, function)

  def table(self, total: float) -> str:
    parts = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in self.seconds.items())
    return f"Time: {parts}; in all {total:.0f} s."


@dataclasses.dataclass(frozen=True)
class _Timed:
  clock: Clock
  part: str
  function: Any

  def __call__(self, *args, **kwargs):
    with self.clock(self.part):
      return self.function(*args, **kwargs)

  def __getattr__(self, name: str):
    return getattr(self.function, name)


def next_commands(workdir: Path) -> str:
  """What a newcomer may want to do next."""
  run_ = "python -m synclipmae_jax.main --config=configs/pretrain.py"
  long, ablation, yours, on_yours = (workdir.with_name(name) for name in ("long", "demo_A1", "yours", "on_yours"))
  sources = f"--config.data.sources=\"(('{yours}', 1.0),)\""
  return f"""Results: eval.json, metrics.jsonl, pictures and checkpoints in {workdir}
Next:
  {run_}:long --workdir={long}   # a longer budget
  {run_}:demo,A1 --workdir={ablation}   # an ablation of the paper's appendix
  synclipmae prepare --raw YOUR_VIDEOS --out {yours} --size 64   # your own footage …
  {run_}:demo --workdir={on_yours} {sources}   # … and a model of it
"""


def parse_flags(argv: Sequence[str]) -> list[str]:
  """Like absl's own, but a wrong flag or configuration is one sentence, whatever raised it."""
  try:
    rest = flags.FLAGS(argv)
    if len(rest) > 1:
      raise flags.Error(f"what is {rest[1]!r}? every argument starts with --")
    for flag in (CONFIG, WORKDIR):
      if not flags.FLAGS["help"].value and flag.value is None:
        raise flags.Error(f"--{flag.name} is missing")
    return rest
  except (AttributeError, KeyError) as error:  # ml_collections names the field, without its path
    unknown = re.search(r"\w+", str(error)).group()
    sentence = f"the configuration has no such field: {next((a for a in argv if unknown in a), unknown)}"
    print(f"synclipmae_jax.main: {sentence} (see --help)", file=sys.stderr)
    sys.exit(2)
  except (flags.Error, ValueError, TypeError, SyntaxError, OSError) as error:
    sentence = str(error.args[0] if error.args else error).strip().splitlines()[-1]
    print(f"synclipmae_jax.main: {sentence} (see --help)", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)
