"""`synclipmae_jax.main` in real processes, with the toy task instead of a model and its data.

The processes are forked from one that has imported everything, so that a start takes a fraction of a second.
"""

from __future__ import annotations

import atexit
import functools
import math
import multiprocessing
import os
import pathlib
import resource
import signal
import socket
import sys
import threading
import time
import types

ROOT = pathlib.Path(__file__).parents[2]
SERVER = multiprocessing.get_context("forkserver")
IMPORTED = ("run.jobs", "run.sources", "evaluation.pretrain")
SERVER.set_forkserver_preload([*(f"synclipmae_jax.{name}" for name in IMPORTED), "tensorboardX"])
BATCH = 16


class Child:
  """A process that runs `function(*args)` with `devices` CPU devices."""

  def __init__(self, devices: int, function, *args, **kwargs):
    self._output, output = SERVER.Pipe(duplex=False)
    self._said: list[bytes] = []
    self._process = SERVER.Process(target=_child, args=(output, devices, function, args, kwargs))
    self._process.start()
    output.close()
    self._listener = threading.Thread(target=self._listen, daemon=True)
    self._listener.start()

  def _listen(self) -> None:
    while data := os.read(self._output.fileno(), 1 << 16):
      self._said.append(data)

  @property
  def said(self) -> str:
    """Its output so far; complete after `wait`."""
    return b"".join(self._said).decode()

  def alive(self) -> bool:
    return self._process.is_alive()

  def kill(self, number: int = signal.SIGKILL) -> None:
    os.kill(self._process.pid, number)

  def wait_for(self, ready, seconds: float = 120) -> None:
    """Waits until `ready()`, which the child must cause."""
    end = time.monotonic() + seconds
    while not ready():
      assert self.alive() and time.monotonic() < end, self.said
      time.sleep(0.002)

  def wait(self, seconds: float = 120) -> int:
    """Waits for it; returns the exit status, or minus the signal that ended it."""
    self._process.join(seconds)
    assert not self.alive(), f"still running after {seconds} s:\n{self.said}"
    self._listener.join(seconds)
    return self._process.exitcode

  def close(self) -> None:
    if self.alive():
      self._process.kill()
    self._process.join()


class Children(list):
  """The processes of one job; all are ended after the test."""

  def __enter__(self) -> Children:
    return self

  def __exit__(self, *_) -> None:
    for child in self:
      child.close()

  def wait(self, seconds: float = 120) -> list[int]:
    return [child.wait(seconds) for child in self]

  @property
  def said(self) -> str:
    """The output of all processes as one text, because pytest abbreviates lists."""
    return "".join(f"\n--- process {index}:\n{child.said}" for index, child in enumerate(self))


