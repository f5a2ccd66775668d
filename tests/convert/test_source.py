"""Foreign files, without torch: what is read, what is refused, and in which sentence."""

import hashlib
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
from safetensors.numpy import save_file

from synclipmae_jax.convert.source import open_source
from synclipmae_jax.types import InputError

SHAPES = {"norm.weight": (4,), "norm.bias": (4,), "proj.weight": (3, 4), "scale": ()}


def refusal(path, **options) -> str:
  with pytest.raises(InputError) as error:
    open_source(path, **options)
  assert "\n" not in str(error.value) and len(str(error.value)) < 500
  return str(error.value)


def write(path: Path, data: bytes) -> Path:
  path.write_bytes(data)
  return path


def assert_holds(source, weights) -> None:
  assert source.shapes == {key: value.shape for key, value in weights.items()}
  assert source.dtypes == {key: value.dtype.name for key, value in weights.items()}
  for key, value in weights.items():
    found = source.read(key)
    assert found.dtype == value.dtype and found.shape == value.shape and found.tobytes() == value.tobytes()


# safetensors


def test_one_file_is_read_tensor_by_tensor(tmp_path):
  path = tmp_path / "model.safetensors"
  weights = random_weights(SHAPES)
  weights["half"] = weights["norm.weight"].astype(np.float16)
  weights["brain"] = weights["norm.bias"].astype(ml_dtypes.bfloat16)
  weights["double"] = weights["norm.bias"].astype(np.float64)
  save_file(weights | {"position_ids": np.arange(4), "flag": np.ones(2, bool)}, path)
  (tmp_path / "config.json").write_text('{"hidden_size": 4}')
  with open_source(path) as source:
    assert (source.kind, source.container, source.files) == ("safetensors", "", (path,))
    assert source.skipped == {"position_ids": "I64, not a weight", "flag": "BOOL, not a weight"}
    assert source.config == {"hidden_size": 4}
    assert_holds(source, weights)
    steps = []
    assert source.sha256(steps.append) == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    assert sum(steps) == path.stat().st_size
  assert not source.tensors


@pytest.mark.parametrize("config", ["[1]", "{", None])
def test_a_config_that_is_none_is_none(tmp_path, config):
  save_file(random_weights(SHAPES), tmp_path / "a.safetensors")
  if config:
    (tmp_path / "config.json").write_text(config)
  assert open_source(tmp_path).config is None


def test_the_prefix_of_data_parallel_is_stripped_where_all_keys_have_it(tmp_path):
  save_file({"module.a": np.ones(2), "module.b": np.ones(2)}, tmp_path / "a.safetensors")
  assert set(open_source(tmp_path / "a.safetensors").shapes) == {"a", "b"}
  save_file({"module.a": np.ones(2), "b": np.ones(2)}, tmp_path / "a.safetensors")
  assert set(open_source(tmp_path / "a.safetensors").shapes) == {"module.a", "b"}


