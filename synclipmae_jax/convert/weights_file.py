"""Reads one weights file. The format is recognised by content, and no code in the file is run.

    safetensors          memory-mapped; `read` copies one tensor
    torch                torch.load(weights_only=True), memory-mapped; files older than torch 1.6 are read whole
    torchscript          the reader below: memory-mapped, without torch

A pickle is a program. `pickletools` parses it without executing it before torch loads it. Every name that it looks up
must be one that weights need or one of the bookkeeping classes below. Stand-ins that accept any argument and keep none
replace the bookkeeping classes. Any other name is refused, and the message names it.

TorchScript is not loaded with `torch.jit.load`: it runs the `__setstate__` methods in the file, which may open files.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # Python 2 names, used by pickle protocol 2
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from synclipmae_jax.types import InputError

WEIGHT_TYPES = ("float16", "bfloat16", "float32", "float64")

# Keys of the weights in a torch file's outer dictionary: mmengine; fairseq and the original MAE.
_CONTAINERS = ("state_dict", "model")

_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_FOREIGN = (
  (rb"version https://git-lfs", "a Git LFS pointer, not the weights: run `git lfs pull` or download the file"),
  (rb"\s*<(!doctype|html|\?xml)", "a web page, not weights (perhaps a log-in or error page): download the file again"),
  (rb"\s*[\[{]", "JSON text, not weights"),
  (rb"GGUF", "a GGUF file, not a torch checkpoint"),
  (rb"\x89HDF", "an HDF5 file (Keras, TensorFlow), not a torch checkpoint"),
  (rb"\x08[\x01-\x1f][\x12\x3a]", "an ONNX graph, not a torch checkpoint"),
  (rb"\x1f\x8b|BZh|\xfd7zXZ|.{257}ustar", "an archive: unpack it first"),
)

# Names that torch's weights-only unpickler accepts; it checks each name of torch itself.
_WEIGHTS = re.compile(
  r"torch\.[\w.]+|collections\.(OrderedDict|Counter)|_codecs\.encode|builtins\.(bytearray|set|complex)"
)
# Bookkeeping in released checkpoints: arguments and meters of fairseq, the message hub of mmengine (its history buffers
# hold numpy arrays and refer to their own methods through getattr). These names are replaced, never looked up.
_BOOKKEEPING = re.compile(
  r"argparse\.Namespace|collections\.(deque|defaultdict)|builtins\.(getattr|bool|int|float|str|dict|list|tuple)"
  r"|numpy\.(_?core\.multiarray\.(_reconstruct|scalar)|ndarray|dtype|dtypes\.\w+|bool_?|u?int\d+|float\d+)"
  r"|typing\.\w+|(omegaconf|fairseq)\.[\w.]+|mmengine\.logging\.history_buffer\.HistoryBuffer"
)


class Tensor(NamedTuple):
  """A tensor in a file, not yet read."""

  shape: tuple[int, ...]
  dtype: str  # one of WEIGHT_TYPES
  read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class WeightsFile:
  kind: str  # "safetensors", "torch" or "torchscript"
  container: str  # the part of the file that is used: "" for all of it, "state_dict" or "model"
  tensors: dict[str, Tensor]
  skipped: dict[str, str]  # entries that are not weights (counters, position ids, bookkeeping) -> reason


def open_weights(path: Path) -> WeightsFile:
  """Opens one file. Raises InputError, with the format that the file appears to have, if it has no readable weights."""
  try:
    return _open(path)
  except InputError:
    raise
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
  except Exception as error:  # malicious or truncated bytes can raise any exception in the readers below
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". ")[0][:200]
    raise InputError(f"{path} is truncated or damaged ({reason}): download it again") from None


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes named numeric arrays to one safetensors file."""
  save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)


def _open(path: Path) -> WeightsFile:
  with path.open("rb") as file:
    head = file.read(512)
    file.seek(0)
    if head.startswith(_LEGACY_MAGIC):
      names = set().union(*(_globals(file) for _ in range(4)))  # magic, version, system, then the object
      return _open_torch(path, names, mapped=False)
    if _PICKLE.match(head):
      _stand_ins(path, _globals(file))
      raise InputError(f"{path} is refused: it is a Python pickle that torch.save did not write (no code was run)")
  if head.startswith(b"PK\x03\x04"):
    return _open_zip(path)
  if not head:
    raise InputError(f"{path} is empty")
  if head[8:9] != b"{" or struct.unpack("<Q", head[:8])[0] > 1 << 30:  # not: header length, JSON header
    for pattern, looks in _FOREIGN:
      if re.match(pattern, head, re.IGNORECASE | re.DOTALL):
        raise InputError(f"{path} is {looks}")
    if path.suffix != ".safetensors":
      raise InputError(f"{path} is neither a safetensors nor a torch file (it starts with {head[:8]!r})")
  return _open_safetensors(path)