def start(count: int, devices: int, function, *args, **kwargs) -> Children:
  """`count` processes of one job with `devices` each, connected through the environment."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{s.getsockname()[1]}"
  children = Children()
  for index in range(count):
    environment = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
    children.append(Child(devices, _member, environment if count > 1 else {}, function, *args, **kwargs))
  return children


def _child(output, devices: int, function, args, kwargs) -> None:
  for number in (1, 2):
    os.dup2(output.fileno(), number)
  output.close()
  os.environ["XLA_FLAGS"] = f"{os.environ['FAST_COMPILE']} --xla_force_host_platform_device_count={devices}"
  import jax

  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  try:
    function(*args, **kwargs)
  finally:
    atexit._run_exitfuncs()  # multiprocessing does not flush them


def _member(environment: dict[str, str], function, *args, **kwargs) -> None:
  os.environ.update(environment)
  function(*args, distributed=bool(environment), **kwargs)


def main(workdir: str, *, distributed: bool, arguments=(), patch=None, options=None) -> None:
  """`python -m synclipmae_jax.main` with the preset `tiny`, after a call of `patch(**options)`."""
  from absl import app
  from absl import flags as absl_flags

  if patch:
    patch(**(options or {}))
  from synclipmae_jax import main as program

  config = f"--config={ROOT / 'configs' / 'pretrain.py'}:tiny"
  sys.argv = ["synclipmae_jax.main", config, f"--workdir={workdir}", *arguments]
  sys.argv += ["--distributed"] if distributed else []
  absl_flags.FLAGS.unparse_flags()
  app.run(program.main, sys.argv, flags_parser=program.parse)


def toy(*, heartbeat: int = 100, **options) -> None:
  """Replaces the model and its data by the toy task; the rest of the program is unchanged."""
  from synclipmae_jax.run import jobs, processes

  processes.initialise = functools.partial(processes.initialise, heartbeat_seconds=heartbeat)
  jobs.run = lambda config, workdir, overrides: train(workdir, **options).stopped


def train(
  workdir,
  *,
  total: int,
  every: int = 1,
  log_every: int = 1,
  pause: float = 0.0,
  mesh=(("fsdp", 1),),
  file_limit: tuple[int, int, int] | None = None,
  stall: tuple[int, int] | None = None,
):
  """The toy run. `file_limit` (process, step, bytes): after that step is saved, the process cannot write longer files.
  `stall` (process, step): at that step the process prints a message and waits forever instead of yielding a batch."""
  import jax
  from toy_task import ToyTask, toy_batches

  from synclipmae_jax import sharding
  from synclipmae_jax.train.loop import run
  from synclipmae_jax.train.optim import make_optimizer

  me, share = jax.process_index(), BATCH // jax.process_count()

  def batches(first_step: int):
    for step, batch in enumerate(toy_batches(BATCH)(first_step), first_step):
      if file_limit and (me, step) == file_limit[:2]:
        while not (pathlib.Path(workdir) / "checkpoints" / str(step)).exists():
          time.sleep(0.01)
        jax.config.update("jax_enable_compilation_cache", False)  # no partial entries for other processes
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit[2], resource.RLIM_INFINITY))
      if (me, step) == stall:
        print("stalled", flush=True)
        time.sleep(10_000)
      time.sleep(pause)
      yield {name: value[me * share : (me + 1) * share] for name, value in batch.items()}

  return run(
    ToyTask(),
    workdir=workdir,
    train_batches=batches,
    batch_size=BATCH,
    total_steps=total,
    optimizer=make_optimizer(peak_lr=1e-2, warmup_steps=2, total_steps=20),
    mesh=sharding.make_mesh(mesh, jax.devices()[: math.prod(size for _, size in mesh)]),
    log_every=log_every,
    checkpoint_every=every,
  )


def run_toy(workdir: pathlib.Path, count: int = 1, *, devices: int = 1, **options) -> Children:
  """The program on the toy task, in `count` processes; `options` as for `train`, and `heartbeat`."""
  options = {"mesh": (("fsdp", count * devices),), **options}
  return start(count, devices, main, str(workdir), patch=toy, options=options)


class ToyModel:
  """The part of a model that the evaluator uses: tokens that are linear in their frame."""

  image_size = 8

  def embed(self, trainable, frozen, frames, waveform, *, face_box, mouth_box):
    import dataclasses

    import jax.numpy as jnp

    visual = self.embed_visual(trainable, frames, face_box=face_box, mouth_box=mouth_box)
    heard = waveform.reshape(*frames.shape[:2], -1)[..., : frames[0, 0].size]
    return dataclasses.replace(visual, audio=jnp.tanh(heard @ trainable["kernel"]))

  def embed_visual(self, trainable, frames, *, face_box, mouth_box):
    import jax.numpy as jnp

    from synclipmae_jax.types import Tokens

    seen = frames.reshape(*frames.shape[:2], -1).astype(jnp.float32) / 255 + face_box.mean(-1, keepdims=True)
    vocal = jnp.tanh(seen @ trainable["kernel"])
    return Tokens(identity=vocal[..., :8], vocal=vocal, ambient=vocal[..., 8:], audio=None)


def evaluation_clips(count: int):
  """Clips of 40 to 130 frames (the first is too short to be scored); every second one has a known truth."""
  import numpy as np

  from synclipmae_jax.types import SAMPLES_PER_FRAME, EvalClip

  for number in range(count):
    rng, frames = np.random.default_rng(number), (40, 60, 130, 64, 70, 128, 50)[number % 7]
    yield EvalClip(
      key=f"clip {number}",
      corpus="toy",
      identity=f"person {number % 3}",
      frames=rng.integers(0, 256, (frames, 8, 8, 3), np.uint8),
      waveform=rng.normal(0, 0.1, frames * SAMPLES_PER_FRAME).astype(np.float32),
      face_box=np.tile(np.array([0.1, 0.1, 0.9, 0.9], np.float32), (frames, 1)),
      mouth_box=np.full((frames, 4), -1, np.float32),
      lag=None if number % 2 else 3,
      truth=rng.normal(size=(frames, 3)).astype(np.float32),
      truth_names=("mouth/jaw", "mouth/width", "ambient/yaw"),
    )


def evaluate(workdir: str, *, clips: int, distributed: bool = False, devices: int | None = None) -> None:
  """Both evaluators of pretraining on `clips` clips, divided among the processes."""
  import jax
  import numpy as np

  from synclipmae_jax import sharding
  from synclipmae_jax.evaluation.factors import FactorEvaluator
  from synclipmae_jax.evaluation.pretrain import SyncEvaluator
  from synclipmae_jax.evaluation.tokens import HeldOutTokens
  from synclipmae_jax.run import processes
  from synclipmae_jax.types import HeldOut

  if distributed:
    processes.initialise()
  everyones = list(evaluation_clips(clips))
  lot = np.array_split(np.arange(clips), jax.process_count())[jax.process_index()]
  own = HeldOut(split="test", clips=[everyones[number] for number in lot])
  data = types.SimpleNamespace(val=own, test=own, train_clips=lambda: evaluation_clips(12))
  mesh = sharding.make_mesh((("data", -1),), jax.devices()[:devices])
  tokens = HeldOutTokens(ToyModel(), mesh=mesh)
  params = {"kernel": np.random.default_rng(0).normal(size=(192, 16)).astype(np.float32)}, {}
  scores = SyncEvaluator(tokens, data, workdir=pathlib.Path(workdir))(*params, step=1, final=False)
  FactorEvaluator(tokens, data, workdir=pathlib.Path(workdir), ceiling_steps=3)(*params, step=1, final=True)
  print(f"{len(lot)} clips", scores["acc/k1"], flush=True)


def note_reads(folder: str) -> None:
  """Makes every process record the positions in the stream of records that it reads."""
  import jax

  from synclipmae_jax.data import pipeline

  cut = pipeline._CutWindows.__call__

  def noted(self, position, record):
    with open(f"{folder}/{jax.process_index()}", "a") as file:
      file.write(f"{position} {record['key']}\n")
    return cut(self, position, record)

  pipeline._CutWindows.__call__ = noted