def entry(start: int, stop: int, shape=(2,), dtype: str = "F32") -> dict:
  return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
  ("header", "size", "length", "reason"),
  [
    ({"a": entry(0, 8)}, 4, None, "incomplete metadata"),  # cut short
    ({"a": entry(0, 8)}, 8, 10**6, "invalid header length"),
    ({"a": entry(0, 8)}, 8, 10**9, "header too large"),
    ({"a": entry(0, 8), "b": entry(4, 12)}, 12, None, "invalid offset"),  # overlapping
    ({"a": entry(0, 8), "b": entry(16, 24)}, 24, None, "invalid offset"),  # a gap to hide something in
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
  assert sentence.startswith(f"{path} is cut short or damaged") and reason in sentence


def test_every_cut_of_a_file_is_noticed(tmp_path):
  save_file(random_weights(SHAPES), tmp_path / "whole.safetensors")
  whole = (tmp_path / "whole.safetensors").read_bytes()
  for length in range(1, len(whole)):
    assert "cut short or damaged" in refusal(write(tmp_path / "cut.safetensors", whole[:length]))


def test_eight_bit_weights_are_refused_by_name(tmp_path):
  save_file({"w": np.ones(4, ml_dtypes.float8_e4m3fn)}, tmp_path / "a.safetensors")
  assert "tensor 'w' is F8_E4M3; weights of type float16, bfloat16" in refusal(tmp_path / "a.safetensors")


def test_a_file_without_weights_is_refused(tmp_path):
  save_file({"counter": np.arange(3)}, tmp_path / "a.safetensors")
  assert "holds no weights (no tensor of a floating type among its 1 entries)" in refusal(tmp_path / "a.safetensors")


# Shards


@pytest.fixture
def sharded(tmp_path):
  """A folder of two shards and their index; returns the folder and all weights."""
  weights = random_weights(SHAPES)
  names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
  where = {key: names[i % 2] for i, key in enumerate(weights)}
  for name in names:
    save_file({key: value for key, value in weights.items() if where[key] == name}, tmp_path / name)
  (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
  return tmp_path, weights


def edit_index(folder: Path, **changes) -> None:
  index = folder / "model.safetensors.index.json"
  where = json.loads(index.read_text())["weight_map"] | changes
  index.write_text(json.dumps({"weight_map": {key: name for key, name in where.items() if name is not None}}))


def test_shards_are_one_source(sharded):
  folder, weights = sharded
  save_file({"other": np.ones(3)}, folder / "another.safetensors")  # the index says what belongs together
  for path in (folder, folder / "model.safetensors.index.json"):
    with open_source(path) as source:
      assert source.kind == "safetensors (2 shards)" and len(source.files) == 3
      assert_holds(source, weights)
      assert set(source.sha256()) == {path.name for path in source.files}


@pytest.mark.parametrize(
  ("changes", "reason"),
  [
    ({"extra": "model-00001-of-00002.safetensors"}, "lacks 1 tensors that the index lists (extra) and holds 0"),
    ({"norm.weight": None}, "lacks 0 tensors that the index lists (none) and holds 1 that it does not (norm.weight)"),
    ({"norm.weight": "model-00002-of-00002.safetensors"}, "holds 1 that it does not (norm.weight)"),
    ({"x": "model-00003-of-00002.safetensors"}, "names 3 shards, of which 1 are missing: model-00003-of-00002"),
    ({"x": "../secret.safetensors"}, "outside its folder, '../secret.safetensors': refused"),
    ({"x": "/etc/passwd"}, "outside its folder, '/etc/passwd': refused"),
    ({"x": "a/b.safetensors"}, "outside its folder"),
    ({"x": ".."}, "outside its folder"),
    ({"x": ""}, "outside its folder"),
    ({"x": "a\0b"}, "outside its folder"),
    ({"x": "..\\secret"}, "outside its folder"),
    ({"x": 7}, "names 3 shards, of which 1 are missing: 7"),
  ],
)
def test_an_index_that_does_not_fit_is_refused(sharded, changes, reason):
  folder, _ = sharded
  edit_index(folder, **changes)
  assert reason in refusal(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": [1]}', "\xff"])
def test_an_index_that_is_none_is_refused(sharded, text):
  folder, _ = sharded
  (folder / "model.safetensors.index.json").write_bytes(text.encode("latin-1"))
  assert "is no index of shards" in refusal(folder)


def test_an_index_of_nothing_is_refused(sharded):
  folder, _ = sharded
  (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
  assert "lists no shards" in refusal(folder)


# Folders


def test_the_format_is_chosen_in_order(sharded):
  folder, weights = sharded
  write(folder / "pytorch_model.bin", b"not even looked at")
  assert open_source(folder).kind == "safetensors (2 shards)"
  for path in folder.glob("model*"):
    path.unlink()
  save_file(weights, folder / "model.safetensors")
  assert open_source(folder).kind == "safetensors"
  (folder / "model.safetensors").unlink()
  write(folder / "zz.pth", b"not even looked at")
  assert "pytorch_model.bin is neither" in refusal(folder)
  (folder / "pytorch_model.bin").unlink()
  assert "zz.pth is neither" in refusal(folder)


def test_several_candidates_are_listed(tmp_path):
  for name in ("b.pth", "a.pt"):
    write(tmp_path / name, b"x")
  (tmp_path / "c.pt").mkdir()
  write(tmp_path / "._a.pt", b"x")
  assert "holds 2 files of weights, name the one to use: a.pt, b.pth" in refusal(tmp_path)
  for name in ("b.safetensors", "a.safetensors"):
    write(tmp_path / name, b"x")
  assert "holds 2 files of weights, name the one to use: a.safetensors, b.safetensors" in refusal(tmp_path)


def test_sub_folders_are_looked_in_where_named(tmp_path):
  (tmp_path / "vae").mkdir()
  save_file(random_weights(SHAPES), tmp_path / "vae/diffusion_pytorch_model.safetensors")
  assert refusal(tmp_path).startswith(f"no weights in {tmp_path}: no .safetensors")
  assert f"no weights in {tmp_path} nor in transformer" in refusal(tmp_path, folders=("transformer",))
  source = open_source(tmp_path, folders=("transformer", "vae"))
  assert source.files[0].parent.name == "vae"


def test_links_into_a_hub_cache_are_followed(tmp_path, sharded):
  folder, weights = sharded
  (tmp_path / "blobs").mkdir()
  snapshot = tmp_path / "snapshots/0123"
  snapshot.mkdir(parents=True)
  for i, path in enumerate(sorted(folder.glob("model*"))):
    path.rename(tmp_path / f"blobs/{i}")
    (snapshot / path.name).symlink_to(f"../../blobs/{i}")
  assert_holds(open_source(snapshot), weights)
  (tmp_path / "blobs/0").unlink()  # a cache that was cleared by half
  assert "of which 1 are missing" in refusal(snapshot)


def test_a_link_to_nothing_is_refused(tmp_path):
  (tmp_path / "model.safetensors").symlink_to("gone")
  assert "model.safetensors is not there" in refusal(tmp_path)
  assert "nowhere is not there" in refusal(tmp_path / "nowhere")
  assert "no weights in" in refusal(tmp_path / "..", folders=("nowhere",))


def test_what_is_neither_file_nor_folder_is_refused(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  assert "is neither a file nor a folder" in refusal(tmp_path / "pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path):
  path = write(tmp_path / "a.safetensors", b"x")
  path.chmod(0)
  assert "cannot be read: Permission denied" in refusal(path)
  tmp_path.chmod(0o100)
  assert "cannot be read: Permission denied" in refusal(tmp_path)
  tmp_path.chmod(0o700)


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
    (b"PK\x03\x04" + bytes(40), "is cut short or damaged (File is not a zip file)"),
    (zipped(**{"arr_0.npy": b"x"}), "is a zip archive, but not one that torch.save wrote"),
    (zipped(archive_format=b"pt2", models__model="{}"), "is a torch.export program, which is not read"),
    (zipped(**{"serialized_exported_program.json": b"{}"}), "sapiens_0.3b_epoch_1600_clean.pth"),
    (zipped(**{"data.pkl": b""}), "is cut short or damaged (pickle exhausted"),
    (zipped(**{"data.pkl": b"\x80\x02rubbish"}), "is cut short or damaged ("),
    (pickle.dumps({"a": 1}), "is a Python pickle that torch.save did not write: refused, nothing was run"),
  ],
)
@pytest.mark.parametrize("name", ["model.bin", "model.pth"])
def test_another_kind_of_file_is_named(tmp_path, data, looks, name):
  path = write(tmp_path / name, data)
  sentence = refusal(path)
  assert sentence.startswith(f"{path} {looks}") or looks in sentence


def test_a_web_page_called_safetensors_is_a_web_page(tmp_path):
  assert "is a web page" in refusal(write(tmp_path / "model.safetensors", b"<html>"))


def test_a_compressed_archive_is_refused(tmp_path):
  with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("a/data.pkl", pickle.dumps({}, protocol=2) + bytes(1 << 20))
  assert "not one that torch.save wrote" in refusal(tmp_path / "a.pth")


# Pickles that want to run something


class Call:
  """Pickles as a call."""

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
def test_a_pickle_that_wants_to_run_something_is_refused_by_name(tmp_path, name, container, protocol):
  marker = tmp_path / "ran"
  data = pickle.dumps({"state_dict": {}, "args": hostile(marker)[name]}, protocol=protocol)
  if container in ("zip", "torchscript"):
    data = zipped(**{"data.pkl": data} | ({"constants.pkl": b""} if container == "torchscript" else {}))
  elif container == "legacy":
    head = [pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    data = b"".join(head) + data
  sentence = refusal(write(tmp_path / "model.pth", data))
  assert "wants to run `" in sentence and sentence.endswith(" when it is read: refused, nothing was run")
  if name != "pathlib.Path.touch":
    assert f"`{name}`" in sentence
  assert not marker.exists() and "this" not in sys.modules


def test_a_memo_number_beyond_the_file_is_refused(tmp_path):
  data = b"\x80\x02}r\xff\xff\xff\x7f."  # would make the unpickler allocate 16 GiB
  for files in ({"data.pkl": data}, {"data.pkl": data, "constants.pkl": b""}):
    assert "a memo number larger than the file" in refusal(write(tmp_path / "a.pt2", zipped(**files)))


# TorchScript, which needs no torch


class Stored(np.ndarray):
  """Pickles as TorchScript's tensors do."""

  def __reduce__(self):
    values = np.array(self)
    strides = tuple(stride // values.itemsize for stride in values.strides)
    return TORCH["_rebuild_tensor_v2"], (Storage(values), 0, values.shape, strides, False, {})


class Storage:
  def __init__(self, values):
    self.values = values


def foreign(module: str, name: str):
  """Something that pickles as `module.name`."""
  made = type(name, (), {"__module__": module, "__qualname__": name})
  sys.modules.setdefault(module, types.ModuleType(module)).__dict__[name] = made
  return made


@pytest.fixture
def script(tmp_path, monkeypatch):
  """Writes a TorchScript archive as torch lays it out: script({name: array or nested dict}) -> path."""
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
