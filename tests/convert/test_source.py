"""Files, shards and folders of weights, without torch: what is opened, what is refused, and the message."""

import hashlib
import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from convert.random_weights import random_weights
from convert.source_checks import SHAPES, assert_holds, refusal, write
from safetensors.numpy import save_file

from synclipmae_jax.convert.source import open_source


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
def test_an_invalid_config_is_ignored(tmp_path, config):
  save_file(random_weights(SHAPES), tmp_path / "a.safetensors")
  if config:
    (tmp_path / "config.json").write_text(config)
  assert open_source(tmp_path).config is None


def test_the_prefix_of_data_parallel_is_stripped_where_all_keys_have_it(tmp_path):
  save_file({"module.a": np.ones(2), "module.b": np.ones(2)}, tmp_path / "a.safetensors")
  assert set(open_source(tmp_path / "a.safetensors").shapes) == {"a", "b"}
  save_file({"module.a": np.ones(2), "b": np.ones(2)}, tmp_path / "a.safetensors")
  assert set(open_source(tmp_path / "a.safetensors").shapes) == {"module.a", "b"}


def test_a_file_without_weights_is_refused(tmp_path):
  save_file({"counter": np.arange(3)}, tmp_path / "a.safetensors")
  assert "holds no weights: none of its 1 entries is a floating-point tensor" in refusal(tmp_path / "a.safetensors")


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
  save_file({"other": np.ones(3)}, folder / "another.safetensors")  # not in the index
  for path in (folder, folder / "model.safetensors.index.json"):
    with open_source(path) as source:
      assert source.kind == "safetensors (2 shards)" and len(source.files) == 3
      assert_holds(source, weights)
      assert set(source.sha256()) == {path.name for path in source.files}


@pytest.mark.parametrize(
  ("changes", "reason"),
  [
    ({"extra": "model-00001-of-00002.safetensors"}, "lacks 1 tensors that the index lists (extra) and holds 0"),
    ({"norm.weight": None}, "the index lists (none) and holds 1 that it does not list (norm.weight)"),
    ({"norm.weight": "model-00002-of-00002.safetensors"}, "holds 1 that it does not list (norm.weight)"),
    ({"x": "model-00003-of-00002.safetensors"}, "names 3 shards, of which 1 are missing: model-00003-of-00002"),
    ({"x": "../secret.safetensors"}, "is refused: it names a shard outside its folder, '../secret.safetensors'"),
    ({"x": "/etc/passwd"}, "is refused: it names a shard outside its folder, '/etc/passwd'"),
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
def test_an_invalid_index_is_refused(sharded, text):
  folder, _ = sharded
  (folder / "model.safetensors.index.json").write_bytes(text.encode("latin-1"))
  assert "is not an index of shards" in refusal(folder)


def test_an_empty_index_is_refused(sharded):
  folder, _ = sharded
  (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
  assert "lists no shards" in refusal(folder)


# Folders


def test_the_format_is_chosen_in_order(sharded):
  folder, weights = sharded
  write(folder / "pytorch_model.bin", b"never read")
  assert open_source(folder).kind == "safetensors (2 shards)"
  for path in folder.glob("model*"):
    path.unlink()
  save_file(weights, folder / "model.safetensors")
  assert open_source(folder).kind == "safetensors"
  (folder / "model.safetensors").unlink()
  write(folder / "zz.pth", b"never read")
  assert "pytorch_model.bin is neither" in refusal(folder)
  (folder / "pytorch_model.bin").unlink()
  assert "zz.pth is neither" in refusal(folder)


def test_several_candidates_are_listed(tmp_path):
  for name in ("b.pth", "a.pt"):
    write(tmp_path / name, b"x")
  (tmp_path / "c.pt").mkdir()
  write(tmp_path / "._a.pt", b"x")
  assert "holds 2 weights files, name the one to use: a.pt, b.pth" in refusal(tmp_path)
  for name in ("b.safetensors", "a.safetensors"):
    write(tmp_path / name, b"x")
  assert "holds 2 weights files, name the one to use: a.safetensors, b.safetensors" in refusal(tmp_path)


def test_only_the_named_sub_folders_are_searched(tmp_path):
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
  (tmp_path / "blobs/0").unlink()  # a partly cleared cache
  assert "of which 1 are missing" in refusal(snapshot)


def test_a_link_to_nothing_is_refused(tmp_path):
  (tmp_path / "model.safetensors").symlink_to("gone")
  assert "model.safetensors does not exist" in refusal(tmp_path)
  assert "nowhere does not exist" in refusal(tmp_path / "nowhere")
  assert "no weights in" in refusal(tmp_path / "..", folders=("nowhere",))


def test_a_path_that_is_neither_file_nor_folder_is_refused(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  assert "is neither a file nor a folder" in refusal(tmp_path / "pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission_is_refused(tmp_path):
  path = write(tmp_path / "a.safetensors", b"x")
  path.chmod(0)
  assert "cannot be read: Permission denied" in refusal(path)
  tmp_path.chmod(0o100)
  assert "cannot be read: Permission denied" in refusal(tmp_path)
  tmp_path.chmod(0o700)
