"""The synchronisation protocol from a configuration (configs/sync.py): models from checkpoints, the same held-out clips
for all, one table at the end."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from synclipmae_jax import job, sharding
from synclipmae_jax.baselines.protocol import SyncModel
from synclipmae_jax.baselines.stable_syncnet import StableSyncNetJudge
from synclipmae_jax.baselines.syncnet import SyncNetTokens
from synclipmae_jax.baselines.vocalist import VocalistJudge
from synclipmae_jax.baselines.windows import picture_rows
from synclipmae_jax.checkpoints import checkpoint
from synclipmae_jax.convert import donor as donors
from synclipmae_jax.data import pipeline
from synclipmae_jax.evaluation.protocol import (
  Benchmark,
  inject_lag,
  measure_model,
  reference_rows,
  stable_syncnet_lse,
  syncnet_lse,
)
from synclipmae_jax.evaluation.sync import measure_references
from synclipmae_jax.metrics.sync import unit
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.pretrained import SyncLipMAE
from synclipmae_jax.run.clock import Clock
from synclipmae_jax.types import EvalClip, InputError, Params


def run(config: ConfigDict, workdir: Path, *, overrides: Mapping[str, Any] | None = None) -> Benchmark:
  """Measures every model of the configuration, writes WORKDIR/sync.json and sync.md, and prints the tables.

  Raises InputError, before anything is made, where a checkpoint does not hold the model that it should.
  """
  clock, started = Clock(), time.perf_counter()
  listed = check_listed(config.models)
  if config.seed < 0:
    raise InputError(f"the seed must be 0 or more, not {config.seed}")
  with clock("loading"):
    models = [(kind, directory, MODELS[kind](directory)) for kind, directory in listed if kind != LINEAR]
  sources = job.find_sources(config, workdir, clock)
  job.write_config(config, workdir, dict(overrides or {}))
  share = (jax.process_index(), jax.process_count())
  seed = config.seed if config.inject_lags else None
  _, remark = job.evaluation_clips(config, sources, *share)

  def held_out(image_size: int) -> HeldOut:
    return HeldOut(lambda: job.evaluation_clips(config, sources, *share, image_size=image_size)[0], seed=seed)

  rows, clips = [], held_out(config.data.image_size)
  if (LINEAR, None) in listed:
    with clock("linear baseline"):
      train_clips = pipeline.eval_clips(
        sources[0].directory, split="train", image_size=config.data.image_size, max_clips=job.REFERENCE_CLIPS
      )
      rows += reference_rows(measure_references(clips, train_clips))
  for kind, directory, model in models:
    if jax.process_index() == 0:
      print(f"{model.name}, {directory or 'as embedded'} …", flush=True)
    clips = held_out(getattr(model, "image_size", config.data.image_size))
    with clock(model.name):
      lse = LSE.get((kind, model.similarity))
      rows.append(measure_model(kind, model, clips, checkpoint=directory, lse=lse))

  injected = sum(map(len, sharding.gather(clips.injected)))
  remarks = [remark] * bool(remark)
  if injected:
    remarks.append(f"the lag of {injected} clips is unknown: 0 is assumed, and known lags were injected")
  benchmark = Benchmark(rows=rows, remarks=remarks)
  if jax.process_index() == 0:
    benchmark.write(workdir)
    print(f"\n{benchmark.markdown()}\n\n{clock.table(time.perf_counter() - started)}")
    print(f"Results: sync.json and sync.md in {workdir}")
  return benchmark


@dataclasses.dataclass
class HeldOut:
  """This process's share of the clips, read anew at every pass; with `seed` those of unknown lag get a known one."""

  read: Callable[[], Iterable[EvalClip]]
  seed: int | None
  injected: set[str] = dataclasses.field(default_factory=set)  # keys of those that were met

  def __iter__(self) -> Iterator[EvalClip]:
    for clip in self.read():
      if clip.lag is None and self.seed is not None:
        self.injected.add(clip.key)
        clip = inject_lag(clip, seed=self.seed)
      yield clip


