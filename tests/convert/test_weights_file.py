"""Single files of weights, without torch: damage, other formats, pickles that run code, and TorchScript."""

import io
import json
import os
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from convert.random_weights import random_weights
from convert.source_checks import SHAPES, assert_holds, refusal, write
from safetensors.numpy import save_file

from synclipmae_jax.convert.source import open_source

# safetensors


def entry(start: int, stop: int, shape=(2,), dtype: str = "F32") -> dict:
  return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
  ("header", "size", "length", "reason"),
  [
    ({"a": entry(0, 8)}, 4, None, "incomplete metadata"),  # truncated
    ({"a": entry(0, 8)}, 8, 10**6, "invalid header length"),
    ({"a": entry(0, 8)}, 8, 10**9, "header too large"),
    ({"a": entry(0, 8), "b": entry(4, 12)}, 12, None, "invalid offset"),  # overlapping
    ({"a": entry(0, 8), "b": entry(16, 24)}, 24, None, "invalid offset"),  # a gap that could hide data
    ({"a": entry(0, 80)}, 8, None, "invalid"),
    ({"a": entry(0, 8, (3,))}, 8, None, "invalid shape"),
    ({"a": entry(0, 8, (-2,))}, 8, None, "invalid value"),
    ({"a": entry(0, 8, (1 << 40, 1 << 40))}, 8, None, "overflow"),
    ({"a": entry(0, 8, dtype="Q9")}, 8, None, "unknown variant `Q9`"),
    (b"{nope", 0, None, "invalid JSON"),
    (b'{"a":' + b"[" * 10000, 0, None, "recursion limit"),
  ],
)
def test_a_damaged_header_is_named(tmp_path, header, size, length, reason):
  header = header if isinstance(header, bytes) else json.dumps(header).encode()
  length = len(header) if length is None else length
  path = write(tmp_path / "a.safetensors", struct.pack("<Q", length) + header + bytes(size))
  sentence = refusal(path)
  assert sentence.startswith(f"{path} is truncated or damaged") and reason in sentence


def test_every_truncation_of_a_file_is_detected(tmp_path):
  save_file(random_weights(SHAPES), tmp_path / "whole.safetensors")
  whole = (tmp_path / "whole.safetensors").read_bytes()
  for length in range(1, len(whole)):
    assert "truncated or damaged" in refusal(write(tmp_path / "cut.safetensors", whole[:length]))


def test_eight_bit_weights_are_refused_by_name(tmp_path):
  save_file({"w": np.ones(4, ml_dtypes.float8_e4m3fn)}, tmp_path / "a.safetensors")
  assert "tensor 'w' is F8_E4M3; supported types are float16, bfloat16" in refusal(tmp_path / "a.safetensors")


# Files of another kind


def zipped(**files: bytes) -> bytes:
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as archive:
    for name, data in files.items():
      archive.writestr(f"archive/{name.replace('__', '/')}", data)
  return buffer.getvalue()


@pytest.mark.parametrize(
  ("data", "looks"),
  [
    (b"", "is empty"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "is a Git LFS pointer, not the weights"),
    (b"\n<!DOCTYPE html><html><body>Sign in", "is a web page, not weights"),
    (b"<?xml version='1.0'?><Error><Code>AccessDenied", "is a web page, not weights"),
    (b'{"error": "Invalid credentials"}', "is JSON text, not weights"),
    (b"GGUF\x03\0\0\0", "is a GGUF file"),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    (b"\x08\x08\x12\x07pytorch\x1a\x05", "is an ONNX graph"),
    (b"\x1f\x8b\x08\0", "is an archive: unpack it first"),
    (b"a" * 257 + b"ustar\0", "is an archive: unpack it first"),
    (b"hello", "is neither a safetensors nor a torch file (it starts with b'hello')"),
    (b"PK\x03\x04" + bytes(40), "is truncated or damaged (File is not a zip file)"),
    (zipped(**{"arr_0.npy": b"x"}), "is a zip archive, but not one that torch.save wrote"),
    (zipped(archive_format=b"pt2", models__model="{}"), "is a torch.export program, which is not supported"),
    (zipped(**{"serialized_exported_program.json": b"{}"}), "sapiens_0.3b_epoch_1600_clean.pth"),
    (zipped(**{"data.pkl": b""}), "is truncated or damaged (pickle exhausted"),
    (zipped(**{"data.pkl": b"\x80\x02rubbish"}), "is truncated or damaged ("),
    (pickle.dumps({"a": 1}), "is refused: it is a Python pickle that torch.save did not write (no code was run)"),
  ],
)
@pytest.mark.parametrize("name", ["model.bin", "model.pth"])
def test_another_kind_of_file_is_named(tmp_path, data, looks, name):
  path = write(tmp_path / name, data)
  sentence = refusal(path)
  assert sentence.startswith(f"{path} {looks}") or looks in sentence


def test_a_web_page_named_safetensors_is_recognised(tmp_path):
  assert "is a web page" in refusal(write(tmp_path / "model.safetensors", b"<html>"))


def test_a_compressed_archive_is_refused(tmp_path):
  with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("a/data.pkl", pickle.dumps({}, protocol=2) + bytes(1 << 20))
  assert "not one that torch.save wrote" in refusal(tmp_path / "a.pth")


# Pickles that run code


