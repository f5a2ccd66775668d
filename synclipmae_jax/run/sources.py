"""The clips of a run: the records of its configuration, the SynthTalk corpus, which is generated first, or both."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from synclipmae_jax.data import pipeline
from synclipmae_jax.data.faces.keypoints import keypoints
from synclipmae_jax.data.prepare import prepare
from synclipmae_jax.data.records import open_records
from synclipmae_jax.data.samplers import WindowPair
from synclipmae_jax.data.synthtalk.corpus import write_corpus
from synclipmae_jax.run.clock import Clock
from synclipmae_jax.tasks.mixture import given_sources
from synclipmae_jax.types import Batch, EvalClip, HeldOut, InputError

REFERENCE_CLIPS = 500  # maximum number of training clips for fitting the linear baseline and the factors
SHOWN = 8  # clips in a picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clips:
  """Talking-face clips (`types.ClipData`)."""

  config: ConfigDict
  sources: Sequence[pipeline.Source]
  preprocessing: Mapping[str, Any]
  val: HeldOut
  test: HeldOut
  shown: Sequence[EvalClip]

  def train_batches(self, step: int, *, host_index: int, host_count: int) -> Iterator[Batch]:
    """See `types.TrainingData`."""
    config = self.config
    return pipeline.train_batches(
      self.sources,
      seed=config.seed,
      batch_size=config.train.batch_clips // host_count,
      sampler=WindowPair(config.data.clip_frames, across=config.data.get("across_clips", 0.0)),
      audio_context_frames=config.data.audio_frames,
      image_size=config.data.image_size,
      targets=keypoints if any(config.loss.get("weights", {}).get(name) for name in ("head", "lips")) else None,
      start_step=step,
      workers=config.data.workers,
      host_index=host_index,
      host_count=host_count,
    )

  def train_clips(self) -> Iterator[EvalClip]:
    """At most `REFERENCE_CLIPS`, of all sources."""
    return reference_clips(self.config, self.sources)


def open_clips(config: ConfigDict, workdir: Path, clock: Clock) -> Clips:
  """The clips of a configuration with `data.sources`, `data.synthtalk` or both. Raises InputError.

  A configuration without `data.val_split` measures only once: its `val` is its `test`.
  """
  sources = find_sources(config, workdir, clock)
  wanted, val_wanted = config.data.eval_split, config.data.get("val_split")
  places, remark = evaluation_splits(config, sources)
  watched = find_splits(sources, val_wanted, wanted) if val_wanted else places
  if lacking := sorted({f"{directory} at its {split}" for directory, split in watched if split != val_wanted}):
    note = f"without a split {val_wanted!r} the run looked at {', '.join(lacking)} clips while it trained"
    remark = "; ".join(text for text in (remark, note) if text) if val_wanted else remark
  own = dict(host_index=jax.process_index(), host_count=jax.process_count())
  test = HeldOut(split=_name(places), clips=list(read_clips(config, places, **own)), remark=remark)
  clips = test.clips if watched == places else list(read_clips(config, watched, **own))
  return Clips(
    config=config,
    sources=sources,
    preprocessing=open_records(sources[0].directory, split="train").preprocessing,
    val=HeldOut(split=_name(watched), clips=clips, remark=remark) if val_wanted else test,
    test=test,
    shown=list(read_clips(config, watched, max_clips=min(SHOWN, config.data.eval_clips))),
  )


def find_sources(config: ConfigDict, workdir: Path, clock: Clock) -> list[pipeline.Source]:
  """The records to train on: `data.sources`, and SynthTalk without sources or with a `data.synthtalk.weight`, first.

  SynthTalk is written and prepared first, unless it exists. Raises InputError, also for records that were prepared
  in different ways.
  """
  given = _weighted(config)
  corpus = config.data.synthtalk
  if not given and not corpus:
    raise InputError(
      "no training data: give --config.data.sources=\"(('DIR', 1.0),)\" with the output of `synclipmae prepare`,"
      " or use the preset demo, which generates its data"
    )
  weight = corpus.get("weight") if corpus else None
  mixed = bool(given) and weight is not None
  if mixed or len(given) > 1:
    _check_alike(given)  # before minutes of synthesis
  if given and not mixed:
    return given
  sources = [pipeline.Source(directory=_synthtalk(config, workdir, clock), weight=float(weight or 1)), *given]
  if mixed:
    _check_alike(sources)
  return sources


def _weighted(config: ConfigDict) -> list[pipeline.Source]:
  """`data.sources`. Those without a weight have one by their size and `data.temperature` (`pipeline.size_weights`)."""
  given = given_sources(config)
  unweighted = [directory for directory, weight in given if weight is None]
  by_size = dict.fromkeys(unweighted, 1.0)  # one alone needs no size
  if len(given) > 1 and unweighted:
    weights = pipeline.size_weights(unweighted, temperature=config.data.get("temperature", 2.0))
    by_size = dict(zip(unweighted, weights, strict=True))
  return [
    pipeline.Source(directory=directory, weight=by_size[directory] if weight is None else weight)
    for directory, weight in given
  ]


def _synthtalk(config: ConfigDict, workdir: Path, clock: Clock) -> Path:
  """The directory of SynthTalk's records, which are written unless they exist."""
  corpus = config.data.synthtalk
  counts = {split: corpus.get(split, 0) for split in ("train", "val", "test")}
  raw, out = workdir / "data" / "synthtalk", workdir / "data" / "prepared"
  bars = sys.stderr.isatty()  # no progress bars in a log file
  if jax.process_index() == 0:
    listed = ", ".join(f"{count} {split}" for split, count in counts.items() if count)
    print(f"SynthTalk: {listed} clips in {workdir / 'data'}", flush=True)
    with clock("synthesis"):
      write_corpus(
        raw, clips=counts, seconds=corpus.seconds, size=corpus.size, seed=corpus.seed, progress=bars,
        heads=corpus.get("heads", "flat"),
      )  # fmt: skip
    with clock("preparing"):
      manifest = prepare(
        raw,
        out,
        corpus="synthtalk",
        faces="precomputed",
        size=config.data.image_size,
        workers=os.cpu_count() or 1,
        progress=bars,
      )
    if refused := manifest.summary()["reasons"]:
      print(f"{len(refused)} files were refused, see {out / 'manifest.jsonl'}")
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("data is prepared")
  return out


