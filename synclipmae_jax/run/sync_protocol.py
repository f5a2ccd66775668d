"""Runs the synchronisation protocol of a configuration (configs/sync.py): all models on the same held-out clips."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from synclipmae_jax import sharding
from synclipmae_jax.baselines.linear import fit_linear
from synclipmae_jax.evaluation.protocol import Benchmark, inject_lag, measure_model, reference_rows
from synclipmae_jax.evaluation.sync import measure_references
from synclipmae_jax.run import sources
from synclipmae_jax.run.clock import Clock
from synclipmae_jax.run.sync_models import MODELS, OURS, load_model, lse_of
from synclipmae_jax.run.workdir import write_config
from synclipmae_jax.types import EvalClip, InputError

LINEAR = "linear"  # fitted on the training clips of the records


def run(config: ConfigDict, workdir: Path, *, overrides: Mapping[str, Any] | None = None) -> Benchmark:
  """Measures every model of the configuration, writes WORKDIR/sync.json and sync.md, and prints the tables.

  Raises InputError, before anything is written, if a checkpoint does not hold the model named for it.
  """
  clock, started = Clock(), time.perf_counter()
  listed = check_listed(config.models)
  if config.seed < 0:
    raise InputError(f"the seed must be 0 or more, not {config.seed}")
  with clock("loading"):
    models = [(kind, directory, load_model(kind, directory)) for kind, directory in listed if kind != LINEAR]
  found = sources.find_sources(config, workdir, clock)
  write_config(config, workdir, dict(overrides or {}))
  share = dict(host_index=jax.process_index(), host_count=jax.process_count())
  seed = config.seed if config.inject_lags else None
  splits, remark = sources.evaluation_splits(config, found)

  def held_out(image_size: int) -> LaggedClips:
    return LaggedClips(lambda: sources.read_clips(config, splits, image_size=image_size, **share), seed=seed)

  rows, clips = [], held_out(config.data.image_size)
  if (LINEAR, None) in listed:
    with clock("linear baseline"):
      rows += reference_rows(measure_references(clips, fit_linear(sources.reference_clips(config, found))))
  for kind, directory, model in models:
    if jax.process_index() == 0:
      print(f"{model.name}, {directory or 'as embedded'} …", flush=True)
    clips = held_out(getattr(model, "image_size", config.data.image_size))
    with clock(model.name):
      rows.append(measure_model(kind, model, clips, checkpoint=directory, lse=lse_of(kind, model)))

  injected = sum(map(len, sharding.gather(clips.injected)))
  split = ", ".join(sorted({split for _, split in splits}))
  remarks = [remark] * bool(remark)
  if injected:
    remarks.append(f"the lag of {injected} clips is unknown: 0 is assumed, and known lags were injected")
  benchmark = Benchmark(rows=rows, split=split, remarks=remarks)
  if jax.process_index() == 0:
    benchmark.write(workdir)
    print(f"\n{benchmark.markdown()}\n\n{clock.table(time.perf_counter() - started)}")
    print(f"Results: sync.json and sync.md in {workdir}")
  return benchmark


@dataclasses.dataclass
class LaggedClips:
  """This process's share of the clips, read again in every pass. With `seed`, clips of unknown lag get a known lag."""

  read: Callable[[], Iterable[EvalClip]]
  seed: int | None
  injected: set[str] = dataclasses.field(default_factory=set)  # keys of the clips that got a lag

  def __iter__(self) -> Iterator[EvalClip]:
    for clip in self.read():
      if clip.lag is None and self.seed is not None:
        self.injected.add(clip.key)
        clip = inject_lag(clip, seed=self.seed)
      yield clip


def check_listed(listed: Iterable[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
  """The models of a configuration, (kind, directory). Raises InputError."""
  try:
    pairs = [(str(kind), directory or None) for kind, directory in listed]
  except (TypeError, ValueError):
    raise InputError(
      f"models is a tuple of (kind, checkpoint directory), like (('syncnet', 'DIR'),), not {listed!r}"
    ) from None
  if not pairs:
    raise InputError("no model to measure: config.models is empty")
  for kind, directory in pairs:
    if kind != LINEAR and kind not in MODELS:
      raise InputError(f"unknown kind of model {kind!r}: one of {', '.join((LINEAR, *MODELS))}")
    if kind == LINEAR and directory:
      raise InputError(f"the linear baseline is fitted in this run and takes no checkpoint, got {directory}")
    if kind not in (LINEAR, *OURS) and not directory:
      raise InputError(f"no weights of {kind} come with the package: give their directory, as (('{kind}', 'DIR'),)")
  return pairs
