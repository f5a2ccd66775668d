"""A model made ready for `sync`: its programs exported, its parameters and its calibration, in one file.

Reading that file takes neither Flax nor Orbax, and nothing is traced. A thread imports jax and compiles (JAX's own
cache remembers the result) while the first pictures are decoded and faces are looked for.

The name of a file is a hash of all that made it: the checkpoint and its manifest, the sources of this package, the
versions of jax, and JAX's variables. A file that cannot be used is made anew.
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
import tempfile
from collections.abc import Callable, Mapping, Sequence
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


class ReadyModel:
  """What `SyncLipMAE.sync` needs of a model; `sync` is that."""

  def __init__(self, packed: Packed, renew: Callable[[], Packed]):
    about = json.loads(str(packed[_ABOUT]))
    looks = tuple((float(zoom), bool(mirrored)) for zoom, mirrored in about["shape"].pop("looks"))
    self.encoder = ReadyEncoder(BlockShape(**about["shape"], looks=looks), packed, renew)
    self.name, self.notes = str(about["name"]), tuple(about["notes"])
    self.calibration = Calibration.from_json(about["calibration"])

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
  """Compiles in a thread, from its construction on; the first blocks wait for it."""

  def __init__(self, shape: BlockShape, packed: Packed, renew: Callable[[], Packed]):
    super().__init__(shape)
    pool = concurrent.futures.ThreadPoolExecutor(1, "compile")
    self._compiled = pool.submit(_compiled, packed, renew)
    pool.shutdown(wait=False)

  def run(self, program: str, *arguments):
    return self._compiled.result()[program](*arguments)


def make_ready(load: Callable[[], Any], *, step: Path, folder: Path | None) -> ReadyModel:
  """The model that `load` returns, a `SyncLipMAE`, from a file of `folder` that was made of it before, if there is one.

  `step` is the directory of the checkpoint that it loads. Without `folder` nothing is kept; one that cannot be written
  is no error. Raises what `load` does.
  """
  path = folder / f"{_key(step)}.npz" if folder and (step / MANIFEST).is_file() else None
  renew = functools.partial(_make, load, step, path)
  packed = _read(path) if path else None
  if packed is not None:
    with contextlib.suppress(ValueError, KeyError, TypeError):  # of another time, under this name
      return ReadyModel(packed, renew)
  return ReadyModel(renew(), renew)


# -- the file --


def _key(step: Path) -> str:
  """Hash of what the file depends on. The sources are told by their times, which takes a hundredth of reading them."""
  sources = [(str(path), *os.stat(path)[6:9:2]) for path in sorted(_PACKAGE.rglob("*.py"))]
  versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib")]
  variables = sorted((k, v) for k, v in os.environ.items() if k.startswith("JAX_") and "CACHE" not in k)
  digest = hashlib.sha256((step / MANIFEST).read_bytes())
  digest.update(repr((str(step), sources, versions, variables)).encode())
  return digest.hexdigest()[:32]


def _read(path: Path) -> Packed | None:
  try:
    with np.load(path, allow_pickle=False) as stored:
      packed = dict(stored)
    os.utime(path)  # the files of least use go first
    return packed
  except Exception:  # not there, or damaged in one of a dozen ways
    return None


def _make(load: Callable[[], Any], step: Path, path: Path | None) -> Packed:
  model = load()
  packed = _pack(model)
  if model.step != step:  # it is damaged, and the one before was loaded
    return packed
  if path is not None and sum(each.nbytes for each in packed.values()) <= LARGEST:
    with contextlib.suppress(OSError):
      _write(path, packed)
  return packed


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


def _pack(model: Any) -> Packed:
  """Exports the functions of `model.embedder` for its block. Their parameters are arguments, a list of leaves."""
  import jax
  from jax import export

  embedder, shape = model.embedder, model.embedder.shape
  leaves, tree = jax.tree.flatten(embedder.params)
  size, samples = shape.block_frames, SAMPLES_PER_FRAME * (shape.block_frames + 2 * shape.audio_context)
  pictures = ((size, shape.image_size, shape.image_size, 3), np.uint8), *[((size, 4), np.float32)] * 2
  arguments = {
    FRAMES: pictures, LIPS: pictures, MIRROR: pictures, ZOOM: (*pictures, ((), np.float32)),
    SOUND: (((1, samples), np.float32),),
  }  # fmt: skip

  def exported(name: str) -> np.ndarray:
    run = jax.jit(lambda leaves, *block: embedder.programs[name](jax.tree.unflatten(tree, leaves), *block))
    like = [jax.ShapeDtypeStruct(*each) for each in arguments[name]]
    return np.frombuffer(export.export(run)(leaves, *like).serialize(), np.uint8)

  about = {
    "shape": dataclasses.asdict(shape), "name": model.name, "notes": model.notes,
    "calibration": model.calibration.to_json(),
  }  # fmt: skip
  return {
    _ABOUT: np.array(json.dumps(about)),
    **{name: exported(name) for name in arguments},
    **{f"{_PARAMS}/{number:04d}": np.asarray(leaf) for number, leaf in enumerate(leaves)},
  }


def _compiled(packed: Packed, renew: Callable[[], Packed]) -> dict[str, Callable[..., Any]]:
  try:
    return _compile(packed)
  except Exception:  # made for another device, or by another jax under the same name
    return _compile(renew())


def _compile(packed: Packed) -> dict[str, Callable[..., Any]]:
  import jax
  from jax import export

  leaves = jax.device_put([packed[name] for name in sorted(packed) if name.startswith(f"{_PARAMS}/")])

  def function(name: str) -> Callable[..., Any]:
    exported = export.deserialize(bytearray(packed[name].tobytes()))
    block: Sequence = exported.in_avals[len(leaves) :]
    compiled = jax.jit(exported.call).lower(leaves, *block).compile()
    return functools.partial(compiled, leaves)

  return {name: function(name) for name in (SOUND, FRAMES, LIPS, MIRROR, ZOOM)}