def _check_alike(sources: Sequence[pipeline.Source]) -> None:
  """Raises InputError for records whose preprocessing differs in more than the size of the pictures."""
  stamps = [open_records(source.directory, split="train").preprocessing for source in sources]
  for source, stamp in zip(sources, stamps, strict=True):
    names = sorted(name for name in stamp.keys() | stamps[0].keys() if name != "size")
    differing = [f"{name} {stamps[0].get(name)} and {stamp.get(name)}" for name in names
                 if stamps[0].get(name) != stamp.get(name)]  # fmt: skip
    if differing:
      raise InputError(
        f"{sources[0].directory} and {source.directory} were prepared differently ({'; '.join(differing)}): a model"
        " trains on clips of one kind; prepare both with the same version"
      )


Places = list[tuple[str | os.PathLike, str]]  # directory of records, split


def find_splits(sources: Sequence[pipeline.Source], *wanted: str) -> Places:
  """The first of the splits `wanted` that each source has, "train" where it has none of them."""

  def first(directory: str | os.PathLike) -> str:
    for split in wanted:
      with contextlib.suppress(InputError):
        open_records(directory, split=split)
        return split
    return "train"

  return [(source.directory, first(source.directory)) for source in sources]


def evaluation_splits(config: ConfigDict, sources: Sequence[pipeline.Source]) -> tuple[Places, str]:
  """The split `data.eval_split` of every source, and a remark if any has none."""
  wanted = config.data.eval_split
  places = find_splits(sources, wanted)
  lacking = [str(directory) for directory, split in places if split != wanted]
  if lacking:
    return places, f"{', '.join(lacking)} has no split {wanted!r}: these are training clips"
  return places, "these are training clips" if wanted == "train" else ""


def read_clips(
  config: ConfigDict,
  places: Places,
  *,
  max_clips: int | None = None,
  image_size: int | None = None,
  host_index: int = 0,
  host_count: int = 1,
) -> Iterator[EvalClip]:
  """A host's share of the clips to measure on, evenly of all places; `max_clips` and `image_size` replace those of the
  configuration."""
  return pipeline.eval_clips_of(
    places,
    image_size=image_size or config.data.image_size,
    max_clips=config.data.eval_clips if max_clips is None else max_clips,
    host_index=host_index,
    host_count=host_count,
  )


def reference_clips(config: ConfigDict, sources: Sequence[pipeline.Source]) -> Iterator[EvalClip]:
  """Whole training clips, evenly of all sources, the same on every process."""
  places = [(source.directory, "train") for source in sources]
  return read_clips(config, places, max_clips=REFERENCE_CLIPS)


def _name(places: Places) -> str:
  return ", ".join(sorted({split for _, split in places}))