class EmbeddedTokens:
  """SyncLipMAE as the protocol takes it (`baselines.protocol.SyncModel`): a frame is seen by itself.

  With more `context_frames` the tokens of that many neighbours stand side by side, so that two moments are compared by
  their mean similarity: for tables beside models of which one token sees several frames.
  """

  name = "SyncLipMAE"
  similarity = "cosine"

  def __init__(self, model: SyncLipMAE, *, context_frames: int = 1):
    self.model, self.image_size, self.context_frames = model, model.image_size, context_frames

  def embed(self, clip: EvalClip) -> tuple[np.ndarray, np.ndarray]:
    """(audio, vocal), each [T, context_frames * D], of a clip of frames of `image_size` pixels."""
    tokens = self.model.embed(clip.frames, clip.waveform, face_box=clip.face_box, mouth_box=clip.mouth_box)
    neighbours = picture_rows(len(clip.frames), self.context_frames)
    side_by_side = lambda x: unit(x, np.float32)[neighbours].reshape(len(x), -1)
    return side_by_side(tokens.audio), side_by_side(tokens.vocal)


def check_listed(listed: Iterable[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
  """The models of a configuration, (kind, directory). Raises InputError."""
  try:
    pairs = [(str(kind), directory or None) for kind, directory in listed]
  except (TypeError, ValueError):
    raise InputError(
      f"models is a tuple of (kind, checkpoint directory), like (('syncnet', 'DIR'),), not {listed!r}"
    ) from None
  if not pairs:
    raise InputError("there is nothing to measure: config.models is empty")
  for kind, directory in pairs:
    if kind != LINEAR and kind not in MODELS:
      raise InputError(f"unknown kind of model {kind!r}: one of {', '.join((LINEAR, *MODELS))}")
    if kind == LINEAR and directory:
      raise InputError(f"the linear baseline is fitted here, and has no checkpoint {directory}")
    if kind not in (LINEAR, *OURS) and not directory:
      raise InputError(f"{kind} has no weights of its own here: name their directory, as (('{kind}', 'DIR'),)")
  return pairs


def _syncnet(directory: str) -> SyncNetTokens:
  """Converted weights, which compare by distance, or the workdir of a run of configs/syncnet.py."""
  if (Path(directory) / "calibrated").is_dir():
    step = checkpoint.resolve_step(Path(directory) / "calibrated")
    meta = checkpoint.load_meta(step)
    return SyncNetTokens(checkpoint.load_item(step, "syncnet"), similarity=meta["similarity"], **meta["sizes"])
  _, sizes, params = load_baseline("syncnet", directory)
  return SyncNetTokens(params, **sizes)


def _stable_syncnet(directory: str) -> StableSyncNetJudge:
  module, _, params = load_baseline("stable_syncnet", directory)
  return StableSyncNetJudge(module, params)


def _vocalist(directory: str) -> VocalistJudge:
  module, _, params = load_baseline("vocalist", directory)
  return VocalistJudge(module, params)


LINEAR = "linear"  # fitted on the training clips of the records
OURS: dict[str, Callable[[str | None], SyncModel]] = {
  "synclipmae": lambda directory: EmbeddedTokens(SyncLipMAE.load(directory)),
  "synclipmae-5": lambda directory: EmbeddedTokens(SyncLipMAE.load(directory), context_frames=5),
}
MODELS: dict[str, Callable[[str | None], SyncModel]] = {
  **OURS,
  "syncnet": _syncnet,
  "stable_syncnet": _stable_syncnet,
  "vocalist": _vocalist,
}


# LSE is of the released models: a SyncNet that was trained here compares by cosine.
LSE = {("syncnet", "l2"): syncnet_lse, ("stable_syncnet", "cosine"): stable_syncnet_lse}


def load_baseline(kind: str, directory: str) -> tuple[Functional, dict[str, Any], Params]:
  """(module, the sizes it was built with, parameters) of a converted baseline. Raises InputError."""
  donor, saved = donors.load(kind), checkpoint.find_item(directory, kind)
  shapes = {path: leaf.shape for path, leaf in sharding.tree_paths({kind: saved.leaves})}
  try:
    sizes = donor.sizes(shapes)
    module = donor.modules(**sizes)[kind]
  except (ValueError, TypeError, LookupError, ArithmeticError) as error:
    raise InputError(f"the item {kind!r} of {directory} makes no {donor.title} ({error})") from error
  saved.refuse_difference(saved.leaves, module.abstract)
  return module, sizes, jax.device_put(checkpoint.load_item(directory, kind))
