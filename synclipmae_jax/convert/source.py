"""Opens downloaded weights, a file or a folder, safely: key -> array, read one at a time.

A folder is a model repository: a sharded index, one safetensors file, or one torch file. weights_file.py describes the
formats of a single file and how code in it is kept from running.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synclipmae_jax.convert.weights_file import Tensor, WeightsFile, open_weights
from synclipmae_jax.types import InputError

_INDEX = ".index.json"
# In order of preference: a repository with both formats has the same weights in both.
_CANDIDATES = (
  ("*.safetensors" + _INDEX,),
  ("*.safetensors",),
  ("pytorch_model.bin" + _INDEX,),
  ("pytorch_model.bin",),
  ("*.pth", "*.pt", "*.bin", "*.ckpt", "*.pt2"),
)
_CHUNK = 1 << 22


@dataclasses.dataclass(frozen=True)
class Source:
  """Opened weights: keys, shapes and dtypes are known, values are read on demand. Close it, or use `with`."""

  files: tuple[Path, ...]  # the weights files, then the index
  kind: str  # "safetensors", "torch" or "torchscript", with " (N shards)" where there is an index
  container: str  # the part of the file that is used: "" for all of it, "state_dict" or "model"
  skipped: dict[str, str]  # entries that are not weights -> reason
  config: dict[str, Any] | None  # config.json beside the weights; for information only
  tensors: dict[str, Tensor] = dataclasses.field(repr=False)

  @functools.cached_property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    return {key: tensor.shape for key, tensor in self.tensors.items()}

  @functools.cached_property
  def dtypes(self) -> dict[str, str]:
    """Names of numpy dtypes: float16, bfloat16 (of ml_dtypes), float32 or float64."""
    return {key: tensor.dtype for key, tensor in self.tensors.items()}

  def read(self, key: str) -> np.ndarray:
    """The values: a view of the mapped file or a copy, in any memory layout. Do not write to it."""
    return self.tensors[key].read()

  def sha256(self, progress: Callable[[int], Any] | None = None) -> dict[str, str]:
    """sha256 by file name; `progress` is called with the number of bytes of every chunk read."""
    sums = {}
    for path in self.files:
      digest = hashlib.sha256()
      with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
          digest.update(chunk)
          if progress:
            progress(len(chunk))
      sums[path.name] = digest.hexdigest()
    return sums

  def close(self) -> None:
    """Closes the files; arrays already read stay valid."""
    self.tensors.clear()

  def __enter__(self) -> Source:
    return self

  def __exit__(self, *_) -> None:
    self.close()


def open_source(path: str | Path, *, folders: Sequence[str] = (), file: str = "") -> Source:
  """Opens a file of weights, an index of shards, or a folder with either.

  In a folder, the first of these is opened: `file` (`Wan2.1_VAE.pth` lies beside other models); the only weights in
  the folder; the weights in one of its sub-folders `folders`, in this order (`transformer`, `vae` of diffusers). Raises
  InputError if the path does not exist, is not readable, is ambiguous or damaged, or holds no weights.
  """
  path = Path(path)
  try:
    if path.is_dir():
      path = path / file if file and (path / file).is_file() else _find(path, folders)
    if not path.is_file():
      raise InputError(f"{path} does not exist" if not path.exists() else f"{path} is neither a file nor a folder")
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror or error}") from None

  if path.name.endswith(_INDEX):
    shards = _open_shards(path)
    files = (*shards, path)
  else:
    shards = {path: open_weights(path)}
    files = (path,)
  first = next(iter(shards.values()))
  tensors = {key: tensor for shard in shards.values() for key, tensor in shard.tensors.items()}
  skipped = {key: reason for shard in shards.values() for key, reason in shard.skipped.items()}
  if not tensors:
    raise InputError(f"{path} holds no weights: none of its {len(skipped)} entries is a floating-point tensor")
  if odd := next((key for key in (*tensors, *skipped) if not key.isprintable()), None):
    raise InputError(f"{path} is refused: the name of an entry contains unprintable characters, {ascii(odd)[:100]}")
  if all(key.startswith("module.") for key in tensors):  # left by DataParallel
    tensors = {key.removeprefix("module."): tensor for key, tensor in tensors.items()}
  kind = first.kind + (f" ({len(shards)} shards)" if len(files) > 1 else "")
  return Source(files, kind, first.container, skipped, _config(path.parent), tensors)


def _find(folder: Path, folders: Sequence[str]) -> Path:
  """The weights file or the index in a folder. Raises InputError for no candidate and for several."""
  for place in (folder, *(folder / name for name in folders)):
    held = sorted(path for path in place.iterdir() if not path.is_dir()) if place.is_dir() else []
    held = [path for path in held if not path.name.startswith(".")]  # macOS leaves ._model.safetensors
    for patterns in _CANDIDATES:
      found = [path for path in held if any(path.match(pattern) for pattern in patterns)]
      if len(found) > 1:
        names = ", ".join(path.name for path in found[:8]) + (", ..." if len(found) > 8 else "")
        raise InputError(f"{place} holds {len(found)} weights files, name the one to use: {names}")
      if found:
        return found[0]
  within = f" nor in {', '.join(folders)}" if folders else ""
  raise InputError(f"no weights in {folder}{within}: no .safetensors, .pth, .pt, .bin, .ckpt or .pt2 file")


def _open_shards(index: Path) -> dict[Path, WeightsFile]:
  """Opens the shards of an index. Raises InputError if a shard and the index list different tensors."""
  try:
    weight_map = json.loads(index.read_text())["weight_map"]
    names = sorted({str(name) for name in weight_map.values()})
  except (ValueError, KeyError, TypeError, AttributeError):
    raise InputError(f"{index} is not an index of shards: it is not JSON with a `weight_map`") from None
  if not names:
    raise InputError(f"{index} lists no shards")
  for name in names:
    if not re.fullmatch(r"[^/\\\0]+", name) or name in (".", ".."):
      raise InputError(f"{index} is refused: it names a shard outside its folder, {name!r}")
  if missing := [name for name in names if not (index.parent / name).is_file()]:
    raise InputError(f"{index} names {len(names)} shards, of which {len(missing)} are missing: {_some(missing)}")

  shards = {index.parent / name: open_weights(index.parent / name) for name in names}
  for path, shard in shards.items():
    listed = {key for key, name in weight_map.items() if name == path.name}
    lacking, unlisted = listed - {*shard.tensors, *shard.skipped}, {*shard.tensors} - listed
    if lacking or unlisted:
      raise InputError(
        f"{path} and {index.name} do not belong together: the shard lacks {len(lacking)} tensors that the index lists"
        f" ({_some(lacking)}) and holds {len(unlisted)} that it does not list ({_some(unlisted)})"
      )
  return shards


def _config(folder: Path) -> dict[str, Any] | None:
  try:
    config = json.loads((folder / "config.json").read_text())
  except (OSError, ValueError):
    return None
  return config if isinstance(config, dict) else None


def _some(names) -> str:
  names = sorted(names)
  return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "none"
