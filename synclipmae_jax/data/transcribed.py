"""Cached tokens of clips with their transcripts: the records of lip reading, and batches of them.

A cache is that of `data.features`, with `labels.jsonl` beside its records: one line a clip. The stream of batches is a
pure function of (seed, step), as in `data.pipeline`, whose order of seeding, mixing, batching and dividing it has.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synclipmae_jax.data import features, records
from synclipmae_jax.data.variations import Variation, vary
from synclipmae_jax.types import Batch, EvalClip, InputError, Segment, TranscribedClip

TOKENS = "tokens"  # the array of a record that the recogniser reads
_LABELS = ("key", "corpus", "text", "text_source", "words")


def cache_tokens(
  directory: str | os.PathLike,
  clips: Mapping[str, Iterable[tuple[EvalClip, np.ndarray]]],
  *,
  source: str | os.PathLike,
  checkpoint: str,
) -> Path:
  """Writes the tokens [T, D] of every clip of whole splits, with their labels; see `features.write_features`.

  `source` are the records of the clips, in whose order `clips` come. Raises InputError as `write_features` does.
  """
  lines: dict[str, list[str]] = {split: [] for split in clips}

  def examples(split: str) -> Iterator[tuple[str, Mapping[str, np.ndarray]]]:
    for clip, tokens in clips[split]:
      lines[split].append(json.dumps({name: getattr(clip, name) for name in _LABELS}))
      yield clip.key, {TOKENS: np.asarray(tokens, np.float16)}

  path = features.write_features(
    directory, {split: examples(split) for split in clips}, clips=source, checkpoint=checkpoint
  )
  for split in clips:
    if not (path / f"{split}.jsonl").exists():
      found = lines[split] or [_label_line(record) for record in _each(records.open_records(source, split=split))]
      partial = path / f"{split}.jsonl.tmp"
      partial.write_text("".join(f"{line}\n" for line in found))
      partial.replace(path / f"{split}.jsonl")
  return path


def _each(opened: records.Records) -> Iterator[dict[str, Any]]:
  return (opened[index] for index in range(len(opened)))


def _label_line(record: Mapping[str, Any]) -> str:
  return json.dumps({name: record[name] for name in _LABELS})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transcribed:
  """The tokens and labels of one split of a cache."""

  records: records.Records
  labels: Sequence[Mapping[str, Any]]  # key, corpus, text, text_source, words

  @property
  def texts(self) -> list[str]:
    return [label["text"] for label in self.labels]

  def clips(self, *, host_index: int = 0, host_count: int = 1) -> Iterator[TranscribedClip]:
    """A host's share of the clips that have a text."""
    chosen = [index for index, text in enumerate(self.texts) if text.strip()]
    for index in np.array_split(chosen, host_count)[host_index]:
      label = self.labels[int(index)]
      words = tuple(Segment(*word) for word in label["words"])
      tokens = self.records[int(index)][TOKENS]
      yield TranscribedClip(tokens=tokens, **{name: label[name] for name in _LABELS[:-1]}, words=words)


