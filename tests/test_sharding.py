"""The mesh, the table that places parameters, and what crosses processes."""

import logging
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.sharding import AxisType, PartitionSpec

from synclipmae_jax import sharding
from synclipmae_jax.types import InputError

RULES = (
  (r"blocks/.*kernel$", PartitionSpec(None, "fsdp")),
  (r"kernel$", PartitionSpec("fsdp")),
  (r"bias$", PartitionSpec()),
)


def arrays(**shapes):
  return {name.replace("_", "/"): jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


@pytest.fixture
def warned(caplog):
  """The warnings of a test; what was said before counts no more."""
  sharding._warn_replicated.cache_clear()
  caplog.set_level(logging.WARNING)
  return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
  "axes, shape",
  [
    ((("data", -1),), {"data": 8}),
    ((("data", -1), ("fsdp", 4)), {"data": 2, "fsdp": 4}),
    ({"data": 2, "fsdp": -1}, {"data": 2, "fsdp": 4}),
    ({"data": 8, "fsdp": 1}, {"data": 8, "fsdp": 1}),
  ],
)
def test_one_axis_takes_what_is_left(axes, shape):
  mesh = sharding.make_mesh(axes)
  assert dict(mesh.shape) == shape and mesh.axis_types == (AxisType.Auto,) * len(shape)


@pytest.mark.parametrize(
  "axes, words",
  [
    (8, "a mesh is a tuple"),
    ((("data", "x"),), "a mesh is a tuple"),
    ({"data": -1, "fsdp": -1}, "at most one"),
    ({"data": -1, "fsdp": 3}, "does not divide 8 devices"),
    ({"data": -1, "fsdp": 0}, "does not divide 8 devices"),
    ({"data": 2, "fsdp": 2}, "needs 4 devices, but there are 8"),
    ({"data": -2, "fsdp": -4}, "needs 8 devices"),
  ],
)
def test_a_mesh_that_cannot_be_is_refused(axes, words):
  with pytest.raises(InputError, match=words):
    sharding.make_mesh(axes)


def test_a_mesh_over_some_of_the_devices():
  mesh = sharding.make_mesh({"data": -1}, jax.devices()[2:5])
  assert set(mesh.devices.flat) == set(jax.devices()[2:5])


def test_the_first_rule_that_is_found_in_the_path_decides(warned):
  mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
  placed = sharding.shardings(
    arrays(blocks_up_kernel=(3, 8, 5), head_kernel=(8, 5), head_bias=(5,), step=()), mesh, RULES
  )
  assert {path: tuple(place.spec) for path, place in placed.items()} == {
    "blocks/up/kernel": (None, "fsdp"),
    "head/kernel": ("fsdp",),
    "head/bias": (),
    "step": (),
  }
  assert placed["blocks/up/kernel"].shard_shape((3, 8, 5)) == (3, 2, 5)
  assert not warned()


def test_every_path_that_no_rule_matches_is_named():
  with pytest.raises(KeyError, match="one/surprise.*two/surprise"):
    sharding.shardings(
      arrays(one_surprise=(4,), two_surprise=(4,), kernel=(4,)), sharding.make_mesh({"data": 8}), RULES
    )


def test_a_rule_of_more_dimensions_than_the_leaf_is_an_error():
  with pytest.raises(ValueError, match="more dimensions than blocks/kernel"):
    sharding.shardings(arrays(blocks_kernel=(8,)), sharding.make_mesh({"fsdp": 8}), RULES)


def test_what_does_not_divide_is_replicated_and_said_once(warned):
  mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
  odd = arrays(blocks_kernel=(3, 6, 5), head_kernel=(8, 5))
  for _ in range(2):
    placed = sharding.shardings(odd, mesh, RULES)
  assert placed["blocks/kernel"].is_fully_replicated and not placed["head/kernel"].is_fully_replicated
  (said,) = warned()
  assert "blocks/kernel (dimension 1 of 6 does not divide over fsdp=4)" in said and "head" not in said


