"""The data of lip reading: clips with transcripts, their tokens cached once, and the tokeniser of their texts."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from synclipmae_jax import checkpoints
from synclipmae_jax.baselines import linear
from synclipmae_jax.data import pipeline, transcribed
from synclipmae_jax.data.records import open_records
from synclipmae_jax.data.samplers import WholeClip
from synclipmae_jax.data.variations import Variation
from synclipmae_jax.models import augment
from synclipmae_jax.pretrained import SyncLipMAE
from synclipmae_jax.run.clock import Clock
from synclipmae_jax.run.sources import evaluation_splits, find_sources, find_splits, read_clips
from synclipmae_jax.text.frame_labels import frame_labels
from synclipmae_jax.text.grammar import Grammar
from synclipmae_jax.text.tokenisers import Characters, Pieces, Tokeniser, encode_all, from_dict
from synclipmae_jax.types import Batch, EvalClip, InputError, TranscribedClip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recognition:
  """Clips to learn lip reading from and to measure it on (`types.TrainingData`)."""

  config: ConfigDict
  preprocessing: Mapping[str, Any]
  tokeniser: Tokeniser
  val_clips: Sequence[TranscribedClip | EvalClip]  # this process's share
  test_clips: Sequence[TranscribedClip | EvalClip]
  remark: str  # a caveat about the scores of the test clips
  _shortest: int  # frames of the shortest training clip
  _stream: Any  # (step, longest frames, host_index, host_count) -> batches

  def train_batches(self, step: int, *, host_index: int, host_count: int) -> Iterator[Batch]:
    """See `types.TrainingData`. The first `data.curriculum_steps` have short clips only, if there are any."""
    lengths, data = list(self.config.data.lengths), self.config.data
    short = [length for length in lengths if length <= data.curriculum_frames]
    hosts = dict(host_index=host_index, host_count=host_count)
    if step < data.curriculum_steps and short and self._shortest <= short[-1]:
      yield from itertools.islice(self._stream(step, short, **hosts), data.curriculum_steps - step)
      step = data.curriculum_steps
    yield from self._stream(step, lengths, **hosts)


def open_recognition(config: ConfigDict, workdir: Path, clock: Clock) -> Recognition:
  """The data of a configuration (configs/vsr.py). Raises InputError."""
  sources = find_sources(config, workdir, clock)
  own = dict(host_index=jax.process_index(), host_count=jax.process_count())
  stamp = dict(open_records(sources[0].directory, split="train").preprocessing)
  tested, remark = evaluation_splits(config, sources)
  held_out = [find_splits(sources, config.data.val_split), tested]
  if config.model.visual is not None:
    texts = [text for source in sources for text in _texts(source.directory)]
    tokeniser = make_tokeniser(config, texts)
    encode_all(tokeniser, texts)  # refuses a vocabulary of another language
    written = lambda places: (clip for clip in read_clips(config, places, **own) if clip.text.strip())
    clips: list[list[Any]] = [_short_enough(config, written(places), "frames") for places in held_out]
    stream = _clip_stream(config, sources, tokeniser)
  else:
    with clock("tokens"):
      caches, origin = _cache(config, sources, workdir, held_out)
    opened = [[transcribed.open_transcribed(view, split="train") for view in views] for views in caches]
    texts = [text for views in opened for text in views[0].texts]
    tokeniser = make_tokeniser(config, texts)
    clips = [
      _held_out(config, [views[0] for views in caches], [split for _, split in places], **own) for places in held_out
    ]
    stamp |= {"tokens": origin}
    ids = [encode_all(tokeniser, views[0].texts) for views in opened]
    readable = [
      [transcribed.Source(data=view, ids=texts, weight=source.weight / len(views)) for view in views]
      for views, texts, source in zip(opened, ids, sources, strict=True)
    ]
    _tell_left_out(config, [views[0] for views in readable])
    variation = Variation(encode=tokeniser.encode, warp=config.data.warp, splice=config.data.splice)
    stream = _token_stream(config, [view for views in readable for view in views], variation, tokeniser)
  stamp |= {"tokeniser": tokeniser.to_dict(), "tokeniser_sha256": tokeniser.digest}
  if (grammar := Grammar.of(texts)) is not None:
    stamp |= {"grammar": grammar.to_dict()}
  return Recognition(
    config=config, preprocessing=stamp, tokeniser=tokeniser, val_clips=clips[0], test_clips=clips[1], remark=remark,
    _shortest=min(int(open_records(one.directory, split="train").n_frames.min()) for one in sources), _stream=stream,
  )  # fmt: skip


def make_tokeniser(config: ConfigDict, texts: Sequence[str]) -> Tokeniser:
  """The tokeniser of `config.text`, trained on the texts where it is to be. Raises InputError."""
  text = config.text
  match text.kind:
    case "characters":
      return Characters(text.characters)
    case "pieces" if text.model:
      return Pieces.load(text.model, units=text.units, size=text.pieces)
    case "pieces":
      return Pieces.train(texts, size=text.pieces)
  raise InputError(f"unknown text.kind {text.kind!r}: characters or pieces")


@dataclasses.dataclass(frozen=True)
class TextTargets:
  """Token ids of a record, for `pipeline.train_batches`. A text that cannot be written counts nothing: length 0."""

  stored: str  # JSON of the tokeniser
  max_tokens: int

  def __call__(self, record: Mapping[str, Any], start: int, frames: int) -> Mapping[str, np.ndarray]:
    try:
      ids = _tokeniser(self.stored).encode(record["text"])
    except InputError:
      ids = []
    ids = ids if len(ids) <= self.max_tokens else []
    return {
      "text": np.pad(np.array(ids, np.int32), (0, self.max_tokens - len(ids))),
      "text_length": np.array(len(ids), np.int32),
    }


@functools.cache  # once a worker
def _tokeniser(stored: str) -> Tokeniser:
  return from_dict(json.loads(stored))


def _clip_stream(config: ConfigDict, sources: Sequence[pipeline.Source], tokeniser: Tokeniser):
  def stream(step: int, lengths: Sequence[int], *, host_index: int, host_count: int) -> Iterator[Batch]:
    return pipeline.train_batches(
      sources,
      seed=config.seed,
      batch_size=config.train.batch_clips // host_count,
      sampler=WholeClip(tuple(lengths)),
      image_size=config.data.image_size,
      targets=TextTargets(json.dumps(tokeniser.to_dict()), config.data.max_tokens),
      start_step=step,
      workers=config.data.workers,
      host_index=host_index,
      host_count=host_count,
    )

  return stream


def _token_stream(
  config: ConfigDict, sources: Sequence[transcribed.Source], variation: Variation, tokeniser: Tokeniser
):
  def stream(step: int, lengths: Sequence[int], *, host_index: int, host_count: int) -> Iterator[Batch]:
    return transcribed.token_batches(
      sources,
      lengths=lengths,
      max_tokens=config.data.max_tokens,
      seed=config.seed,
      batch_size=config.train.batch_clips // host_count,
      variation=variation if variation.warp > 1 or variation.splice else None,
      label_frames=functools.partial(frame_labels, tokeniser) if config.loss.frame_weight else None,
      start_step=step,
      host_index=host_index,
      host_count=host_count,
    )

  return stream


def _texts(directory: str | os.PathLike) -> list[str]:
  opened = open_records(directory, split="train")
  return [opened[index]["text"] for index in range(len(opened))]


def _cache(
  config: ConfigDict, sources: Sequence[pipeline.Source], workdir: Path, held_out: Sequence[Any]
) -> tuple[list[list[Path]], dict[str, Any]]:
  """The caches of all sources, written unless they exist, and where their tokens come from.

  The first cache of a source has its clips as they are. The others, `data.views` in all, have the training clips as
  other cameras might have seen them.
  """
  if config.data.views < 1:
    raise InputError(f"data.views is at least 1, the clips as they are, not {config.data.views}")
  read, width, image_size, origin = token_reader(
    config.data.tokens, config.data.encoder, image_size=config.data.image_size
  )
  if width != config.data.token_width:
    raise InputError(f"these tokens have {width} dimensions: pass --config.data.token_width={width}")

  def embedded(directory, split, view):
    every = len(open_records(directory, split=split))
    for clip in read_clips(config, [(directory, split)], max_clips=every, image_size=image_size):
      yield clip, read(seen_otherwise(clip, view) if view else clip)

  folders = []
  for number, source in enumerate(sources):
    splits = sorted({"train", *(places[number][1] for places in held_out)})
    own = [workdir / "data" / "tokens" / (f"{number}-{view}" if view else f"{number}")
           for view in range(config.data.views)]  # fmt: skip
    for view, folder in enumerate(own):
      if jax.process_index() == 0:
        transcribed.cache_tokens(
          folder,
          {split: embedded(source.directory, split, view) for split in (["train"] if view else splits)},
          source=source.directory,
          checkpoint=f"{origin['sha256']}, view {view} {sorted(JITTER.items())}" if view else origin["sha256"],
        )
    folders.append(own)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("tokens are cached")
  return folders, origin


# Of a further view of a clip, as in the pretraining of the embedded checkpoint, but narrower.
JITTER = dict(zoom=1.15, shift=0.04, mirror=0.5, stretch=1.06, rotation=8.0)
COLOUR = dict(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.03, probability=0.8)


def seen_otherwise(clip: EvalClip, view: int) -> EvalClip:
  """The clip moved, turned, scaled, mirrored and in other colours: a random draw of its key and `view`."""
  key = jax.random.fold_in(jax.random.key(zlib.crc32(clip.key.encode("utf-8", "surrogateescape"))), view)
  frames, boxes = _jitter(key, clip.frames, np.stack([clip.face_box, clip.mouth_box]))
  return dataclasses.replace(
    clip, frames=np.asarray(frames), face_box=np.asarray(boxes[0]), mouth_box=np.asarray(boxes[1])
  )


@jax.jit
def _jitter(key, frames, boxes):
  crop_key, colour_key = jax.random.split(key)
  frames, boxes, _ = augment.crop_jitter(crop_key, frames, boxes, jnp.zeros((len(frames), 0, 2)), **JITTER)
  pixels = frames.astype(jnp.float32) / 255
  matrix, offset = augment.jitter_affine(colour_key, (pixels.mean((0, 1, 2)) * augment.LUMA).sum(), **COLOUR)
  return jnp.rint(255 * jnp.clip(pixels @ matrix + offset, 0, 1)).astype(jnp.uint8), boxes


def token_reader(
  kind: str, checkpoint: str | os.PathLike | None, *, image_size: int
) -> tuple[Callable[[EvalClip], np.ndarray], int, int, dict[str, Any]]:
  """(clip -> what is read of it [T, D], D, side of the clip's pictures, where the tokens come from).

  `vocal` tokens of a checkpoint (None: the embedded one), or, to compare with, the grey pixels of the `mouth` in
  pictures of `image_size`.
  """
  if kind == "mouth":
    side = linear.CROP
    return linear.mouth_pixels, side * side, image_size, {"kind": kind, "sha256": f"{kind} {side} x {side}"}
  if kind != "vocal":
    raise InputError(f"unknown data.tokens {kind!r}: vocal or mouth")
  model = SyncLipMAE.load(checkpoint)
  embedder = model.embedder
  digest = checkpoints.tree_hash(embedder.params["visual_encoder"])

  def read(clip: EvalClip) -> np.ndarray:
    return embedder.encode_lips(clip.frames, face_box=clip.face_box, mouth_box=clip.mouth_box)

  return read, embedder.model.width, embedder.image_size, {"kind": kind, "checkpoint": model.name, "sha256": digest}


def _held_out(
  config: ConfigDict, caches: Sequence[Path], splits: Sequence[str], *, host_index: int, host_count: int
) -> list[TranscribedClip]:
  """At most `data.eval_clips` clips of all caches together."""
  found: list[TranscribedClip] = []
  for number, (cache, split) in enumerate(zip(caches, splits, strict=True)):
    limit = config.data.eval_clips // len(caches) // host_count
    opened = transcribed.open_transcribed(cache, split=split)
    clips = itertools.islice(opened.clips(host_index=host_index, host_count=host_count), limit)
    for clip in _short_enough(config, clips, "tokens"):
      found.append(dataclasses.replace(clip, key=f"{number}/{clip.key}") if len(caches) > 1 else clip)
  return found


def _short_enough(config: ConfigDict, clips: Iterable[Any], name: str) -> list[Any]:
  """The clips that the longest of `data.lengths` holds; says how many are not."""
  every, longest = list(clips), config.data.lengths[-1]
  found = [clip for clip in every if len(getattr(clip, name)) <= longest]
  if len(found) < len(every):
    print(f"{len(every) - len(found)} of {len(every)} held-out clips are longer than {longest} frames: not measured")
  return found


def _tell_left_out(config: ConfigDict, sources: Sequence[transcribed.Source]) -> None:
  options = dict(lengths=config.data.lengths, max_tokens=config.data.max_tokens)
  used = sum(int(transcribed.usable_clips(source, **options)[0].sum()) for source in sources)
  total = sum(len(source.ids) for source in sources)
  unwritten = sum(ids is None for source in sources for ids in source.ids)
  if used < total and jax.process_index() == 0:
    print(
      f"{total - used} of {total} training clips are left out: {unwritten} without a text in the vocabulary, the others"
      f" longer than {config.data.lengths[-1]} frames or {config.data.max_tokens} tokens"
    )
