"""Compiles the train step of a configuration for absent devices and estimates its cost on them."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from synclipmae_jax import sharding
from synclipmae_jax.models.layers import REMAT
from synclipmae_jax.run import hlo
from synclipmae_jax.run.breakdown import Row, breakdown, table
from synclipmae_jax.run.jobs import training_job_of
from synclipmae_jax.run.training import Training, build_training
from synclipmae_jax.train.accelerators import TPUS, peak_flops
from synclipmae_jax.train.state import abstract_state
from synclipmae_jax.train.step import batch_unit as step_unit
from synclipmae_jax.train.step import make_train_step
from synclipmae_jax.types import Batch, InputError

GIB = 2**30
EXAMPLES = "v5p:4x4x8 (128 chips), v6e:16x16, v5e:16x16 (256) or v4:4x4x8 (128)"
DAY = 86_400


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """Cost of a compiled step on a topology.

  FLOPs and seconds are of one step; FLOPs are over all chips and count matrix products only. Values that are unknown
  for a step that does not fit are None.
  """

  topology: str
  chips: int
  peak_hbm_gib: float
  hbm_gib: float  # usable by a program
  fits: bool
  collectives: Mapping[str, Mapping[str, float]]  # kind -> count, bytes of the arrays on one chip
  model_flops: float
  compiled_flops: float | None
  roofline: Mapping[str, float | None]  # compute_s, hbm_s, interconnect_s: lower bounds of the step time
  mfu_bound: float | None
  days: float | None  # time of all steps of the configuration at this bound
  parts: Sequence[Row] | None = None  # where the roofline's FLOPs and bytes of one chip arise
  slices: int = 1
  dcn_bytes: float = 0.0  # what one chip sends to other slices

  @property
  def step_s(self) -> float:
    """Lower bound of the time of a step."""
    return max(self.roofline.values())


class DoesNotFit(Exception):
  """The compiler ran out of HBM; `bytes` is the amount needed."""

  def __init__(self, needed: float):
    super().__init__(f"needs {needed / GIB:.1f} GiB")
    self.bytes = needed


def tpu_devices(topology: str, slices: int = 1) -> list[jax.Device]:
  """Devices of absent slices of a topology. Raises InputError for an unknown one and if libtpu is not installed."""
  name, _, shape = topology.partition(":")
  tpu = TPUS.get(name)
  sizes = [int(size) for size in shape.split("x")] if re.fullmatch(r"\d+(x\d+)*", shape) else []
  if tpu is None or len(sizes) != tpu.torus or not 0 < math.prod(sizes) <= tpu.pod:
    known = tpu and f"{name} is a torus of {tpu.torus} axes and at most {tpu.pod} chips"
    raise InputError(f"unknown topology {topology!r}: {known or 'the chips are ' + ', '.join(TPUS)}; try {EXAMPLES}")
  if importlib.util.find_spec("libtpu") is None:
    raise InputError(f'the TPU compiler is not installed: run pip install "jax[tpu]=={jax.__version__}"')
  # Without these the compiler queries the metadata server of the VM and takes an exclusive lock.
  os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}
  os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": f"{name}-8"}
  options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
  if name == "v4":
    options["chip_config_name"] = "megacore"  # one device per chip, as JAX runs it
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
    raise InputError(f"unknown topology {topology!r} ({reason}); try {EXAMPLES}") from None


def lower_steps(training: Training) -> list[tuple[Batch, jax.stages.Lowered]]:
  """The lowered step of the job with the shapes of its batch, for every kind of batch."""
  task, optimizer, mesh = training.task, training.optimizer, training.mesh
  state, frozen = abstract_state(task, optimizer, mesh)
  key = jax.eval_shape(lambda: jax.random.key(0))
  step = make_train_step(task, optimizer, mesh=mesh, accumulation=training.accumulation)
  return [(batch, step.lower(state, frozen, batch, key)) for batch in task.abstract_batches(training.batch_size)]


def compile_step(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
  """Compiles a step. Raises DoesNotFit if it does not fit into the memory of a device."""
  try:
    return lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    amount, unit = re.search(r"([\d.]+)([KMGT])\b", str(error)).groups()
    raise DoesNotFit(float(amount) * 1024 ** (1 + "KMGT".index(unit))) from None


def report_steps(config: ConfigDict, topology: str, devices: Sequence[jax.Device]) -> list[Report]:
  """Compiles the step and counts its cost for every kind of batch, in the task's order. Raises InputError."""
  training = build_training(training_job_of(config), config, devices)
  return [
    _report_step(lowered, topology, devices, model_flops=training.task.model_flops(batch), steps=config.train.steps)
    for batch, lowered in lower_steps(training)
  ]