def test_an_axis_of_one_or_none_divides_everything(warned):
  for axes in ({"data": 8, "fsdp": 1}, {"data": 8}):
    sharding.shardings(arrays(blocks_kernel=(3, 7, 5), head_kernel=(7, 5)), sharding.make_mesh(axes), RULES)
  assert not warned()


def test_only_process_0_warns(warned, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  sharding.shardings(arrays(head_kernel=(7, 5)), sharding.make_mesh({"fsdp": 8}), RULES)
  assert not warned()


def test_many_replicated_parameters_are_counted(warned):
  odd = arrays(**{f"part{i}_kernel": (7,) for i in range(20)})
  sharding.shardings(odd, sharding.make_mesh({"fsdp": 8}), RULES)
  (said,) = warned()
  assert said.count("does not divide") == 8 and said.endswith("and 12 more")


def test_constrain_pins_the_batch_axis():
  mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
  x = jax.device_put(jnp.ones((16, 3)), jax.NamedSharding(mesh, PartitionSpec()))
  pinned = jax.jit(sharding.constrain)
  with jax.set_mesh(mesh):
    assert pinned(x).sharding.shard_shape(x.shape) == (2, 3)
    np.testing.assert_array_equal(pinned(x), x)
    assert pinned(x[:6]).sharding.is_fully_replicated  # 6 clips do not divide over 8 devices
  assert jax.jit(lambda x: sharding.constrain(x))(x).sharding.is_fully_replicated  # no mesh, no constraint


def test_a_batch_goes_to_the_devices_and_back():
  mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
  batch = {"frames": np.arange(16 * 3).reshape(16, 3), "index": np.arange(16, dtype=np.uint32)}
  placed = sharding.to_global(batch, mesh)
  assert placed["frames"].sharding.shard_shape((16, 3)) == (2, 3) and placed["index"].dtype == np.uint32
  for name, value in batch.items():
    np.testing.assert_array_equal(sharding.to_local(placed[name]), value)


def test_a_batch_axis_that_the_mesh_lacks_is_left_out():
  assert sharding.batch_sharding(sharding.make_mesh({"fsdp": 8})).spec == PartitionSpec(("fsdp",))
  assert sharding.batch_sharding(sharding.make_mesh({"data": 8})).spec == PartitionSpec(("data",))


def test_gather_of_one_process_is_its_value():
  value = {"a": np.ones(3)}
  assert sharding.gather(value)[0] is value and len(sharding.gather(value)) == 1


def test_gather_keeps_values_of_different_lengths_apart(monkeypatch):
  """Two processes, of which the other one's rows are made by hand."""
  other = "a much longer value than ours"

  def allgather(x):
    theirs = np.frombuffer(pickle.dumps(other), np.uint8)
    if x.ndim == 0:
      return np.stack([x, np.int32(len(theirs))])
    return np.stack([x, theirs])

  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(multihost_utils, "process_allgather", allgather)
  assert sharding.gather("ours") == ["ours", other]


def test_paths_are_those_of_the_rules():
  tree = {"a": {"kernel": 1}, "b": [2, 3]}
  assert [path for path, _ in sharding.tree_paths(tree)] == ["a/kernel", "b/0", "b/1"]


def test_a_batch_is_split_over_slices_and_parameters_are_not():
  mesh = sharding.make_mesh((("slice", 2), ("data", 1), ("fsdp", -1)))
  assert dict(mesh.shape) == {"slice": 2, "data": 1, "fsdp": 4}
  assert sharding.batch_sharding(mesh).shard_shape((16, 3)) == (2, 3)
  placed = sharding.shardings(arrays(head_kernel=(8, 5)), mesh, RULES)
  assert placed["head/kernel"].shard_shape((8, 5)) == (2, 5)


class Chip:
  """As much of a TPU as the mesh asks for."""

  platform, process_index = "tpu", 0

  def __init__(self, number):
    self.id, self.slice_index = number, number // 4


def test_slices_of_tpus_must_be_an_axis():
  with pytest.raises(InputError, match=r"2 slices: the mesh needs \('slice', 2\)"):
    sharding.make_mesh({"data": -1}, [Chip(number) for number in range(8)])
