"""The data of dubbing: segments of clips as latents and tokens, cached once, and batches of them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from synclipmae_jax import checkpoints
from synclipmae_jax.data import dubbing, features, pipeline
from synclipmae_jax.data.faces.mouth_mask import mouth_region_within, region_mask
from synclipmae_jax.data.records import Records, open_records
from synclipmae_jax.inference.wan import load_autoencoder, read_text
from synclipmae_jax.models.wan.conditioning import VideoAutoencoder, encode_pictures, to_unit, without
from synclipmae_jax.pretrained import SyncLipMAE
from synclipmae_jax.run.clock import Clock
from synclipmae_jax.run.sources import evaluation_splits, find_sources, find_splits
from synclipmae_jax.types import Batch, EvalClip, InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DubbingData:
  """Segments to learn dubbing from and to measure it on (`types.TrainingData`)."""

  config: ConfigDict
  preprocessing: Mapping[str, Any]
  autoencoder: VideoAutoencoder
  val: Sequence[Mapping[str, Any]]  # segments, this process's share: arrays as in a batch, and `key`
  test: Sequence[Mapping[str, Any]]
  remark: str  # a caveat about the scores of `test`
  _sources: Sequence[dubbing.Source]
  _text: np.ndarray  # float16 [M, E]
  _scales: Mapping[str, dubbing.TokenScale]

  def train_batches(self, step: int, *, host_index: int, host_count: int) -> Iterator[Batch]:
    """See `types.TrainingData`."""
    size = self.config.train.batch_clips // host_count
    text = np.broadcast_to(self._text, (size, *self._text.shape))
    for batch in dubbing.segment_batches(
      self._sources,
      side=self.config.data.image_size,
      seed=self.config.seed,
      batch_size=size,
      start_step=step,
      host_index=host_index,
      host_count=host_count,
    ):
      yield {**batch, "text": text, **_scaled(batch, self._scales)}


def open_dubbing(config: ConfigDict, workdir: Path, clock: Clock) -> DubbingData:
  """The data of a configuration (configs/dub.py). Raises InputError."""
  if config.data.segment_frames != dubbing.SEGMENT:
    raise InputError(f"segments have {dubbing.SEGMENT} frames, not {config.data.segment_frames}")
  text = read_text(config)
  sources = find_sources(config, workdir, clock)
  tested, remark = evaluation_splits(config, sources)
  held_out = [find_splits(sources, config.data.val_split), tested]
  autoencoder, of_autoencoder = load_autoencoder(config)
  with clock("segments"):
    caches, origin = _cache(config, sources, workdir, held_out, autoencoder, of_autoencoder)
  opened = [dubbing.open_segments(cache, split="train") for cache in caches]
  stamp = dict(open_records(sources[0].directory, split="train").preprocessing)
  own = dict(host_index=jax.process_index(), host_count=jax.process_count())
  scales = dubbing.token_scales(opened)
  origin["tokens"] = {kind: dataclasses.asdict(scale) for kind, scale in scales.items()}
  val, test = (_held_out(config, caches, [split for _, split in places], text, scales, **own) for places in held_out)
  return DubbingData(
    config=config,
    preprocessing={**stamp, "dubbing": {**origin, "image_size": config.data.image_size}},
    autoencoder=autoencoder,
    val=val,
    test=test,
    remark=remark,
    _sources=[dubbing.Source(segments=one, weight=source.weight) for one, source in zip(opened, sources, strict=True)],
    _text=text,
    _scales=scales,
  )


Maker = Callable[[EvalClip, EvalClip], dict[str, np.ndarray]]  # the clip as the encoder and as the autoencoder see it


def segment_maker(model: SyncLipMAE, autoencoder: VideoAutoencoder, *, side: int) -> Maker:
  """(clip of the encoder's size, clip of `side` pixels) -> the arrays of `data.dubbing`, of one clip."""
  hide = jax.jit(without)
  grey = np.asarray(autoencoder.encode(jnp.zeros((1, dubbing.SEGMENT, side, side, 3))), np.float16)

  def make(seen: EvalClip, shown: EvalClip) -> dict[str, np.ndarray]:
    tokens = model.embedder.embed(seen.frames, seen.waveform, face_box=seen.face_box, mouth_box=seen.mouth_box)
    # Of a clip that is out of sync, the sound of a frame is what belongs to its picture.
    heard = np.clip(np.arange(len(seen.frames)) - (seen.lag or 0), 0, len(seen.frames) - 1)
    spoken = {"audio": tokens.audio[heard], "video": tokens.vocal}
    count = dubbing.segment_count(len(shown.frames))
    arrays = {name: np.zeros((count, *grey.shape[1:]), np.float16) for name in ("target", "inactive")}
    arrays |= {name: np.zeros((count, dubbing.SEGMENT, x.shape[1]), np.float16) for name, x in spoken.items()}
    arrays |= {"region": np.full((count, 4), -1, np.float32), "reactive": grey}
    for number in range(count):
      rows = dubbing.segment_frames(number)
      with contextlib.suppress(InputError):  # its region stays -1
        arrays["region"][number] = mouth_region_within(shown.face_box[rows])
      video = jnp.asarray(to_unit(shown.frames[rows])[None])
      mask = region_mask(arrays["region"][number], height=side, width=side)[None]
      arrays["target"][number] = autoencoder.encode(video)[0]
      arrays["inactive"][number] = autoencoder.encode(hide(video, mask))[0]
      for name, each in spoken.items():
        arrays[name][number] = each[rows]
    # One by one: their number differs from clip to clip, and each shape would be compiled.
    stills = jnp.asarray(to_unit(shown.frames[: 1 + count * dubbing.SEGMENT : dubbing.SEGMENT]))
    latents = [encode_pictures(autoencoder, one[None, None])[0, 0] for one in stills]
    return {**arrays, "stills": np.stack(latents).astype(np.float16)}

  return make


def _cache(
  config: ConfigDict,
  sources: Sequence[pipeline.Source],
  workdir: Path,
  held_out: Sequence[Any],
  autoencoder: VideoAutoencoder,
  of_autoencoder: Mapping[str, Any],
) -> tuple[list[Path], dict[str, Any]]:
  """The caches of all sources, written unless they exist, and what their arrays were made with."""
  model, side = SyncLipMAE.load(config.data.encoder), config.data.image_size
  if model.embedder.model.width != config.data.token_width:
    found = model.embedder.model.width
    raise InputError(f"these tokens have {found} dimensions: pass --config.data.token_width={found}")
  origin = {
    "encoder": model.name,
    "encoder_sha256": checkpoints.tree_hash(model.embedder.params),
    "autoencoder": dict(of_autoencoder),
  }
  digest = hashlib.sha256(repr((origin["encoder_sha256"], sorted(of_autoencoder.items()), side)).encode()).hexdigest()
  make = functools.cache(lambda: segment_maker(model, autoencoder, side=side))  # compiled if there is something to do

  def made(records: Records, index: int) -> dict[str, np.ndarray]:
    record = records[index]
    return make()(pipeline.eval_clip(record, model.image_size), pipeline.eval_clip(record, side))

  root = Path(config.data.cache) if config.data.cache else workdir / "data" / "segments"
  folders = []
  for number, source in enumerate(sources):
    splits = sorted({"train", *(places[number][1] for places in held_out)})
    opened = {split: open_records(source.directory, split=split) for split in splits}
    for records in opened.values():
      pipeline.check_size(records, max(side, model.image_size))
    folders.append(root / str(number))
    if jax.process_index() == 0:
      features.write_resumably(
        folders[-1],
        {split: functools.partial(made, records) for split, records in opened.items()},
        clips=source.directory,
        checkpoint=digest,
      )
      for split in splits:
        dubbing.open_segments(folders[-1], split=split)  # lists the usable segments
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("segments are cached")
  return folders, origin


def _scaled(arrays: Mapping[str, Any], scales: Mapping[str, dubbing.TokenScale]) -> dict[str, np.ndarray]:
  return {kind: scale(arrays[kind]).astype(np.float16) for kind, scale in scales.items()}


def _held_out(
  config: ConfigDict,
  caches: Sequence[Path],
  splits: Sequence[str],
  text: np.ndarray,
  scales: Mapping[str, dubbing.TokenScale],
  **hosts: int,
) -> list[dict[str, Any]]:
  """At most `data.eval_clips` segments of all caches together; a host's share."""
  limit = config.data.eval_clips // len(caches)
  return [
    {
      **example,
      **_scaled(example, scales),
      "text": text,
      "key": f"{number}/{example['key']}" if len(caches) > 1 else example["key"],
    }
    for number, (cache, split) in enumerate(zip(caches, splits, strict=True))
    for example in dubbing.open_segments(cache, split=split).held_out(limit, side=config.data.image_size, **hosts)
  ]
