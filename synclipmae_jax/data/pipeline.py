"""Records -> batches of host numpy. The stream of training batches is a pure function of (seed, step).

Every source is shuffled and repeated with its own seed, and the sources are mixed. The record at position p of the
mixture is cut and decoded with random numbers that depend on (seed, p) only. Records are batched after that, and
batches are divided between hosts last: batch s * hosts + h is the share of host h at step s. The shares in order of the
hosts are therefore the batch of a single host. A resumed run starts at `start_step`. The numbers of workers and of
hosts do not change the samples.

A sampler with several lengths has one such stream per length. The streams are mixed by step, so that all hosts have the
same length at a step.

This module does not import jax, so that data workers start quickly.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from synclipmae_jax.data import labels, records
from synclipmae_jax.data.media import audio, video
from synclipmae_jax.data.samplers import Sampler, WindowPair
from synclipmae_jax.types import (
  AUDIO_MARGIN,
  FPS,
  SAMPLES_PER_FRAME,
  Batch,
  EvalClip,
  InputError,
  audio_context_samples,
)

PARTNER = "partner"
_AHEAD = 2  # batches decoded ahead, by each worker

# (record, first frame of the window, number of frames) -> additional arrays of the batch, such as classes or token ids.
# It runs in the workers, so it must be picklable.
Targets = Callable[[Mapping[str, Any], int, int], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """A `directory` written by `prepare`, and its sampling weight relative to the other sources."""

  directory: str | os.PathLike
  weight: float = 1.0


def size_weights(directories: Sequence[str | os.PathLike], *, temperature: float, split: str = "train") -> list[float]:
  """Weights of sources by size: h ** (1 / temperature) for h hours of footage in `split`, with a mean of 1.

  At 1 every hour of footage is as likely as any other; the higher the temperature, the more alike the sources. Their
  mean is 1, so that a weight given beside them is relative to an average source. Raises InputError.
  """
  if not temperature > 0:
    raise InputError(f"the temperature of a mixture must be above 0, not {temperature}")
  hours = [records.open_records(directory, split=split).n_frames.sum() / FPS / 3600 for directory in directories]
  weights = np.power(hours, 1 / temperature)
  return (weights / weights.mean()).tolist()


def train_batches(
  sources: Sequence[Source],
  *,
  split: str = "train",
  seed: int,
  batch_size: int,
  clip_frames: int | None = None,
  sampler: Sampler | None = None,
  audio_context_frames: int | None = None,
  image_size: int,
  targets: Targets | None = None,
  start_step: int = 0,
  workers: int = 0,
  host_index: int = 0,
  host_count: int = 1,
) -> Iterator[Batch]:
  """Endless batches of this host's `batch_size` clips from `start_step` on; see `types.ClipBatch` for the arrays.

  Args:
    batch_size: number of clips, a multiple of the windows per record of the sampler. The windows of a record are
      adjacent in the batch.
    clip_frames: T of the default sampler, `WindowPair(clip_frames)`: clips 2r and 2r+1 are disjoint windows of one
      record.
    sampler: another sampler. Records that it cannot use are left out when the stream is built. If it pads
      (`WholeClip`), batches also have `length`, int32 [B], the number of valid frames. After these, frames, sound and
      face boxes are zero and mouth boxes -1.
    audio_context_frames: Ta; by default the length of the window.
    targets: see `Targets`; its arrays, [B, ...], are added to the batch by name.
    workers: number of processes that decode; 0 uses one thread of this process.

  Raises:
    InputError: an argument is invalid, or a source has no record for the sampler.
  """
  if (clip_frames is None) == (sampler is None):
    raise InputError("give either clip_frames or a sampler")
  sampler = sampler or WindowPair(clip_frames)
  if batch_size < 1 or batch_size % sampler.windows:
    raise InputError(
      f"a host's batch must be a multiple of {sampler.windows} clips (the windows of a record), not {batch_size}"
    )
  if seed < 0:
    raise InputError(f"the seed must not be negative: {seed}")
  if sampler.lengths[0] < 1 or audio_context_frames is not None and sampler.lengths[-1] > audio_context_frames:
    raise InputError(
      f"the audio context ({audio_context_frames} frames) must hold the clip ({sampler.lengths[-1]} frames)"
    )
  if not sources or min(source.weight for source in sources) <= 0:
    raise InputError("at least one source is needed, and every weight must be positive")

  import grain  # local import: it imports jax, which reading alone does not need

  opened = [_Sorted.open(number, source, split=split, sampler=sampler) for number, source in enumerate(sources)]
  for one in opened:
    check_size(one.records, image_size)
  streams, shares = [], []
  for bucket, length in enumerate(sampler.lengths):
    found = [one for one in opened if len(one.chosen(bucket))]
    if not found:
      continue
    datasets = []
    for one in found:
      chosen = _Chosen(one, one.chosen(bucket))
      datasets.append(grain.MapDataset.source(chosen).seed(_seed(seed, one.number, bucket)).shuffle().repeat())
    weights = [sources[one.number].weight * one.share(bucket) for one in found]
    cut = _CutWindows(
      seed=seed, sampler=sampler, frames=length, audio_frames=audio_context_frames or length, size=image_size,
      targets=targets,
    )  # fmt: skip
    mixed = grain.MapDataset.mix(datasets, weights).map_with_index(cut)
    batches = mixed.batch(batch_size // sampler.windows, drop_remainder=True, batch_fn=_join)
    streams.append(batches[host_index::host_count])
    shares.append(sum(weights))
  steps = streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, shares)
  stream = steps[start_step:].to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD))
  if workers:
    _parse_flags()
    stream = stream.mp_prefetch(
      grain.multiprocessing.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_AHEAD)
    )
  return iter(stream)


def eval_clips(
  directory: str | os.PathLike,
  *,
  split: str,
  image_size: int,
  max_clips: int | None = None,
  host_index: int = 0,
  host_count: int = 1,
) -> Iterator[EvalClip]:
  """The whole clips of a split, in the order of the records. `max_clips` takes that many, evenly spread.

  A host reads its own share only. Shares differ by at most one clip, and in order of the hosts they are the clips of a
  single host.
  """
  return eval_clips_of(
    [(directory, split)], image_size=image_size, max_clips=max_clips, host_index=host_index, host_count=host_count
  )


def eval_clips_of(
  places: Sequence[tuple[str | os.PathLike, str]],
  *,
  image_size: int,
  max_clips: int | None = None,
  host_index: int = 0,
  host_count: int = 1,
) -> Iterator[EvalClip]:
  """`eval_clips` of several places (directory, split), of which each gives an equal part of `max_clips`.

  A place with fewer clips gives what it has. With several places the keys of the clips start with the number of theirs.
  """
  opened = [records.open_records(directory, split=split) for directory, split in places]
  chosen = []
  for number, source in enumerate(opened):
    check_size(source, image_size)
    wanted = len(source) if max_clips is None else max_clips // len(opened) + (number < max_clips % len(opened))
    rows = np.linspace(0, len(source) - 1, wanted).round().astype(int) if wanted < len(source) else range(len(source))
    chosen += [(number, int(row)) for row in rows]

  def read(number: int, row: int) -> EvalClip:
    clip = eval_clip(opened[number][row], image_size)
    return clip if len(opened) == 1 else dataclasses.replace(clip, key=f"{number}/{clip.key}")

  share = np.array_split(np.arange(len(chosen)), host_count)[host_index]
  return (read(*chosen[place]) for place in share)


def check_size(source: records.Records, image_size: int) -> None:
  """Raises InputError if the stored clips are smaller than `image_size`."""
  stored = source.preprocessing["size"]
  if image_size > stored:
    raise InputError(
      f"{source.directory} contains clips of {stored} pixels, not {image_size}: prepare them with --size {image_size}"
    )


def eval_clip(record: dict[str, Any], image_size: int) -> EvalClip:
  """The whole clip of a record (`data.records`), with resized frames."""
  frames = record["n_frames"]
  return EvalClip(
    **{name: record[name] for name in ("key", "corpus", "identity", "face_box", "mouth_box")},
    **{name: record[name] for name in labels.NAMES if name in record},  # older records have no appearance
    frames=video.read_windows(record["mp4"], [0], count=frames, size=image_size)[0],
    waveform=_stretch(audio.decode_flac(record["flac"]), 0, frames * SAMPLES_PER_FRAME),
    lag=int(record["lag"]) if record["has_lag"] else None,
    truth=record["truth"] if record["truth_names"] else None,
    truth_names=tuple(record["truth_names"]),
  )


@dataclasses.dataclass(frozen=True)
class _Sorted:
  """The records of a source, sorted into the buckets of a sampler."""

  number: int  # of the source
  records: records.Records
  buckets: np.ndarray  # int [records], -1: left out
  partners: np.ndarray | None  # int [records]: another usable record of the same subject, or the record itself

  @classmethod
  def open(cls, number: int, source: Source, *, split: str, sampler: Sampler) -> _Sorted:
    opened = records.open_records(source.directory, split=split)
    buckets = sampler.bucket(opened.n_frames)
    if (buckets < 0).all():
      longest = opened.n_frames.max(initial=0)
      found = f"the shortest has {opened.n_frames.min(initial=longest)}, the longest has {longest}"
      raise InputError(f"no {split} clip in {source.directory} has {sampler.needs}: {found}")
    return cls(number, opened, buckets, _partners(opened, buckets) if sampler.across else None)

  def chosen(self, bucket: int) -> np.ndarray:
    return np.flatnonzero(self.buckets == bucket)

  def share(self, bucket: int) -> float:
    return len(self.chosen(bucket)) / int((self.buckets >= 0).sum())


def _partners(source: records.Records, buckets: np.ndarray) -> np.ndarray:
  """The next record of the same subject and bucket, the first after the last; the record itself if it is the only one.

  Records that do not list their subjects stay alone.
  """
  partners = np.arange(len(source))
  groups: dict[tuple[str, int], list[int]] = {}
  for index, subject in enumerate(source.identities or ()):
    if subject:
      groups.setdefault((subject, int(buckets[index])), []).append(index)
  for group in groups.values():
    partners[group] = np.roll(group, -1)
  return partners


@dataclasses.dataclass(frozen=True)
class _Chosen:
  """A selection of records as a Grain source. A record with a partner holds it under `PARTNER`."""

  source: _Sorted
  indices: np.ndarray

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, position: int) -> dict[str, Any]:
    index = self.indices[position]
    record = self.source.records[index] | {"source": self.source.number}
    if self.source.partners is not None and (partner := self.source.partners[index]) != index:
      record[PARTNER] = self.source.records[partner] | {"source": self.source.number}
    return record


@dataclasses.dataclass(frozen=True, kw_only=True)
class _CutWindows:
  """(position in the mixture, record) -> arrays whose first axis is the windows of the record."""

  seed: int
  sampler: Sampler
  frames: int
  audio_frames: int
  size: int
  targets: Targets | None = None

  def __call__(self, position: int, record: dict[str, Any]) -> dict[str, np.ndarray]:
    rng = np.random.Generator(np.random.Philox(key=np.array([self.seed, position], np.uint64)))
    if PARTNER in record and rng.random() < self.sampler.across:
      both = (record, record[PARTNER])
      out = _join([self._cut(one, [int(rng.integers(one["n_frames"] - self.frames + 1))]) for one in both])
    else:
      out = self._cut(record, self.sampler.starts(int(record["n_frames"]), rng))
    windows = len(out["frames"])
    first = windows * position
    out["index"] = np.arange(first, first + windows, dtype=np.uint64).astype(np.uint32)
    return out

  def _cut(self, record: dict[str, Any], starts: list[int]) -> dict[str, np.ndarray]:
    """The windows of one record."""
    count = min(self.frames, int(record["n_frames"])) if self.sampler.padded else self.frames
    waveform = audio.decode_flac(record["flac"])
    samples = audio_context_samples(self.audio_frames)
    lead = (self.audio_frames - self.frames) * SAMPLES_PER_FRAME // 2 + AUDIO_MARGIN
    rows = [slice(start, start + count) for start in starts]
    out = {
      "frames": video.read_windows(record["mp4"], starts, count=count, size=self.size),
      "waveform": np.stack([_stretch(waveform, start * SAMPLES_PER_FRAME - lead, samples) for start in starts]),
      "face_box": np.stack([record["face_box"][row] for row in rows]),
      "mouth_box": np.stack([record["mouth_box"][row] for row in rows]),
    }
    subject = f"{record['corpus']}/{record['identity'] or record['key']}".encode("utf-8", "surrogateescape")
    out["subject"] = np.full(len(starts), zlib.crc32(subject), np.uint32)
    out["source"] = np.full(len(starts), record["source"], np.int32)
    if self.sampler.padded:
      out |= {name: _pad(out[name], self.frames, fill) for name, fill in _FILL.items()}
      out["length"] = np.full(len(starts), count, np.int32)
    if self.targets:
      found = [self.targets(record, start, count) for start in starts]
      out |= {name: np.stack([each[name] for each in found]) for name in found[0]}
    return out


_FILL = {"frames": 0, "face_box": 0, "mouth_box": -1}  # beyond the end of a record


def _pad(windows: np.ndarray, frames: int, fill: int) -> np.ndarray:
  """[W, T, ...] -> [W, frames, ...]."""
  missing = [(0, 0), (0, frames - windows.shape[1])] + [(0, 0)] * (windows.ndim - 2)
  return np.pad(windows, missing, constant_values=fill) if missing[1][1] else windows


def _join(examples: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  return {name: np.concatenate([example[name] for example in examples]) for name in examples[0]}


def _stretch(waveform: np.ndarray, start: int, count: int) -> np.ndarray:
  """Samples [start, start + count), zero beyond the ends of the clip."""
  out = np.zeros(count, np.float32)
  low, high = max(0, start), min(len(waveform), start + count)
  if low < high:
    out[low - start : high - start] = waveform[low:high]
  return out


def _seed(seed: int, number: int, bucket: int) -> int:
  """A seed for a bucket of source `number`, so that two sources of the same length are shuffled differently."""
  return int(np.random.SeedSequence([seed, number, bucket]).generate_state(1)[0])


def _parse_flags() -> None:
  """Marks the absl flags as parsed. Grain's workers need parsed flags, which pytest and notebooks do not have."""
  from absl import flags

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
