"""Records -> batches of host numpy. The stream of training batches is a pure function of (seed, step).

Every source is shuffled and repeated by its own seed, the sources are mixed, and position p of the mixture is cut and
decoded with random numbers drawn from (seed, p) alone. Only then is it batched, and only then divided between hosts:
batch s * hosts + h is host h's share of step s, so the shares in order of the hosts are the batch of a single host.
Resuming is beginning at `start_step`; neither the number of workers nor of hosts changes a sample.

Imports no jax: a data worker starts light.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from synclipmae_jax.data import records
from synclipmae_jax.data.media import audio, video
from synclipmae_jax.types import AUDIO_MARGIN, SAMPLES_PER_FRAME, Batch, EvalClip, InputError, audio_context_samples

_AHEAD = 2  # batches decoded ahead, by each worker


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """What `prepare` made in `directory`, and how often it is drawn from, relative to the other sources."""

  directory: str | os.PathLike
  weight: float = 1.0


def train_batches(
  sources: Sequence[Source],
  *,
  split: str = "train",
  seed: int,
  batch_size: int,
  clip_frames: int,
  audio_context_frames: int,
  image_size: int,
  start_step: int = 0,
  workers: int = 0,
  host_index: int = 0,
  host_count: int = 1,
) -> Iterator[Batch]:
  """Endless batches of this host's `batch_size` clips from `start_step` on; see `types.Batch` for the arrays.

  `batch_size` is even: clips 2r and 2r+1 are two disjoint windows of one record. Records shorter than two windows are
  left out when the stream is built. `workers` processes decode (0: one thread of this process). Raises InputError.
  """
  if batch_size < 2 or batch_size % 2:
    raise InputError(f"a host's batch must be an even number of clips (two windows a record), not {batch_size}")
  if seed < 0:
    raise InputError(f"the seed must not be negative: {seed}")
  if not 0 < clip_frames <= audio_context_frames:
    raise InputError(f"the audio context ({audio_context_frames} frames) must hold the clip ({clip_frames} frames)")
  if not sources or min(source.weight for source in sources) <= 0:
    raise InputError("at least one source is needed, and every weight must be positive")

  import grain  # brings jax along, which who only reads must not pay for

  datasets = []
  for number, source in enumerate(sources):
    kept = _LongEnough(records.open_records(source.directory, split=split), frames=2 * clip_frames)
    check_size(kept.records, image_size)
    datasets.append(grain.MapDataset.source(kept).seed(_seed(seed, number)).shuffle().repeat())
  mixed = grain.MapDataset.mix(datasets, [source.weight for source in sources])
  cut = _CutWindows(seed=seed, frames=clip_frames, audio_frames=audio_context_frames, size=image_size)
  batches = mixed.map_with_index(cut).batch(batch_size // 2, drop_remainder=True, batch_fn=_join)
  stream = batches[host_index::host_count][start_step:].to_iter_dataset(
    grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD)
  )
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
  """The whole clips of a split, in the order of the records; `max_clips` takes that many, evenly spread.

  Of these a host reads its own share only, which may be one larger or smaller than another's: the shares in order of
  the hosts are the clips of a single host.
  """
  source = records.open_records(directory, split=split)
  check_size(source, image_size)
  chosen = np.arange(len(source))
  if max_clips is not None and max_clips < len(source):
    chosen = np.linspace(0, len(source) - 1, max_clips).round().astype(int)
  share = np.array_split(chosen, host_count)[host_index]
  return (eval_clip(source[index], image_size) for index in share)


def check_size(source: records.Records, image_size: int) -> None:
  """Raises InputError where clips would have to be enlarged."""
  stored = source.preprocessing["size"]
  if image_size > stored:
    raise InputError(
      f"{source.directory} holds clips of {stored} pixels, not {image_size}: prepare them with --size {image_size}"
    )


def eval_clip(record: dict[str, Any], image_size: int) -> EvalClip:
  """The whole clip of a record (`data.records`), its frames resized."""
  frames = record["n_frames"]
  return EvalClip(
    **{name: record[name] for name in ("key", "corpus", "identity", "face_box", "mouth_box", "text")},
    frames=video.read_windows(record["mp4"], [0], count=frames, size=image_size)[0],
    waveform=_stretch(audio.decode_flac(record["flac"]), 0, frames * SAMPLES_PER_FRAME),
    lag=int(record["lag"]) if record["has_lag"] else None,
    truth=record["truth"] if record["truth_names"] else None,
    truth_names=tuple(record["truth_names"]),
  )


class _LongEnough:
  """The records of at least `frames` frames, as a Grain source."""

  def __init__(self, source: records.Records, *, frames: int):
    self.records = source
    self._kept = np.flatnonzero(source.n_frames >= frames)
    if not len(self._kept):
      longest = source.n_frames.max(initial=0)
      raise InputError(
        f"no {source.split} clip in {source.directory} has {frames} frames (two windows): the longest has {longest}"
      )

  def __len__(self) -> int:
    return len(self._kept)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self.records[self._kept[index]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _CutWindows:
  """(position in the mixture, record) -> both windows of it, arrays with a leading axis of 2."""

  seed: int
  frames: int
  audio_frames: int
  size: int

  def __call__(self, position: int, record: dict[str, Any]) -> dict[str, np.ndarray]:
    rng = np.random.Generator(np.random.Philox(key=np.array([self.seed, position], np.uint64)))
    # Two distinct numbers of slack + 2 are all placements of two disjoint windows, each as likely.
    slack = int(record["n_frames"]) - 2 * self.frames
    low, high = sorted(rng.choice(slack + 2, 2, replace=False).tolist())
    starts = [low, high - 1 + self.frames]
    waveform = audio.decode_flac(record["flac"])
    samples = audio_context_samples(self.audio_frames)
    lead = (self.audio_frames - self.frames) * SAMPLES_PER_FRAME // 2 + AUDIO_MARGIN
    rows = [slice(start, start + self.frames) for start in starts]
    return {
      "frames": video.read_windows(record["mp4"], starts, count=self.frames, size=self.size),
      "waveform": np.stack([_stretch(waveform, start * SAMPLES_PER_FRAME - lead, samples) for start in starts]),
      "face_box": np.stack([record["face_box"][row] for row in rows]),
      "mouth_box": np.stack([record["mouth_box"][row] for row in rows]),
      "index": np.array([2 * position, 2 * position + 1], np.uint64).astype(np.uint32),
    }


def _join(examples: Sequence[dict[str, np.ndarray]]) -> Batch:
  return {name: np.concatenate([example[name] for example in examples]) for name in examples[0]}


def _stretch(waveform: np.ndarray, start: int, count: int) -> np.ndarray:
  """Samples [start, start + count), zero beyond the ends of the clip."""
  out = np.zeros(count, np.float32)
  low, high = max(0, start), min(len(waveform), start + count)
  if low < high:
    out[low - start : high - start] = waveform[low:high]
  return out


def _seed(seed: int, number: int) -> int:
  """A seed for source `number`: two sources of the same length must not be shuffled alike."""
  return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _parse_flags() -> None:
  """Grain's workers are handed the absl flags and refuse to start where nobody parsed them (pytest, notebooks)."""
  from absl import flags

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