class Call:
  """Pickles as a function call."""

  def __init__(self, function, *arguments):
    self.call = (function, arguments)

  def __reduce__(self):
    return self.call


def hostile(marker: Path) -> dict:
  return {
    f"{os.system.__module__}.system": Call(os.system, f"touch {marker}"),
    "builtins.eval": Call(eval, f"open({str(marker)!r}, 'w')"),
    "builtins.exec": Call(exec, f"open({str(marker)!r}, 'w')"),
    "io.open": Call(open, str(marker), "w"),
    "pathlib.Path.touch": Call(getattr, Path(marker), "touch"),
    "importlib.import_module": Call(__import__("importlib").import_module, "this"),
    "numpy.load": Call(np.load, str(marker)),
  }


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("container", ["zip", "bare", "legacy", "torchscript"])
@pytest.mark.parametrize("name", sorted(hostile(Path("x"))))
def test_a_pickle_that_runs_code_is_refused_by_name(tmp_path, name, container, protocol):
  marker = tmp_path / "ran"
  data = pickle.dumps({"state_dict": {}, "args": hostile(marker)[name]}, protocol=protocol)
  if container in ("zip", "torchscript"):
    data = zipped(**{"data.pkl": data} | ({"constants.pkl": b""} if container == "torchscript" else {}))
  elif container == "legacy":
    head = [pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    data = b"".join(head) + data
  sentence = refusal(write(tmp_path / "model.pth", data))
  assert "is refused: reading it would run `" in sentence and sentence.endswith(" (no code was run)")
  if name != "pathlib.Path.touch":
    assert f"`{name}`" in sentence
  assert not marker.exists() and "this" not in sys.modules


def test_a_memo_number_beyond_the_file_is_refused(tmp_path):
  data = b"\x80\x02}r\xff\xff\xff\x7f."  # would make the unpickler allocate 16 GiB
  for files in ({"data.pkl": data}, {"data.pkl": data, "constants.pkl": b""}):
    assert "a memo number larger than the file" in refusal(write(tmp_path / "a.pt2", zipped(**files)))


# TorchScript, read without torch


class Stored(np.ndarray):
  """Pickles like a TorchScript tensor."""

  def __reduce__(self):
    values = np.array(self)
    strides = tuple(stride // values.itemsize for stride in values.strides)
    return TORCH["_rebuild_tensor_v2"], (Storage(values), 0, values.shape, strides, False, {})


class Storage:
  def __init__(self, values):
    self.values = values


def foreign(module: str, name: str):
  """A class that pickles as `module.name`."""
  made = type(name, (), {"__module__": module, "__qualname__": name})
  sys.modules.setdefault(module, types.ModuleType(module)).__dict__[name] = made
  return made


@pytest.fixture
def script(tmp_path, monkeypatch):
  """Writes a TorchScript archive in torch's layout: script({name: array or nested dict}) -> path."""
  modules = {name: types.ModuleType(name) for name in ("__torch__", "torch", "torch._utils")}
  for name, module in modules.items():
    monkeypatch.setitem(sys.modules, name, module)
  TORCH["_rebuild_tensor_v2"] = foreign("torch._utils", "_rebuild_tensor_v2")
  storages = {"float32": foreign("torch", "FloatStorage"), "bfloat16": foreign("torch", "BFloat16Storage"),
              "int64": foreign("torch", "LongStorage")}  # fmt: skip
  modules["torch"]._utils = modules["torch._utils"]

  kind = foreign("__torch__", "Module")

  def module(tree):
    made = kind()
    made.__dict__.update({key: module(leaf) if isinstance(leaf, dict) else leaf for key, leaf in tree.items()})
    return made

  def write_script(tree, *, claim=lambda size: size) -> Path:
    records, buffer = {}, io.BytesIO()

    class Pickler(pickle.Pickler):
      def persistent_id(self, value):
        if not isinstance(value, Storage):
          return None
        key = str(len(records))
        records[key] = value.values
        return ("storage", storages[value.values.dtype.name], key, "cpu", claim(value.values.size))

    Pickler(buffer, protocol=2).dump(module(tree))
    data = {f"data__{key}": values.tobytes() for key, values in records.items()}
    return write(tmp_path / "script.pt2", zipped(**{"data.pkl": buffer.getvalue(), "constants.pkl": b""} | data))

  return write_script


TORCH = {}


def test_torchscript_is_read_without_torch(script):
  weights = random_weights({"backbone.0.weight": (3, 4), "backbone.0.bias": (4,), "scale": ()})
  weights["scale"] = weights["scale"].astype(ml_dtypes.bfloat16)
  tensors = {key: value.view(Stored) for key, value in weights.items()}
  layer = {"weight": tensors["backbone.0.weight"], "bias": tensors["backbone.0.bias"], "training": False}
  steps = np.arange(2).view(Stored)
  source = open_source(script({"backbone": {"0": layer}, "scale": tensors["scale"], "steps": steps}))
  assert source.kind == "torchscript" and source.skipped == {"steps": "int64, not a weight"}
  assert_holds(source, weights)


def test_a_tensor_beyond_its_storage_is_refused(script):
  tensor = np.ones((3, 4), np.float32).view(Stored)
  assert "a tensor reaches beyond its storage" in refusal(script({"a": tensor}, claim=lambda size: size - 1))
  assert "storage 0 is shorter than its tensors" in refusal(script({"a": tensor}, claim=lambda size: size + 1))
