"""Feature caches: what a model makes of every clip, written once and read as records (`records.open_records`).

Record i of a split belongs to clip i of the same split of the clips' records; it holds `key` and one array a name.

  DIR/<hash of checkpoint and records>/features/1.0.0/
  DIR/<hash of checkpoint and records>.parts/<split>/<index>.npz     of `write_resumably`, until all clips are there
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from synclipmae_jax.data import records
from synclipmae_jax.types import InputError

Examples = Iterable[tuple[str, Mapping[str, np.ndarray]]]  # (key of the clip, arrays), in the order of the clips


class Features(tfds.core.dataset_builder.FileReaderBuilder):
  """The arrays of `examples`; names, types and all sizes but the first are those of the first example.

  A split is one shard. TFDS's own builders keep a whole split in memory, and above 1 GB they ask for TensorFlow.
  """

  VERSION = tfds.core.Version("1.0.0")
  name = records.FEATURES

  def __init__(
    self, *, examples: Mapping[str, Examples], clips: Mapping[str, records.Records], checkpoint: str, **kwargs
  ):
    self._examples = {split: iter(each) for split, each in examples.items()}
    self._clips, self._checkpoint = clips, checkpoint
    self._like: dict[str, np.ndarray] = {}
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    split, examples = next(iter(self._examples.items()))
    try:
      first = next(examples)
    except StopIteration:
      raise InputError(f"there are no features of the split {split!r}") from None
    self._examples[split] = itertools.chain([first], examples)
    self._like = {name: np.asarray(value) for name, value in first[1].items()}
    for name, value in self._like.items():
      if name == "key" or not value.ndim or value.dtype.kind not in "fiu":
        raise InputError(f"features are arrays of numbers [T, ...] with names other than key, not {name} {value.dtype}")
    one = next(iter(self._clips.values()))
    metadata = tfds.core.MetadataDict(
      n_frames={split: clips.n_frames.tolist() for split, clips in self._clips.items()},
      keys={split: list(clips.keys) for split, clips in self._clips.items()},
      preprocessing=one.preprocessing, vocabularies=one.vocabularies,
      made_of={"checkpoint": self._checkpoint, **one.made_of},
    )  # fmt: skip
    features = {
      # As bytes: TFDS would store float16 as float32, and ten times as slowly.
      name: tfds.features.Tensor(shape=(None, *value.shape[1:]), dtype=value.dtype, encoding="bytes")
      for name, value in self._like.items()
    }
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict({"key": tfds.features.Text(), **features}),
      disable_shuffling=True,
      metadata=metadata,
    )

  def _download_and_prepare(self, dl_manager, download_config=None) -> None:
    infos = []
    for split in self._examples:
      template = self._get_filename_template(split_name=split)
      path = template.sharded_filepath(shard_index=0, num_shards=1)
      sizes = records.write_shard(path, self.info.features, self._checked(split))
      infos.append(
        tfds.core.SplitInfo(name=split, shard_lengths=[len(sizes)], num_bytes=sum(sizes), filename_template=template)
      )
    self.info.set_splits(tfds.core.splits.SplitDict(infos))

  def _checked(self, split: str) -> Iterator[dict[str, Any]]:
    for index, (key, example) in enumerate(itertools.zip_longest(self._clips[split].keys, self._examples[split])):
      if example is None or example[0] != key:
        found = example and example[0]
        raise InputError(f"features {index} of the split {split!r} are of {found!r}, the clip is {key!r}")
      arrays = {name: np.asarray(value) for name, value in example[1].items()}
      self._validate(key, arrays)
      yield {"key": key, **arrays}

  def _validate(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
    form, first = _form(arrays), _form(self._like)
    if form != first:
      raise InputError(f"the features of {key} have another form than those of the first clip: {form}, not {first}")
    if wrong := [name for name, value in arrays.items() if not np.isfinite(value).all()]:
      raise InputError(f"the features of {key} are not finite: {', '.join(wrong)}")


def _form(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
  return {name: f"{value.dtype} {['T', *value.shape[1:]]}" for name, value in sorted(arrays.items())}


def write_features(
  directory: str | os.PathLike, examples: Mapping[str, Examples], *, clips: str | os.PathLike, checkpoint: str
) -> Path:
  """Writes the features of whole splits into `directory` and returns the folder that `records.open_records` opens.

  Where the features of this checkpoint and these records are there already, `examples` is not touched. Where the
  folder holds those of others, they are replaced. A call that was interrupted leaves nothing that would be opened.

  Args:
    directory: a folder for this cache alone.
    examples: for each split the features of every clip, in the order of the records. Arrays are [T, ...], finite,
      float16 (half the size) or any other numbers; all clips have the same names, types and further sizes.
    clips: what `prepare` filled, see `records.find_records`.
    checkpoint: the hash of the parameters that made the features.

  Raises:
    InputError: the features do not fit the clips, or one another.
  """
  opened = {split: records.open_records(clips, split=split) for split in examples}
  if not opened:
    raise InputError("there is no split to write features of")
  directory, key = Path(directory), _hash(opened, checkpoint)
  version = directory / key / Features.name / str(Features.VERSION)
  if not version.exists():
    builder = Features(
      examples=examples, clips=opened, checkpoint=checkpoint, data_dir=directory / key, file_format="array_record"
    )
    records.write(builder, directory / key)
  for other in directory.iterdir():
    of_others = re.fullmatch("[0-9a-f]{12}", other.name) and other.name != key and (other / Features.name).is_dir()
    if of_others or re.fullmatch("[0-9a-f]{12}[.]parts", other.name):
      shutil.rmtree(other)
  return version


def write_resumably(
  directory: str | os.PathLike,
  make: Mapping[str, Callable[[int], Mapping[str, np.ndarray]]],
  *,
  clips: str | os.PathLike,
  checkpoint: str,
) -> Path:
  """`write_features` of arrays that take long to make: a call that was interrupted keeps those of the clips before.

  `make[split](index)` makes the arrays of a clip. Each clip's are kept in a file of its own until the records of all
  are written; meanwhile they take their space twice. Raises InputError as `write_features` does.
  """
  opened = {split: records.open_records(clips, split=split) for split in make}
  parts = Path(directory) / f"{_hash(opened, checkpoint)}.parts"
  examples = {split: _kept(parts / split, opened[split].keys, each) for split, each in make.items()}
  return write_features(directory, examples, clips=clips, checkpoint=checkpoint)


def _kept(folder: Path, keys: Sequence[str], make: Callable[[int], Mapping[str, np.ndarray]]) -> Iterator[Any]:
  for index, key in enumerate(keys):
    path = folder / f"{index}.npz"
    if not path.exists():
      folder.mkdir(parents=True, exist_ok=True)
      partial = folder / f"{index}.tmp"
      arrays: dict[str, Any] = dict(make(index))
      with partial.open("wb") as file:
        np.savez(file, **arrays)
      partial.replace(path)
    with np.load(path) as stored:
      yield key, dict(stored)


def _hash(opened: Mapping[str, records.Records], checkpoint: str) -> str:
  made_of = next(iter(opened.values())).made_of if opened else {}
  return hashlib.sha256(repr((checkpoint, sorted(made_of.items()), sorted(opened))).encode()).hexdigest()[:12]
