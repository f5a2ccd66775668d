"""Device mesh and the table (path regex -> PartitionSpec) that places every parameter. An unmatched path is an error.

Mesh axes: `data` replicates the parameters, `fsdp` shards them; a batch is split over both. `slice`, which replicates
too, counts the slices of TPUs that are joined by the network of the data centre alone: only sums of gradients cross it,
each device's own shard of them. Axis types are always Auto (jax.make_mesh defaults to Explicit, under which a
contraction over a sharded axis needs `out_sharding=`).
"""

from __future__ import annotations

import functools
import logging
import math
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from synclipmae_jax.types import InputError

SLICE = "slice"
BATCH_AXES = (SLICE, "data", "fsdp")
Rules = Sequence[tuple[str, PartitionSpec]]

# The sharding rules of all models. The first axis of stacked blocks is the depth, which is scanned and never sharded.
RULES: Rules = (
  (r"(^|/)vae/", PartitionSpec()),  # 0.5 GB, frozen, convolutions of many sizes: replicated
  (r"(^|/)positional_conv/", PartitionSpec()),  # 19 MB, frozen; sharding any axis costs an extra collective
  (r"(^|/)depthwise/kernel$", PartitionSpec(None, None, "fsdp")),  # [depth, taps, channels]
  (r"(^|/)blocks/.*kernel$", PartitionSpec(None, "fsdp")),  # [depth, in, out]
  (r"(^|/)conv\w*/kernel$", PartitionSpec(None, None, "fsdp")),  # [taps, in, out]
  (r"kernel$", PartitionSpec("fsdp")),  # [in, out]
  # An embedding is looked up by rows: the gradient of a sharded one would gather the activations.
  (r"(bias|scale|mean|var|embedding|token|tokens|position|modulation|log_temperature)$", PartitionSpec()),
)