def _open_safetensors(path: Path) -> WeightsFile:
  types = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
  tensors, skipped = {}, {}
  file = safe_open(path, framework="numpy")
  for key in file.keys():
    piece = file.get_slice(key)
    dtype = piece.get_dtype()
    if dtype in types:
      tensors[key] = Tensor(tuple(piece.get_shape()), types[dtype], functools.partial(file.get_tensor, key))
    elif re.fullmatch(r"[IU]\d+|BOOL|C64", dtype):
      skipped[key] = f"{dtype}, not a weight"
    else:
      raise _unsupported(path, key, dtype)
  return WeightsFile("safetensors", "", tensors, skipped)


def _open_zip(path: Path) -> WeightsFile:
  with zipfile.ZipFile(path) as archive:
    entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
    if {"archive_format", "serialized_exported_program.json"} & ({*entries} | {*archive.namelist()}):
      raise InputError(
        f"{path} is a torch.export program, which is not supported: use the plain checkpoint of the same model "
        "(for Sapiens-0.3B: sapiens_0.3b_epoch_1600_clean.pth)"
      )
    # torch does not compress these entries, so reading them takes no more memory than the file has bytes.
    read = {name: entry for name, entry in entries.items() if name == "data.pkl" or name.startswith("data/")}
    if "data.pkl" not in read or any(entry.compress_type != zipfile.ZIP_STORED for entry in read.values()):
      raise InputError(f"{path} is a zip archive, but not one that torch.save wrote")
    with archive.open(read["data.pkl"]) as file:
      names = _globals(file)
    if "constants.pkl" in entries:
      with archive.open(read["data.pkl"]) as file:
        return _open_torchscript(path, file, read)
  return _open_torch(path, names, mapped=True)


# Pickles


def _globals(file: IO[bytes]) -> set[str]:
  """Every `module.name` that one pickle would look up, found by parsing it; leaves `file` at the end of the pickle."""
  names, memo, pushed = set(), {}, collections.deque([None, None], maxlen=2)
  for opcode, argument, position in pickletools.genops(file):
    if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
      index = len(memo) if argument is None else int(argument)
      if index > position:  # would allocate a memo of any size
        raise ValueError("a memo number larger than the file")
      memo[index] = pushed[-1]
    elif opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
      names.add(_full_name(*(argument.split(" ", 1) if argument else pushed)))
      pushed.append(None)
    else:
      pushed.append(memo.get(int(argument)) if opcode.name.endswith("GET") else argument)
  return names


def _full_name(module: str, name: str) -> str:
  return ".".join(NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name)))


class _Inert:
  """Stand-in for a bookkeeping object: accepts any argument and any state, and keeps none."""

  def __new__(cls, *arguments):
    return object.__new__(cls)

  def __init__(self, *arguments):
    pass

  def __setstate__(self, state):
    pass


def _stand_ins(path: Path, names: Iterable[str]) -> list[tuple[Callable, str]]:
  """Stand-ins for the bookkeeping among `names`. Raises InputError for a name that weights do not need."""
  refused = sorted(name for name in names if not (_WEIGHTS.fullmatch(name) or _BOOKKEEPING.fullmatch(name)))
  if refused:
    raise _wants_to_run(path, *refused)
  # The unpickler fills only plain dicts and lists, so these two classes become those.
  special = {"collections.defaultdict": lambda *_: {}, "collections.deque": lambda *_: []}
  return [(special.get(name) or type(name, (_Inert,), {}), name) for name in names if _BOOKKEEPING.fullmatch(name)]


# torch.save


def _open_torch(path: Path, names: Iterable[str], *, mapped: bool) -> WeightsFile:
  stand_ins = _stand_ins(path, names)
  try:
    import torch
  except ImportError:
    raise InputError(
      f"{path} is a torch file and needs torch: `pip install torch` (safetensors files do not need it)"
    ) from None
  if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):  # CVE-2025-32434, CVE-2026-24747
    raise InputError(f"torch {torch.__version__} does not read untrusted files safely: `pip install 'torch>=2.10'`")
  try:
    with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings(action="ignore"):
      loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
  except pickle.UnpicklingError as error:  # the rest of the text recommends weights_only=False
    reason = str(error).partition("WeightsUnpickler error: ")[2] or "not a pickle of weights"
    if name := re.search(r"GLOBAL (\S+)", reason):
      raise _wants_to_run(path, name[1]) from None
    raise ValueError(reason) from None

  container, state = _unwrap(path, loaded, torch.Tensor)
  tensors, skipped = {}, {}
  if container:
    skipped = {str(key): f"{type(value).__name__} beside the weights" for key, value in dict.items(loaded)}
    del skipped[container]
  for key, value in dict.items(state):
    if not isinstance(value, torch.Tensor):
      skipped[str(key)] = f"{type(value).__name__}, not a tensor"
      continue
    dtype = str(value.dtype).removeprefix("torch.")
    kinds = {"quantised": value.is_quantized, "sparse": value.layout != torch.strided, "meta": value.is_meta,
             "nested": value.is_nested, dtype: value.is_floating_point() and dtype not in WEIGHT_TYPES}  # fmt: skip
    for kind, found in kinds.items():
      if found:
        raise _unsupported(path, key, kind)
    if dtype in WEIGHT_TYPES:
      tensors[str(key)] = Tensor(tuple(value.shape), dtype, functools.partial(_from_torch, value))
    else:
      skipped[str(key)] = f"{dtype}, not a weight"
  return WeightsFile("torch", container, tensors, skipped)


