"""Cached segments of clips for dubbing, and batches of them.

A segment has `SEGMENT` frames and follows one frame, its history. Segment k of a clip begins at frame 1 + 17 k. The
record of a clip (`data.features`) holds, for its n segments and n + 1 still frames 0, 17, 34, ...:

    target [n, S, h, w, Z]      latents of the segment
    inactive [n, S, h, w, Z]    latents of the segment with its mouth region grey
    reactive [1, S, h, w, Z]    latents of a grey segment, the same for all
    stills [n + 1, h, w, Z]     latents of the still frames, each encoded alone
    region [n, 4]               the mouth region in fractions of the picture; a row of -1 where the mouth leaves it
    audio, video [n, 17, D]     audio tokens and vocal-motion tokens of the segment's frames

Latents and tokens are float16. The stream of batches is a pure function of (seed, step), as in `data.pipeline`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synclipmae_jax.data import records
from synclipmae_jax.data.faces.mouth_mask import region_mask
from synclipmae_jax.types import Batch, InputError

SEGMENT = 17  # frames: five latent frames of the Wan VAE
KINDS = ("audio", "video")  # of control tokens
USABLE = "segments"  # <split>.segments.json beside the records: the usable segments of every clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenScale:
  """Makes control tokens of one kind alike in scale to those of the other.

  Training aligned the directions of audio and vocal-motion tokens, not their lengths or means, and what a mouth does is
  a small part of a token. So tokens become unit vectors, less their mean `mean` [D], divided by `deviation`, the root
  of the mean square of what is left.
  """

  mean: Sequence[float]
  deviation: float

  def __call__(self, tokens: np.ndarray) -> np.ndarray:
    """float32, of tokens [..., D]."""
    return (_unit(tokens) - np.asarray(self.mean, np.float32)) / np.float32(self.deviation)


def _unit(tokens: np.ndarray) -> np.ndarray:
  tokens = np.asarray(tokens, np.float32)
  return tokens / np.maximum(np.linalg.norm(tokens, axis=-1, keepdims=True), 1e-6)


def token_scales(sources: Sequence[Segments], *, clips: int = 64) -> dict[str, TokenScale]:
  """The scale of each kind of tokens, over `clips` clips of every source, evenly spread."""
  scales = {}
  chosen = [
    one.records[int(one.clips[i])]
    for one in sources
    for i in np.unique(np.linspace(0, len(one.clips) - 1, min(clips, len(one.clips))).round().astype(int))
  ]
  for kind in KINDS:
    units = np.concatenate([_unit(record[kind]).reshape(-1, record[kind].shape[-1]) for record in chosen])
    mean = units.mean(axis=0, dtype=np.float64)
    deviation = float(np.sqrt(np.square(units - mean).mean()))
    scales[kind] = TokenScale(mean=[round(float(value), 6) for value in mean], deviation=max(deviation, 1e-6))
  return scales


def segment_count(frames: int) -> int:
  """Segments of a clip of `frames` frames."""
  return max(frames - 1, 0) // SEGMENT


def segment_frames(number: int) -> slice:
  """The frames of a segment; the frame before them is its history."""
  return slice(1 + number * SEGMENT, 1 + (number + 1) * SEGMENT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segments:
  """The segments of one split of a cache."""

  records: records.Records
  usable: Sequence[Sequence[int]]  # of every clip

  @functools.cached_property
  def clips(self) -> np.ndarray:
    """int: the clips that have a usable segment."""
    return np.flatnonzero([len(numbers) > 0 for numbers in self.usable])

  def example(self, clip: int, rng: np.random.Generator | None, *, side: int) -> dict[str, np.ndarray]:
    """The arrays of one usable segment, with a mask of `side` pixels.

    With `rng` any segment, and as the identity any still frame outside of it but its history; without, the middle
    segment and the first such frame. The history is the identity too where there is no other.
    """
    record, usable = self.records[clip], self.usable[clip]
    number = usable[len(usable) // 2 if rng is None else int(rng.integers(len(usable)))]
    # Still frame `number` is the history, and the next one is the last frame of the segment.
    others = [still for still in range(len(record["stills"])) if still not in (number, number + 1)] or [number]
    identity = others[0 if rng is None else int(rng.integers(len(others)))]
    return {
      **{name: record[name][number] for name in ("target", "inactive", "audio", "video")},
      "reactive": record["reactive"][0],
      "references": record["stills"][[identity, number]],
      "mask": region_mask(record["region"][number], height=side, width=side),
    }

  def held_out(self, count: int, *, side: int, host_index: int = 0, host_count: int = 1) -> Iterator[dict[str, Any]]:
    """One segment of at most `count` clips, evenly spread, each with its `key`; a host's share."""
    clips = self.clips
    chosen = clips[np.unique(np.linspace(0, len(clips) - 1, min(count, len(clips))).round().astype(int))]
    for clip in np.array_split(chosen, host_count)[host_index]:
      yield {"key": self.records.keys[int(clip)], **self.example(int(clip), None, side=side)}