def make_mesh(axes: Mapping[str, int] | Sequence[tuple[str, int]], devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Mesh over `devices` (default: all). One axis may be -1: it takes the remaining devices.

  Raises InputError if the product of the axes is not the number of devices, or `slice` not the number of TPU slices.
  """
  try:
    sizes = {str(name): int(size) for name, size in dict(axes).items()}
  except (TypeError, ValueError):
    raise InputError(f"a mesh is a tuple of (axis, size), like (('data', -1),), not {axes!r}") from None
  devices = list(jax.devices() if devices is None else devices)
  count = len(devices)
  unknown = [name for name, size in sizes.items() if size == -1]
  if len(unknown) > 1:
    raise InputError(f"at most one mesh axis may be -1, got {sizes}")
  if unknown:
    known = math.prod(size for size in sizes.values() if size != -1)
    if known < 1 or count % known:
      raise InputError(f"mesh {sizes} does not divide {count} devices")
    sizes[unknown[0]] = count // known
  if math.prod(sizes.values()) != count or min(sizes.values()) < 1:
    raise InputError(f"mesh {sizes} needs {math.prod(sizes.values())} devices, but there are {count}")
  slices = len({slice_of(device) for device in devices}) if devices[0].platform == "tpu" else 1
  if slices > 1 and sizes.get(SLICE, 1) != slices:
    raise InputError(f"the devices are {slices} slices: the mesh needs ('{SLICE}', {slices}), got {sizes}")
  # A v5e slice of 16 x 16 has no physical axis of 8, so an axis is split.
  if slices == 1:
    grid = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
  else:
    within, between = sizes | {SLICE: 1}, {name: size if name == SLICE else 1 for name, size in sizes.items()}
    grid = mesh_utils.create_hybrid_device_mesh(
      tuple(within.values()), tuple(between.values()), devices, allow_split_physical_axes=True
    )
  return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def slice_of(device: jax.Device) -> int:
  """The number of the TPU slice of a device. Those of a single slice that is not there have none."""
  return getattr(device, "slice_index", 0)


def tree_paths(tree) -> list[tuple[str, Any]]:
  """[(path with / between names, leaf)] of a nested dict or dataclass, in tree order."""
  return [("/".join(_name(k) for k in path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _name(key) -> str:
  for attribute in ("key", "name", "idx"):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)


def shardings(tree, mesh: Mesh, rules: Rules):
  """NamedSharding for every leaf, from the first rule whose regex is found in the path of the leaf.

  A dimension that the rule's mesh axes do not divide is replicated instead (a small model on a large mesh), and process
  0 logs one warning that names it. Scalars are always replicated. Raises KeyError with the paths that no rule matches.
  """
  unmatched: list[str] = []
  replicated: list[str] = []

  def place(path, leaf):
    name = "/".join(_name(k) for k in path)
    shape = np.shape(leaf)
    if not shape:
      return NamedSharding(mesh, PartitionSpec())
    for pattern, spec in rules:
      if re.search(pattern, name):
        return NamedSharding(mesh, _fit(spec, shape, mesh, name, replicated))
    unmatched.append(name)
    return None

  placed = jax.tree_util.tree_map_with_path(place, tree)
  if unmatched:
    raise KeyError(f"no sharding rule matches {unmatched}")
  if replicated:
    _warn_replicated(tuple(replicated))
  return placed


@functools.cache  # a run computes the shardings of a tree several times
def _warn_replicated(places: tuple[str, ...]) -> None:
  if jax.process_index() == 0:
    more = f"; and {len(places) - 8} more" if len(places) > 8 else ""
    logging.getLogger(__name__).warning("replicated instead of sharded: %s%s", "; ".join(places[:8]), more)


def _fit(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh, name: str, replicated: list[str]) -> PartitionSpec:
  """`spec` without axes that do not divide their dimension; these dimensions are added to `replicated`."""
  if len(spec) > len(shape):
    raise ValueError(f"rule {spec} has more dimensions than {name} {shape}")
  fitted = []
  for dimension, (size, axes) in enumerate(zip(shape, spec, strict=False)):
    axes = (axes,) if isinstance(axes, str) else (axes or ())
    axes = tuple(axis for axis in axes if axis in mesh.shape)
    ways = math.prod(mesh.shape[axis] for axis in axes)
    if size % ways:
      over = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in axes)
      replicated.append(f"{name} (dimension {dimension} of {size} does not divide over {over})")
    fitted.append(axes if axes and size % ways == 0 else None)
  return PartitionSpec(*fitted)


def batch_axes(mesh: Mesh | AbstractMesh) -> dict[str, int]:
  """The axes of the mesh over which a batch is split, with their sizes."""
  return {axis: mesh.shape[axis] for axis in BATCH_AXES if axis in mesh.shape}


def on_own_examples(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """`function` of arrays with examples first, run by every device of the ambient mesh on its own; as it is without one.

  For kernels, which the compiler cannot divide itself.
  """
  axes = batch_axes(jax.sharding.get_abstract_mesh())
  if not axes:
    return function
  by_example = PartitionSpec(tuple(axes))
  return lambda *arrays: jax.shard_map(
    function, in_specs=(by_example,) * len(arrays), out_specs=by_example, check_vma=False
  )(*arrays)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """First axis over every batch axis of the mesh, the rest replicated."""
  return NamedSharding(mesh, PartitionSpec(tuple(batch_axes(mesh))))


def constrain(x: jax.Array) -> jax.Array:
  """Constrains the first axis of an activation to the batch axes of the ambient mesh; without a mesh it does nothing.

  Without this constraint in every block the TPU compiler replicated the batch (52 GiB of temporaries per chip, not 8).
  """
  mesh = jax.sharding.get_abstract_mesh()
  axes = batch_axes(mesh)
  if not axes or x.shape[0] % math.prod(axes.values()):
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(tuple(axes)))


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Global arrays from this process's share of the batch (first axis)."""
  sharding = batch_sharding(mesh)
  placed = {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
  # On a CPU a step that has to wait for its batch would leave the main thread (train/cpu_settings.py).
  return jax.block_until_ready(placed) if mesh.devices.flat[0].platform == "cpu" else placed


def to_local(x: jax.Array) -> np.ndarray:
  """This process's rows of an array placed by `batch_sharding`, in the order of `to_global`."""
  rows = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
  return np.concatenate([np.asarray(rows[start]) for start in sorted(rows)])


T = TypeVar("T")


def gather(value: T) -> list[T]:
  """The `value` of every process, in process order. `value` must be picklable; all processes must call this."""
  if jax.process_count() == 1:
    return [value]
  data = np.frombuffer(pickle.dumps(value), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(len(data)))
  rows = multihost_utils.process_allgather(np.pad(data, (0, sizes.max() - len(data))))
  return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
