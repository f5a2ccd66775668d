from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_task import ToyTask

from synclipmae_jax import sharding
from synclipmae_jax.checkpoints import (
  Checkpointer,
  format,
  load_item,
  load_meta,
  resolve_step,
  save_items,
  tree_hash,
)
from synclipmae_jax.train.loop import OPT_STATE
from synclipmae_jax.train.optim import make_optimizer
from synclipmae_jax.train.state import TrainState, abstract_state, init_state
from synclipmae_jax.types import InputError

OPTIMIZER = make_optimizer(peak_lr=1e-2, warmup_steps=2, total_steps=10)


def mesh_of(devices):
  return sharding.make_mesh({"fsdp": devices}, jax.devices()[:devices])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A workdir with steps 1 and 2, whose parameters differ, and frozen parameters."""
  workdir = tmp_path_factory.mktemp("saved")
  state, frozen = init_state(ToyTask(), OPTIMIZER, mesh_of(8), jax.random.key(0))
  checkpoints = Checkpointer(workdir, keep_last=3, stamp={"config_sha256": "abc"})
  checkpoints.save_frozen(frozen, tree_hash(frozen))
  for step in (1, 2):
    checkpoints.save(items(moved(state, step)), step, frozen_hash=tree_hash(frozen))
  checkpoints.wait()
  checkpoints.close()
  return workdir, state, frozen


@pytest.fixture
def workdir(saved, tmp_path):
  shutil.copytree(saved[0], tmp_path / "w")
  return tmp_path / "w"


def items(state: TrainState) -> dict:
  return {**state.trainable, OPT_STATE: state.opt_state}


def moved(state: TrainState, step: int) -> TrainState:
  return jax.tree.map(lambda x: x + jnp.asarray(step, x.dtype), state)


def files(directory: Path, item: str) -> list[Path]:
  return sorted(path for path in (directory / item).rglob("*") if path.is_file() and path.stat().st_size)


def equal(tree, other):
  for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("devices", [8, 2, 1])
def test_restores_onto_any_mesh(saved, devices):
  workdir, state, frozen = saved
  abstract, abstract_frozen = abstract_state(ToyTask(), OPTIMIZER, mesh_of(devices))
  checkpoints = Checkpointer(workdir)
  assert checkpoints.last_whole_step() == 2
  restored, expected = checkpoints.restore(2, items(abstract)), items(moved(state, 2))
  assert jax.tree.structure(restored) == jax.tree.structure(expected)
  equal(restored, expected)
  equal(checkpoints.restore_frozen(abstract_frozen), frozen)
  assert restored["head"]["kernel"].sharding.num_devices == devices
  assert tree_hash(restored) == tree_hash(expected) != tree_hash(items(state))


def test_meta_carries_the_stamp_and_the_hash_of_the_frozen_parameters(saved):
  workdir, _, frozen = saved
  meta = load_meta(workdir)
  assert (meta["step"], meta["config_sha256"], meta["metrics"]) == (2, "abc", {})
  assert meta["frozen_sha256"] == tree_hash(frozen) and meta["versions"]["jax"] == jax.__version__


def test_a_save_in_progress_is_not_changed_by_donating_its_arrays(tmp_path):
  state = TrainState(jnp.zeros((), jnp.int32), {"a": {"kernel": jnp.arange(1 << 22, dtype=jnp.float32)}}, ())
  expected = jax.tree.map(np.array, state.trainable)
  checkpoints = Checkpointer(tmp_path)
  overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
  checkpoints.save(items(state), 1)
  for _ in range(3):
    state = jax.block_until_ready(overwrite(state))
  checkpoints.wait()
  equal({"a": load_item(tmp_path, "a")}, expected)


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


DAMAGES = {
  "flipped byte": (lambda step: flip(max(files(step, "head"), key=lambda f: f.stat().st_size)), "changed head/"),
  "truncated file": (lambda step: files(step, "encoder")[0].write_bytes(b""), "changed encoder/"),
  "deleted file": (lambda step: files(step, "opt_state")[0].unlink(), "missing opt_state/"),
  "deleted item": (lambda step: shutil.rmtree(step / "head"), "missing head/"),
  "no manifest": (lambda step: (step / "checksums.json").unlink(), "no readable checksums.json"),
  "a list for a manifest": (lambda step: (step / "checksums.json").write_text("[1]"), "no readable checksums.json"),
  "a manifest that leads away": (
    lambda step: (step / "checksums.json").write_text('{"../../../dev/zero": "0"}'),
    "names a file outside the step",
  ),
  "half a manifest": (lambda step: (step / "checksums.json").write_text('{"meta.json": "'), "no readable checksums"),
  "edited meta": (lambda step: (step / "meta.json").write_text("{}"), "changed meta.json"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_step_is_named_and_the_one_before_is_used(workdir, name):
  damage, reason = DAMAGES[name]
  damage(workdir / "checkpoints" / "2")
  said = []
  assert resolve_step(workdir, say=said.append).name == "1"  # read-only: nothing is renamed
  assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["1", "2", "frozen"]
  checkpoints = Checkpointer(workdir, say=said.append)
  assert checkpoints.last_whole_step() == 1 and checkpoints.steps() == [1]
  assert len(said) == 2 and all("checkpoint 2 is damaged" in line and reason in line for line in said)


def test_only_damaged_steps_are_an_error_and_an_empty_workdir_is_a_fresh_start(workdir, tmp_path):
  for step in "12":
    flip(files(workdir / "checkpoints" / step, "head")[0])
  with pytest.raises(InputError, match="no complete checkpoint"):
    resolve_step(workdir, say=lambda _: None)
  with pytest.raises(InputError, match="every checkpoint .* is damaged"):
    Checkpointer(workdir, say=lambda _: None).last_whole_step()
  assert Checkpointer(tmp_path / "fresh").last_whole_step() is None


def test_damaged_frozen_parameters_are_reported_and_created_again(workdir):
  flip(files(workdir / "checkpoints" / "frozen", "projection")[0])
  with pytest.raises(InputError, match="frozen is damaged"):
    load_item(workdir, "projection")
  said = []
  _, abstract_frozen = abstract_state(ToyTask(), OPTIMIZER, mesh_of(1))
  assert Checkpointer(workdir, say=said.append).restore_frozen(abstract_frozen) is None
  assert "frozen parameters" in said[0] and "damaged" in said[0]


def test_files_of_a_killed_save_are_deleted(workdir):
  shutil.copytree(workdir / "checkpoints" / "2", workdir / "checkpoints" / "3.saving")
  shutil.copytree(workdir / "checkpoints" / "2", workdir / "checkpoints" / "1.deleting")
  assert Checkpointer(workdir).last_whole_step() == 2
  assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["1", "2", "frozen"]


def test_another_models_workdir_shows_both_sides(saved):
  abstract, _ = abstract_state(ToyTask(width=8), OPTIMIZER, mesh_of(1))
  extra = {**abstract.trainable, "decoder": {"kernel": jax.ShapeDtypeStruct((3,), jnp.float32)}}
  del extra["contrast"]
  with pytest.raises(InputError) as error:
    Checkpointer(saved[0]).restore(2, {**extra, OPT_STATE: abstract.opt_state})
  text = str(error.value)
  assert "another model" in text
  assert "only in the checkpoint (1):\n    contrast/log_temperature: float32[]" in text
  assert "only in this model (1):\n    decoder/kernel: float32[3]" in text
  assert "head/kernel: float32[16, 12] in the checkpoint, here float32[8, 12]" in text


def test_a_single_item(saved):
  workdir, state, frozen = saved
  head = load_item(workdir, "head")
  assert isinstance(head["kernel"], np.ndarray)
  equal(head, moved(state, 2).trainable["head"])
  equal(load_item(workdir / "checkpoints" / "1", "head"), moved(state, 1).trainable["head"])
  equal(load_item(workdir, "projection"), frozen["projection"])
  abstract, _ = abstract_state(ToyTask(), OPTIMIZER, mesh_of(4))
  placed = load_item(workdir, "encoder", abstract.trainable["encoder"])
  assert placed["blocks"]["kernel"].sharding == abstract.trainable["encoder"]["blocks"]["kernel"].sharding
  equal(placed, moved(state, 2).trainable["encoder"])
  with pytest.raises(InputError, match="no item 'decoder'; it has .*'head'.*'projection'"):
    load_item(workdir, "decoder")
  with pytest.raises(InputError, match="does not fit"):
    load_item(workdir, "head", {"kernel": jax.ShapeDtypeStruct((1, 2), jnp.float32)})


def test_save_items_writes_a_checkpoint(tmp_path):
  items = {"visual_encoder": {"blocks": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}}
  save_items(tmp_path / "converted", items, {"source": "toy"})
  assert load_meta(tmp_path / "converted")["source"] == "toy"
  equal(load_item(tmp_path / "converted", "visual_encoder"), items["visual_encoder"])
  with pytest.raises(InputError, match="already exists"):
    save_items(tmp_path / "converted", items, {})


@pytest.mark.parametrize(("mode", "best"), [("max", [2, 3]), ("min", [1, 5])])
def test_keeps_the_last_and_the_best(tmp_path, mode, best):
  state = TrainState(jnp.zeros((), jnp.int32), {"a": {"kernel": jnp.zeros(2)}}, ())
  checkpoints = Checkpointer(tmp_path, keep_last=1, keep_best=2, best_metric="sync/acc", best_mode=mode)
  for step, accuracy in enumerate([0.1, 0.9, 0.8, 0.7, 0.2, None], start=1):
    checkpoints.save(items(state), step)
    if accuracy is not None:
      checkpoints.score(step, {"sync/acc": accuracy})
  checkpoints.wait()
  assert checkpoints.steps() == [*best, 6]
  assert load_meta(tmp_path / "checkpoints" / str(best[0]))["metrics"]["sync/acc"] in (0.9, 0.1)
  assert resolve_step(tmp_path).name == "6"


def test_a_failed_save_names_the_last_complete_step(tmp_path, monkeypatch):
  state = TrainState(jnp.zeros((), jnp.int32), {"a": {"kernel": jnp.zeros(2)}}, ())
  checkpoints = Checkpointer(tmp_path)
  checkpoints.save(items(state), 1)
  checkpoints.wait()

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(format, "_checksums", full)
  checkpoints.save(items(state), 2)
  with pytest.raises(InputError, match="checkpoint 2 could not be written .*No space left.*complete one is step 1"):
    checkpoints.wait()
  monkeypatch.undo()
  assert Checkpointer(tmp_path).last_whole_step() == 1


def test_the_manifest_lists_every_file(saved):
  step = saved[0] / "checkpoints" / "2"
  manifest = json.loads((step / "checksums.json").read_text())
  present = {str(p.relative_to(step)) for p in step.rglob("*") if p.is_file()}
  assert set(manifest) == present - {"checksums.json"} and "meta.json" in manifest
