"""Model FLOPs utilisation: model FLOPs of a step / (its time x the peak of the devices that ran it).

Model FLOPs are the task's own count (matrix products only, forward x 3 where trained, no rematerialisation), as in
MaxText's performance metrics: recomputation does not count as progress.
"""

from __future__ import annotations

import jax

# Dense bf16 FLOP/s of one device by the beginning of its `device_kind`, from the vendors' data sheets; the longer
# name first where one begins with the other ("TPU v5 lite" is v5e, "TPU v5" is v5p).
PEAK_FLOPS = {
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v6": 918e12,
  "TPU7x": 2307e12,
  "NVIDIA A100": 312e12,
  "NVIDIA H100": 989e12,
  "NVIDIA H200": 989e12,
  "NVIDIA B200": 2250e12,
}


def peak_flops(device: jax.Device) -> float | None:
  """Peak bf16 FLOP/s of a device; None where the table does not know it (CPUs)."""
  return next((peak for kind, peak in PEAK_FLOPS.items() if device.device_kind.startswith(kind)), None)


def mfu(model_flops: float, seconds: float, devices) -> float | None:
  """Utilisation in 0..1 of one step over `devices`; None where their peak is unknown."""
  peaks = [peak_flops(device) for device in devices]
  return None if None in peaks else model_flops / (seconds * sum(peaks))
