"""Data of accelerators, and model FLOPs utilisation: model FLOPs of a step / (its time x the peak of its devices).

Model FLOPs are the task's own count (matrix products only, forward x 3 where trained), as in MaxText's performance
metrics. Recomputation by rematerialisation is not counted.
"""

from __future__ import annotations

import dataclasses

import jax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tpu:
  """Properties of a topology, except peak FLOP/s. Values are per device: a TPU7x chip has two devices."""

  hbm_gib: float  # usable by a program, from the compiler; the data sheets list 32, 16, 95, 32 and 2 x 96
  hbm_bandwidth: float  # bytes/s
  ring_bandwidth: float  # bytes/s that a device sends in a ring along one axis of the torus, in both directions
  dcn_bandwidth: float | None  # bytes/s of a device to other slices, over the network of the data centre; None: unknown
  torus: int  # axes of the interconnect
  pod: int  # chips of the largest slice


# Dense bf16 FLOP/s of one device by the prefix of its `device_kind`, from the vendors' data sheets. Longer prefixes
# come first ("TPU v5 lite" is v5e, "TPU v5" is v5p).
PEAK_FLOPS = {
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v6": 918e12,
  "TPU7x": 2307e12 / 2,
  "NVIDIA A100": 312e12,
  "NVIDIA H100": 989e12,
  "NVIDIA H200": 989e12,
  "NVIDIA B200": 2250e12,
}

# By the name of the topology, from cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}. These pages give the interconnect
# bandwidth per chip in both directions over all ports: 400, 1200, 800 and 1200 GB/s from v5e on. A ring sends on both
# ports of one axis (v4: links of 50 GB/s, Jouppi et al. 2023). They give 6.4 (v5e) and 25.6 Tbit/s (v6e) of the network
# of the data centre for 256 chips.
TPUS = {
  "v4": Tpu(hbm_gib=30.75, hbm_bandwidth=1200e9, ring_bandwidth=100e9, dcn_bandwidth=None, torus=3, pod=4096),
  "v5e": Tpu(hbm_gib=15.75, hbm_bandwidth=819e9, ring_bandwidth=100e9, dcn_bandwidth=25e9 / 8, torus=2, pod=256),
  "v5p": Tpu(hbm_gib=95.74, hbm_bandwidth=2765e9, ring_bandwidth=200e9, dcn_bandwidth=None, torus=3, pod=6144),
  "v6e": Tpu(hbm_gib=31.25, hbm_bandwidth=1600e9, ring_bandwidth=200e9, dcn_bandwidth=100e9 / 8, torus=2, pod=256),
  "tpu7x": Tpu(
    hbm_gib=94.75, hbm_bandwidth=7380e9 / 2, ring_bandwidth=200e9 / 2, dcn_bandwidth=None, torus=3, pod=9216
  ),
}


def peak_flops(device: jax.Device) -> float | None:
  """Peak bf16 FLOP/s of a device; None if the table does not list it (CPUs)."""
  return next((peak for kind, peak in PEAK_FLOPS.items() if device.device_kind.startswith(kind)), None)


def mfu(model_flops: float, seconds: float, devices) -> float | None:
  """Utilisation in 0..1 of one step over `devices`; None if their peak is unknown."""
  peaks = [peak_flops(device) for device in devices]
  return None if None in peaks else model_flops / (seconds * sum(peaks))