def open_transcribed(directory: str | os.PathLike, *, split: str) -> Transcribed:
  """A split of what `cache_tokens` wrote. Raises InputError if it is missing or does not fit its labels."""
  opened = records.open_records(directory, split=split)
  try:
    labels = [json.loads(line) for line in (opened.directory / f"{split}.jsonl").read_text().splitlines()]
  except (OSError, ValueError) as error:
    raise InputError(f"the labels of the tokens in {directory} cannot be read ({error}): delete the folder") from error
  if [label["key"] for label in labels] != list(opened.keys):
    raise InputError(f"the labels of the tokens in {directory} are those of other clips: delete the folder")
  return Transcribed(records=opened, labels=labels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """A split to train on: the token ids of every clip (None: it is left out), and its weight relative to the others."""

  data: Transcribed
  ids: Sequence[Sequence[int] | None]
  weight: float = 1.0


def token_batches(
  sources: Sequence[Source],
  *,
  lengths: Sequence[int],
  max_tokens: int,
  seed: int,
  batch_size: int,
  variation: Variation | None = None,
  label_frames: Callable[[Sequence[Segment], int], np.ndarray] | None = None,
  start_step: int = 0,
  host_index: int = 0,
  host_count: int = 1,
) -> Iterator[Batch]:
  """Endless batches of this host's `batch_size` clips from `start_step` on, varied if asked for.

  A clip is padded to the shortest of `lengths` (frames, ascending) that holds it; a batch has clips of one of them.
  Clips longer than the last, and those without text or with more than `max_tokens` tokens, are left out.

      tokens float16 [B, T, D], zero beyond `length` int32 [B]
      text int32 [B, max_tokens], 0 beyond `text_length` int32 [B]
      index uint32 [B]
      frame_labels int32 [B, T], with `label_frames`: (words, T) -> a label for each frame

  Raises InputError if no clip is left.
  """
  import grain  # local import: it imports jax, which reading alone does not need

  lengths = list(lengths)
  if not lengths or lengths != sorted({*lengths}) or lengths[0] < 1:
    raise InputError(f"the lengths of clips must be frames in ascending order, not {tuple(lengths)}")
  streams, shares = [], []
  for bucket, length in enumerate(lengths):
    datasets, weights = [], []
    for number, source in enumerate(sources):
      usable, buckets = usable_clips(source, lengths=lengths, max_tokens=max_tokens)
      chosen = np.flatnonzero(usable & (buckets == bucket))
      if len(chosen):
        of_bucket = int(np.random.SeedSequence([seed, number, bucket]).generate_state(1)[0])
        listed = _Chosen(source, chosen)
        dataset = grain.MapDataset.source(listed).seed(of_bucket).shuffle().repeat()
        if variation is not None:
          dataset = dataset.map_with_index(_Vary(listed, variation, of_bucket, length, max_tokens))
        datasets.append(dataset)
        weights.append(source.weight * len(chosen) / usable.sum())
    if datasets:
      padded = grain.MapDataset.mix(datasets, weights).map_with_index(_Pad(length, max_tokens, label_frames))
      batches = padded.batch(batch_size, drop_remainder=True)
      streams.append(batches[host_index::host_count])
      shares.append(sum(weights))
  if not streams:
    raise InputError(f"no clip has a text of at most {max_tokens} tokens and at most {lengths[-1]} frames")
  steps = streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, shares)
  return iter(steps[start_step:].to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))


def usable_clips(source: Source, *, lengths: Sequence[int], max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
  """(bool [clips]: it can be trained on, int [clips]: its bucket)."""
  buckets = np.searchsorted(lengths, source.data.records.n_frames)
  count = np.array([len(ids or ()) for ids in source.ids])
  return (0 < count) & (count <= max_tokens) & (buckets < len(lengths)), buckets


@dataclasses.dataclass(frozen=True)
class _Chosen:
  """A selection of clips as a Grain source."""

  source: Source
  indices: np.ndarray

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, position: int) -> dict[str, Any]:
    index = int(self.indices[position])
    return {
      "tokens": self.source.data.records[index][TOKENS],
      "text": np.array(self.source.ids[index], np.int32),
      "words": self.words(index),
    }

  def words(self, index: int) -> list[Segment]:
    return [Segment(*word) for word in self.source.data.labels[index]["words"]]


@dataclasses.dataclass(frozen=True)
class _Vary:
  """(position in the stream of one source, clip) -> the clip, varied."""

  clips: _Chosen
  variation: Variation
  seed: int
  frames: int
  tokens: int

  def __call__(self, position: int, clip: dict[str, Any]) -> dict[str, Any]:
    rng = np.random.Generator(np.random.Philox(key=np.array([self.seed, position], np.uint64)))
    partner = None
    if self.variation.splice:
      other = self.clips[int(rng.integers(len(self.clips)))]
      partner = other["tokens"].astype(np.float32), other["words"]
    found = vary(clip["tokens"], clip["words"], partner, self.variation, frames=self.frames, rng=rng)
    if found is None:
      return clip
    tokens, words, ids = found
    text = clip["text"] if ids is None else np.array(ids, np.int32)
    if len(text) > self.tokens:
      return clip
    return {"tokens": tokens.astype(np.float16), "text": text, "words": words}


@dataclasses.dataclass(frozen=True)
class _Pad:
  """(position in the stream, clip) -> one row of a batch."""

  frames: int
  tokens: int
  label_frames: Callable[[Sequence[Segment], int], np.ndarray] | None

  def __call__(self, position: int, clip: dict[str, Any]) -> dict[str, np.ndarray]:
    tokens, text = clip["tokens"], clip["text"]
    labels = {} if self.label_frames is None else {"frame_labels": self.label_frames(clip["words"], self.frames)}
    return {
      **labels,
      "tokens": np.pad(tokens, ((0, self.frames - len(tokens)), (0, 0))),
      "length": np.array(len(tokens), np.int32),
      "text": np.pad(text, (0, self.tokens - len(text))),
      "text_length": np.array(len(text), np.int32),
      "index": np.array(position % 2**32, np.uint32),
    }