def worst(reports: Sequence[Report]) -> Report:
  """The report with the highest memory use, which decides whether the job fits."""
  return max(reports, key=lambda report: report.peak_hbm_gib)


def _report_step(
  lowered: jax.stages.Lowered, topology: str, devices: Sequence[jax.Device], *, model_flops: float, steps: int
) -> Report:
  tpu, peak = TPUS[topology.partition(":")[0]], peak_flops(devices[0])
  common: dict[str, Any] = dict(
    topology=topology,
    chips=len({(sharding.slice_of(device), *device.coords) for device in devices}),
    slices=len({sharding.slice_of(device) for device in devices}),
    hbm_gib=tpu.hbm_gib,
    model_flops=model_flops,
  )
  try:
    compiled = compile_step(lowered)
  except DoesNotFit as error:
    unknown: dict[str, Any] = dict(collectives={}, compiled_flops=None, mfu_bound=None, days=None)
    roofline = dict.fromkeys(("compute_s", "hbm_s", "interconnect_s"))
    return Report(**common, **unknown, roofline=roofline, peak_hbm_gib=error.bytes / GIB, fits=False)
  cost = hlo.read_cost(compiled.as_text())
  roofline = {
    "compute_s": cost.flops / peak,
    "hbm_s": cost.hbm_bytes / tpu.hbm_bandwidth,
    "interconnect_s": sum(kind.sent for kind in cost.collectives.values()) / tpu.ring_bandwidth,
  }
  if cost.dcn_bytes and tpu.dcn_bandwidth:
    roofline["dcn_s"] = cost.dcn_bytes / tpu.dcn_bandwidth
  step_s = max(roofline.values())
  return Report(
    **common,
    peak_hbm_gib=compiled.memory_analysis().peak_memory_in_bytes / GIB,
    fits=True,
    collectives={kind: {"count": c.count, "bytes": c.bytes} for kind, c in cost.collectives.items()},
    compiled_flops=cost.flops * len(devices),
    roofline=roofline,
    mfu_bound=model_flops / (step_s * peak * len(devices)),
    days=steps * step_s / DAY,
    parts=breakdown(cost.by_name),
    dcn_bytes=cost.dcn_bytes,
  )


def changed(config: ConfigDict, *, clips: int | None = None, remat: str | None = None) -> ConfigDict:
  """A copy of the configuration with another global batch, or another policy of rematerialisation."""
  config = copy.deepcopy(config)
  if clips is not None:
    config.train.batch_clips = clips
  if remat is not None:
    config.model.remat = remat
  return config


def batch_unit(config: ConfigDict, devices: Sequence[jax.Device]) -> int:
  """The smallest global batch: every valid one is a multiple of it."""
  task = training_job_of(config).build_task(config)
  mesh = sharding.make_mesh(config.train.mesh, devices)
  ways = math.prod(sharding.batch_axes(mesh).values())
  hosts = len({device.process_index for device in devices})
  return step_unit(task, ways=ways, accumulation=config.train.accumulation, processes=hosts)