def open_segments(directory: Path, *, split: str) -> Segments:
  """The segments of a split of a cache. Raises InputError if it is missing, or if no segment can be used."""
  opened = records.open_records(directory, split=split)
  path = opened.directory / f"{split}.{USABLE}.json"
  if not path.exists():  # read once
    found = [np.flatnonzero((opened[index]["region"] >= 0).any(axis=1)).tolist() for index in range(len(opened))]
    partial = path.with_name(f"{path.name}.tmp")
    partial.write_text(json.dumps(found))
    partial.replace(path)
  segments = Segments(records=opened, usable=json.loads(path.read_text()))
  if not len(segments.clips):
    raise InputError(f"no {split} clip in {directory} has {SEGMENT + 1} frames with the whole mouth in the picture")
  return segments


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """A split to train on, and its weight relative to the others."""

  segments: Segments
  weight: float = 1.0


def segment_batches(
  sources: Sequence[Source],
  *,
  side: int,
  seed: int,
  batch_size: int,
  start_step: int = 0,
  host_index: int = 0,
  host_count: int = 1,
) -> Iterator[Batch]:
  """Endless batches of this host's `batch_size` segments from `start_step` on.

  target, inactive, reactive float16 [B, S, h, w, Z]    references float16 [B, 2, h, w, Z]: identity, history
  mask bool [B, side, side]    audio, video float16 [B, 17, D]    index uint32 [B]
  """
  import grain  # local import: it imports jax, which reading alone does not need

  datasets = []
  for number, source in enumerate(sources):
    own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    drawn = grain.MapDataset.source(_Clips(source.segments)).seed(own).shuffle().repeat()
    datasets.append(drawn.map(_Named(number)))
  mixed = datasets[0] if len(datasets) == 1 else grain.MapDataset.mix(datasets, [each.weight for each in sources])
  cut = _Cut(tuple(source.segments for source in sources), seed, side)
  steps = mixed.map_with_index(cut).batch(batch_size, drop_remainder=True)[host_index::host_count]
  return iter(steps[start_step:].to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)))


@dataclasses.dataclass(frozen=True)
class _Clips:
  """The numbers of the usable clips as a Grain source."""

  segments: Segments

  def __len__(self) -> int:
    return len(self.segments.clips)

  def __getitem__(self, position: int) -> int:
    return int(self.segments.clips[position])


@dataclasses.dataclass(frozen=True)
class _Named:
  number: int  # of the source

  def __call__(self, clip: int) -> tuple[int, int]:
    return self.number, clip


@dataclasses.dataclass(frozen=True)
class _Cut:
  """(position in the stream, (source, clip)) -> one row of a batch."""

  segments: tuple[Segments, ...]
  seed: int
  side: int

  def __call__(self, position: int, place: tuple[int, int]) -> Mapping[str, np.ndarray]:
    rng = np.random.Generator(np.random.Philox(key=np.array([self.seed, position], np.uint64)))
    number, clip = place
    example = self.segments[number].example(clip, rng, side=self.side)
    return {**example, "index": np.array(position % 2**32, np.uint32)}
