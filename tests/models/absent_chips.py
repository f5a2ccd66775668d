"""Meshes of devices that are not there."""

import jax
from jax.sharding import AbstractMesh, AxisType


def mesh(platform, **sizes):
  device = jax.sharding.AbstractDevice(device_kind="some", num_cores=None, platform=platform)
  return AbstractMesh(
    tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), abstract_device=device
  )