def _unwrap(path: Path, loaded: Any, tensor: type) -> tuple[str, dict]:
  """The dictionary of tensors and its name in `loaded`. Uses `dict.items` because a pickle may shadow the methods."""

  def holds_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(leaf, tensor) for _, leaf in dict.items(value))

  if isinstance(loaded, dict):
    for name in _CONTAINERS:
      if holds_tensors(dict.get(loaded, name)):
        return name, dict.get(loaded, name)
  if holds_tensors(loaded):
    return "", loaded
  held = f" of {', '.join(map(str, dict.keys(loaded)))}"[:120] if isinstance(loaded, dict) else ""
  raise InputError(f"{path} holds a {type(loaded).__name__}{held}, not a dictionary of tensors")


def _from_torch(value) -> np.ndarray:
  import torch

  value = value.detach()
  if value.dtype == torch.bfloat16:  # numpy has no bfloat16
    return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
  return value.numpy()


# TorchScript


class _ScriptModule:
  """A module of a TorchScript file: its attributes by name."""

  attributes: Mapping[str, Any] = {}

  def __setstate__(self, state):
    self.attributes = state


class _ScriptUnpickler(pickle.Unpickler):
  """Builds modules, and tensors as views of the mapped file. Refuses all other names."""

  _STORAGES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
  }  # fmt: skip

  def __init__(self, path: Path, file: IO[bytes], entries: Mapping[str, zipfile.ZipInfo]):
    super().__init__(file)
    self._path, self._entries, self._bytes = path, entries, np.memmap(path, mode="r")

  def find_class(self, module: str, name: str) -> Any:
    if module == "__torch__" or module.startswith("__torch__."):
      return _ScriptModule
    if (module, name) == ("collections", "OrderedDict"):
      return lambda *_: {}
    if module == "torch" and name in self._STORAGES:
      return name  # the name and not the type, because the pickle could call a type
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
      return lambda *arguments: _strided(*arguments)  # a pickle may set attributes of it
    if module == "torch.jit._pickle":  # typed lists and dicts: the value and a description of its type
      return lambda value, *_: value
    raise _wants_to_run(self._path, _full_name(module, name))

  def persistent_load(self, identifier: tuple) -> np.ndarray:
    _, storage, key, _, size = identifier
    dtype, entry = np.dtype(self._STORAGES[storage]), self._entries[f"data/{key}"]
    # The local header repeats the name and pads its extra field to align the data.
    name, extra = struct.unpack("<HH", self._bytes[entry.header_offset + 26 : entry.header_offset + 30].tobytes())
    start = entry.header_offset + 30 + name + extra
    if size * dtype.itemsize > entry.file_size:
      raise ValueError(f"storage {key} is shorter than its tensors")
    return np.asarray(self._bytes[start : start + size * dtype.itemsize]).view(dtype)


def _strided(storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *_) -> np.ndarray:
  if not math.prod(shape):
    return np.empty(shape, storage.dtype)
  last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
  if min(offset, *shape, *strides, 0) < 0 or last >= storage.size:
    raise ValueError("a tensor reaches beyond its storage")
  strides = tuple(stride * storage.itemsize for stride in strides)
  return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides, writeable=False)


def _open_torchscript(path: Path, file: IO[bytes], entries: Mapping[str, zipfile.ZipInfo]) -> WeightsFile:
  tensors, skipped = {}, {}

  def collect(module: _ScriptModule, prefix: str) -> None:
    for name, value in module.attributes.items():
      if isinstance(value, _ScriptModule):
        collect(value, f"{prefix}{name}.")
      elif isinstance(value, np.ndarray):
        if value.dtype.name in WEIGHT_TYPES:
          tensors[prefix + name] = Tensor(value.shape, value.dtype.name, functools.partial(np.asarray, value))
        else:
          skipped[prefix + name] = f"{value.dtype.name}, not a weight"

  collect(_ScriptUnpickler(path, file, entries).load(), "")
  return WeightsFile("torchscript", "", tensors, skipped)


def _wants_to_run(path: Path, *names: str) -> InputError:
  wanted = ", ".join(f"`{ascii(name)[1:-1]}`" for name in names[:3]) + (", ..." if len(names) > 3 else "")
  return InputError(f"{path} is refused: reading it would run {wanted} (no code was run)")


def _unsupported(path: Path, key: str, kind: str) -> InputError:
  return InputError(f"{path}: tensor {key!r} is {kind}; supported types are {', '.join(WEIGHT_TYPES)}")