def search_batch(try_batch: Callable[[int], Report], *, start: int, unit: int) -> tuple[int, Report]:
  """(clips, its report) of the largest multiple of `unit` that fits; (unit, its report) if `unit` does not fit.

  Memory is nearly linear in the batch: the next guess is where the line through the two largest batches meets the
  capacity. Near the capacity the compiler trades time for memory. Once a batch fits and a larger one does not, two more
  guesses from the line are followed by bisection.
  """
  reports: dict[int, Report] = {}
  guess, by_line = max(start // unit, 1), 2
  while True:
    reports[guess] = try_batch(guess * unit)
    best = max((n for n, report in reports.items() if report.fits), default=0)
    too_large = min((n for n, report in reports.items() if not report.fits), default=math.inf)
    if too_large - best <= 1:
      return max(best, 1) * unit, reports[max(best, 1)]
    points = [(0, 0.0), *((n, report.peak_hbm_gib) for n, report in sorted(reports.items()))]
    (x0, y0), (x1, y1) = points[-2:] if len(points) < 3 else points[1:][-2:]
    aim = x1 + math.floor((reports[guess].hbm_gib - y1) * (x1 - x0) / max(y1 - y0, 1e-3))
    if too_large == math.inf:
      far = reports[best].peak_hbm_gib < 0.8 * reports[best].hbm_gib
      guess = min(max(aim, best + 1), math.ceil((8 if far else 1.25) * best))
    elif by_line:
      guess, by_line = int(min(max(aim, best + 1), too_large - 1)), by_line - 1
    else:
      guess = int(best + too_large) // 2


def advice(config: ConfigDict, report: Report) -> list[str]:
  """Options that reduce the memory of a step, cheapest first."""
  accumulation, share = config.train.accumulation, report.hbm_gib / report.peak_hbm_gib
  group = training_job_of(config).build_task(config).group
  more = next(
    (n for n in range(accumulation + 1, 64 * accumulation) if n * share >= accumulation and not
     config.train.batch_clips % (n * math.lcm(report.chips, group))), None
  )  # fmt: skip
  lines = []
  if config.model.get("remat", "full") != "full":
    lines.append(f"--config.model.remat=full   more recomputation (now {config.model.remat})")
  if more:
    lines.append(f"--config.train.accumulation={more}   the same batch in {more} sequential parts")
  lines.append(f"--search=batch   find the largest batch that fits (now {config.train.batch_clips} clips)")
  return lines


def summary(config: ConfigDict, report: Report) -> str:
  """The report as text."""
  clips = config.train.batch_clips
  slices = f"{report.slices} slices of " if report.slices > 1 else ""
  lines = [
    f"{slices}{report.topology}: {report.chips} chips, mesh {dict(config.train.mesh)}, {clips} clips a step"
    f" ({clips / report.chips:g} a chip)",
    f"memory        {report.peak_hbm_gib:.1f} GiB of {report.hbm_gib:.1f} a chip",
  ]
  if not report.fits:
    return "\n".join([*lines, "It does not fit. Options:", *(f"  {line}" for line in advice(config, report))])
  collectives = ", ".join(f"{c['count']} {kind} ({c['bytes'] / 1e9:.2f} GB)" for kind, c in report.collectives.items())
  roofline = ", ".join(f"{name.removesuffix('_s')} {seconds:.3f} s" for name, seconds in report.roofline.items())
  ratio = report.compiled_flops / report.model_flops
  lines += [
    f"matrix FLOPs  {report.compiled_flops:.3g} compiled, {report.model_flops:.3g} the model's ({ratio:.2f} x)",
    f"collectives   {collectives or 'none'}",
    *([f"between slices  {report.dcn_bytes / 1e9:.3f} GB sent by a chip"] if report.slices > 1 else []),
    f"roofline      {roofline}",
    f"A step takes at least {report.step_s:.3f} s: MFU at most {report.mfu_bound:.0%},"
    f" {config.train.steps} steps in at least {report.days:.1f} days.",
  ]
  return "\n".join(lines)


def search_remat(try_policy: Callable[[str], Report]) -> tuple[str, Report]:
  """(policy, its report) of the shortest step that fits; of the one that needs least memory if none does."""
  reports = {policy: try_policy(policy) for policy in REMAT}
  fitting = {policy: report for policy, report in reports.items() if report.fits}
  if fitting:
    return min(fitting.items(), key=lambda pair: pair[1].step_s)
  return min(reports.items(), key=lambda pair: pair[1].peak_hbm_gib)


def run(
  config: ConfigDict, *, topology: str, as_json: bool, search: str | None, parts: bool = False, slices: int = 1
) -> int:
  """Runs the command, with `parts` said too; returns its exit status. Raises InputError."""
  devices = tpu_devices(topology, slices)

  def attempt(config: ConfigDict) -> Report:
    started = time.perf_counter()
    report = worst(report_steps(config, topology, devices))
    step = f"fits, a step takes at least {report.step_s:.3f} s" if report.fits else "does not fit"
    print(
      f"{config.train.batch_clips} clips, remat={config.model.remat}: {report.peak_hbm_gib:.1f} GiB of"
      f" {report.hbm_gib:.1f}, {step} (compiled in {time.perf_counter() - started:.0f} s)",
      file=sys.stderr,
      flush=True,
    )
    return report

  extra: dict[str, Any] = {}
  match search:
    case "batch":
      clips, report = search_batch(
        lambda clips: attempt(changed(config, clips=clips)),
        start=config.train.batch_clips,
        unit=batch_unit(config, devices),
      )
      config, extra = changed(config, clips=clips), {"batch_clips": clips}
    case "remat":
      policy, report = search_remat(lambda policy: attempt(changed(config, remat=policy)))
      config, extra = changed(config, remat=policy), {"remat": policy}
    case _:
      report = attempt(config)
  if as_json:
    said = dataclasses.asdict(report) | extra
    left_out = {*(() if parts else ("parts",)), *(() if slices > 1 else ("slices", "dcn_bytes"))}
    print(json.dumps({name: value for name, value in said.items() if name not in left_out}))
  else:
    print(summary(config, report))
    if search == "remat":
      print(f"--config.model.remat={policy}")
    if parts and report.parts:
      print(f"\n{table(report.parts)}")
  return 0 if report.fits else 1
