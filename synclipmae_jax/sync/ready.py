"""A model made ready for `sync`: its compiled programs, its parameters and its calibration, in one file.

Reading that file takes neither Flax nor Orbax, and nothing is traced or compiled. A thread imports jax and loads the
programs while the first pictures are decoded and faces are looked for.

The name of a file is a hash of all that made it: the checkpoint and its manifest, the sources of this package, the
versions of jax, JAX's variables, and the processor. A file that cannot be used is made anew. Like those of JAX's own
cache, its programs are trusted: who may write to the folder may run code.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pickle
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from synclipmae_jax.inference.blocks import FRAMES, LIPS, MIRROR, SOUND, ZOOM, BlockEncoder, BlockShape
from synclipmae_jax.sync.analysis import sync_file
from synclipmae_jax.sync.calibration import Calibration
from synclipmae_jax.sync.result import SyncResult
from synclipmae_jax.types import SAMPLES_PER_FRAME

LARGEST = 64 * 2**20  # bytes of a file: larger models take longer to run than to load
BOUND = 256 * 2**20  # bytes of all files of a folder
MANIFEST = "checksums.json"  # of a checkpoint; checkpoints.format takes a second to import
_PACKAGE = Path(__file__).parents[1]
_ABOUT, _PARAMS = "about", "params"

Packed = Mapping[str, np.ndarray]
Programs = Mapping[str, Callable[..., Any]]  # of `BlockEncoder`, with the parameters


class ReadyModel:
  """What `SyncLipMAE.sync` needs of a model; `sync` is that. `programs` is called in a thread."""

  def __init__(self, about: str, programs: Callable[[], Programs]):
    said = json.loads(about)
    looks = tuple((float(zoom), bool(mirrored)) for zoom, mirrored in said["shape"].pop("looks"))
    shape = BlockShape(**said["shape"], looks=looks)
    self.name, self.notes = str(said["name"]), tuple(said["notes"])
    self.calibration = Calibration.from_json(said["calibration"])
    self.encoder = ReadyEncoder(shape, programs)

  def sync(
    self,
    path: str | os.PathLike,
    *,
    faces: str = "auto",
    audio_track: int | None = None,
    progress: Callable[[float, float], None] | None = None,
  ) -> SyncResult:
    """See `SyncLipMAE.sync`."""
    return sync_file(
      self.encoder, path, calibration=self.calibration, checkpoint=self.name, notes=self.notes, faces=faces,
      audio_track=audio_track, progress=progress,
    )  # fmt: skip


class ReadyEncoder(BlockEncoder):
  """Calls `programs` in a thread, from its construction on; the first block waits for what it returns."""

  def __init__(self, shape: BlockShape, programs: Callable[[], Programs]):
    super().__init__(shape)
    pool = concurrent.futures.ThreadPoolExecutor(1, "programs")
    self._programs = pool.submit(programs)
    pool.shutdown(wait=False)

  def run(self, program: str, *arguments):
    return self._programs.result()[program](*arguments)


def make_ready(load: Callable[[], Any], *, step: Path, folder: Path | None) -> ReadyModel:
  """The model that `load` returns, a `SyncLipMAE`, from a file of `folder` that was made of it before, if there is one.

  `step` is the directory of the checkpoint that it loads. Without `folder` nothing is kept; one that cannot be written
  is no error. Raises what `load` does.
  """
  path = folder / f"{_key(step)}.npz" if folder and (step / MANIFEST).is_file() else None
  packed = _read(path) if path else None
  if packed is not None:
    with contextlib.suppress(ValueError, KeyError, TypeError):  # of another time, under this name
      return ReadyModel(str(packed[_ABOUT]), lambda: _loaded(packed, lambda: _made(load(), step, path)))
  model = load()
  return ReadyModel(_about(model), lambda: _made(model, step, path))


# -- the file --


def _key(step: Path) -> str:
  """Hash of what the file depends on. The sources are told by their times, which takes a hundredth of reading them."""
  sources = [(str(path), *os.stat(path)[6:9:2]) for path in sorted(_PACKAGE.rglob("*.py"))]
  versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib")]
  variables = sorted((k, v) for k, v in os.environ.items() if k.startswith("JAX_") and "CACHE" not in k)
  digest = hashlib.sha256((step / MANIFEST).read_bytes())
  digest.update(repr((str(step), sources, versions, variables, _processor())).encode())
  return digest.hexdigest()[:32]


def _processor() -> str:
  """The instructions of the processor, which a folder on a network may outlive. Elsewhere than on Linux its kind."""
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line for line in lines if line.lower().startswith(("flags", "features")))
  except (OSError, StopIteration):
    return platform.machine() + platform.processor()


def _read(path: Path) -> Packed | None:
  try:
    with np.load(path, allow_pickle=False) as stored:
      packed = dict(stored)
    os.utime(path)  # the files of least use go first
    return packed
  except Exception:  # not there, or damaged in one of a dozen ways
    return None


def _write(path: Path, packed: Packed) -> None:
  """Under another name first: two processes may write at once, and either may be stopped."""
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".part")
  try:
    with os.fdopen(handle, "wb") as file:
      np.savez(file, allow_pickle=False, **packed)
    os.replace(partial, path)
  except BaseException:
    os.unlink(partial)
    raise
  _bound(path.parent)


def _bound(folder: Path) -> None:
  """Removes the files that were used longest ago, until BOUND bytes are left."""
  files = sorted(((path.stat().st_mtime, path.stat().st_size, path) for path in folder.iterdir()), reverse=True)
  total = 0
  for _, size, path in files:
    total += size
    if total > BOUND:
      path.unlink(missing_ok=True)


# -- its content --


def _about(model: Any) -> str:
  """What can be said of a `SyncLipMAE` without jax."""
  said = {"name": model.name, "notes": model.notes, "calibration": model.calibration.to_json()}
  return json.dumps({"shape": dataclasses.asdict(model.embedder.shape), **said})


def _made(model: Any, step: Path, path: Path | None) -> Programs:
  """Compiles the programs of a `SyncLipMAE`, and keeps them at `path`, if they can be kept."""
  import jax
  from jax.experimental import serialize_executable

  embedder, shape = model.embedder, model.embedder.shape
  size, samples = shape.block_frames, SAMPLES_PER_FRAME * (shape.block_frames + 2 * shape.audio_context)
  pictures = ((size, shape.image_size, shape.image_size, 3), np.uint8), *[((size, 4), np.float32)] * 2
  arguments = {
    FRAMES: pictures, LIPS: pictures, MIRROR: pictures, ZOOM: (*pictures, ((), np.float32)),
    SOUND: (((1, samples), np.float32),),
  }  # fmt: skip
  leaves, tree = jax.tree.flatten(embedder.params)

  def compiled(name: str) -> Any:
    run = jax.jit(lambda leaves, *block: embedder.programs[name](jax.tree.unflatten(tree, leaves), *block))
    return run.lower(leaves, *(jax.ShapeDtypeStruct(*each) for each in arguments[name])).compile()

  # Of another step it must not have this name: the newest is damaged, and the one before was loaded.
  keep = path is not None and model.step == step and sum(leaf.nbytes for leaf in leaves) <= LARGEST
  with _without_jax_cache() if keep else contextlib.nullcontext():
    programs = {name: compiled(name) for name in arguments}
  if keep:
    # A folder that cannot be written, or a device whose programs cannot be kept: the next call makes them again.
    with contextlib.suppress(OSError, ValueError, NotImplementedError, jax.errors.JaxRuntimeError):
      blobs = {
        name: np.frombuffer(pickle.dumps(serialize_executable.serialize(each)), np.uint8)
        for name, each in programs.items()
      }
      params = {f"{_PARAMS}/{number:04d}": np.asarray(leaf) for number, leaf in enumerate(leaves)}
      _write(path, {_ABOUT: np.array(_about(model)), **blobs, **params})
  return {name: functools.partial(program, leaves) for name, program in programs.items()}


@contextlib.contextmanager
def _without_jax_cache() -> Iterator[None]:
  """A program that was read from JAX's own cache cannot be kept again: what is written lacks its code."""
  import jax
  from jax.experimental.compilation_cache import compilation_cache

  before = jax.config.jax_enable_compilation_cache
  try:
    compilation_cache.reset_cache()  # it asks once whether it is enabled
    jax.config.update("jax_enable_compilation_cache", False)
    yield
  finally:
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()


def _loaded(packed: Packed, make: Callable[[], Programs]) -> Programs:
  """The programs of a file. What another device kept, or another jax under the same name, is made anew."""
  try:
    import jax
    from jax.experimental import serialize_executable

    leaves = jax.device_put([packed[name] for name in sorted(packed) if name.startswith(f"{_PARAMS}/")])
    device = jax.devices()[:1]

    def program(name: str) -> Callable[..., Any]:
      kept, taken, given = pickle.loads(packed[name].tobytes())
      run = serialize_executable.deserialize_and_load(kept, taken, given, execution_devices=device)
      return functools.partial(run, leaves)

    return {name: program(name) for name in (SOUND, FRAMES, LIPS, MIRROR, ZOOM)}
  except Exception:
    return make()
