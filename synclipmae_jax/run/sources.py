"""The clips of a run: the records of its configuration, or the SynthTalk corpus, which is generated first."""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from synclipmae_jax.data import pipeline
from synclipmae_jax.data.prepare import prepare
from synclipmae_jax.data.records import open_records
from synclipmae_jax.data.samplers import WindowPair
from synclipmae_jax.data.synthtalk.corpus import write_corpus
from synclipmae_jax.run.clock import Clock
from synclipmae_jax.types import Batch, EvalClip, InputError

REFERENCE_CLIPS = 500  # maximum number of training clips for fitting the linear baseline and the ceiling
SHOWN = 8  # clips in a picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clips:
  """Talking-face clips (`types.ClipData`)."""

  config: ConfigDict
  sources: Sequence[pipeline.Source]
  preprocessing: Mapping[str, Any]
  eval_clips: Sequence[EvalClip]
  shown: Sequence[EvalClip]
  remark: str

  def train_batches(self, step: int, *, host_index: int, host_count: int) -> Iterator[Batch]:
    """See `types.TrainingData`."""
    config = self.config
    return pipeline.train_batches(
      self.sources,
      seed=config.seed,
      batch_size=config.train.batch_clips // host_count,
      sampler=WindowPair(config.data.clip_frames, across=config.data.pairs == "subject"),
      audio_context_frames=config.data.audio_frames,
      image_size=config.data.image_size,
      start_step=step,
      workers=config.data.workers,
      host_index=host_index,
      host_count=host_count,
    )

  def train_clips(self) -> Iterator[EvalClip]:
    """At most `REFERENCE_CLIPS` of the first source."""
    return reference_clips(self.config, self.sources)


def open_clips(config: ConfigDict, workdir: Path, clock: Clock) -> Clips:
  """The clips of a configuration with `data.sources` or `data.synthtalk`. Raises InputError."""
  sources = find_sources(config, workdir, clock)
  clips, remark = evaluation_clips(config, sources, jax.process_index(), jax.process_count())
  return Clips(
    config=config,
    sources=sources,
    preprocessing=open_records(sources[0].directory, split="train").preprocessing,
    eval_clips=list(clips),
    shown=list(itertools.islice(evaluation_clips(config, sources, 0, 1)[0], SHOWN)),
    remark=remark,
  )


def find_sources(config: ConfigDict, workdir: Path, clock: Clock) -> list[pipeline.Source]:
  """The records to train on. The SynthTalk corpus is written and prepared first, unless it exists."""
  if config.data.sources:
    try:
      return [pipeline.Source(directory=str(path), weight=float(weight)) for path, weight in config.data.sources]
    except (TypeError, ValueError):
      raise InputError(
        f"data.sources is a tuple of (directory, weight), like (('DIR', 1.0),), not {config.data.sources!r}"
      ) from None
  if not config.data.synthtalk:
    raise InputError(
      "no training data: give --config.data.sources=\"(('DIR', 1.0),)\" with the output of `synclipmae prepare`,"
      " or use the preset demo, which generates its data"
    )
  corpus = config.data.synthtalk
  raw, out = workdir / "data" / "synthtalk", workdir / "data" / "prepared"
  bars = sys.stderr.isatty()  # no progress bars in a log file
  if jax.process_index() == 0:
    print(f"SynthTalk: {corpus.train} training clips and {corpus.test} test clips in {workdir / 'data'}", flush=True)
    with clock("synthesis"):
      write_corpus(
        raw,
        clips={"train": corpus.train, "test": corpus.test},
        seconds=corpus.seconds,
        size=corpus.size,
        seed=corpus.seed,
        progress=bars,
      )
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
  return [pipeline.Source(directory=out)]


def evaluation_clips(
  config: ConfigDict,
  sources: Sequence[pipeline.Source],
  host_index: int,
  host_count: int,
  image_size: int | None = None,
) -> tuple[Iterable[EvalClip], str]:
  """A host's share of the evaluation clips of the first source, and a remark if the source has no held-out split.

  `image_size` replaces that of the configuration.
  """
  directory, wanted = sources[0].directory, config.data.eval_split
  split, missing = wanted, ""
  try:
    open_records(directory, split=wanted)
  except InputError:
    split, missing = "train", f"{directory} has no split {wanted!r}: "
  clips = pipeline.eval_clips(
    directory,
    split=split,
    image_size=image_size or config.data.image_size,
    max_clips=config.data.eval_clips,
    host_index=host_index,
    host_count=host_count,
  )
  return clips, f"{missing}these are training clips" if split == "train" else ""


def reference_clips(config: ConfigDict, sources: Sequence[pipeline.Source]) -> Iterator[EvalClip]:
  """Whole training clips of the first source, the same on every process."""
  return pipeline.eval_clips(
    sources[0].directory, split="train", image_size=config.data.image_size, max_clips=REFERENCE_CLIPS
  )
