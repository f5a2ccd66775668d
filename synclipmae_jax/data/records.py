"""Clean clips -> ArrayRecord shards by a TFDS builder, and back. `_features` is the schema of a clip.

`open_records` also opens the second kind of records: features of these clips (`data.features`).

TensorFlow is not needed. TFDS treats an existing version as complete, so the folder is named by the hash of the
manifest: other clips have another folder.

  OUT/records/<hash of manifest.jsonl>/clips/2.0.0/
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from synclipmae_jax.data import labels, storage
from synclipmae_jax.data.engines import Engine
from synclipmae_jax.data.offsets import read_clip
from synclipmae_jax.types import InputError, Segment

FEATURES = "features"  # the name of the second kind of records
SHARD_FRAMES = 90_000  # one hour: the file that fills it is the last of a shard, so that only the manifest decides
_HASH = 12  # characters of the hash of the manifest
_MEND = "delete its folder under clips/ and prepare it again"

# Text can contain bytes and is the only feature for them that works without TensorFlow. TFDS has no optional features:
# absent values are length 0, -1 in a mouth box, has_lag = 0, and null in JSON. Two unknown dimensions need an encoding.
_BYTES = ("mp4", "flac")
_JSON = (*labels.SEGMENTS, "actions", "appearance", "truth_names", "provenance", "preprocessing")
_TEXTS = (
  "key", "corpus", "split", "identity", "split_group", "speaker", "text", "text_source", "emotion", "landmark_schema",
  *_JSON,
)  # fmt: skip


def _serialize_example(self, example: Mapping[str, Any]) -> bytes:
  """As in TFDS, but with the fields in one order: that of protobuf differs from process to process."""
  return self.get_tf_example(example).SerializeToString(deterministic=True)


ExampleSerializer.serialize_example = _serialize_example


def _features() -> tfds.features.FeaturesDict:
  tensor, f4 = tfds.features.Tensor, np.float32
  return tfds.features.FeaturesDict(
    {
      **{name: tfds.features.Text() for name in _BYTES + _TEXTS},
      "n_frames": np.int32,
      "face_box": tensor(shape=(None, 4), dtype=f4),  # x0, y0, x1, y1 in fractions of the picture, one row per frame
      "mouth_box": tensor(shape=(None, 4), dtype=f4),  # likewise; unknown: a row of -1
      "landmarks": tensor(shape=(None, None, 2), dtype=f4, encoding="zlib"),  # [T, K, 2], K = 0: absent
      "whole": np.int32,  # 1: the clip is its whole file
      "lag": np.int32,
      "has_lag": np.int32,
      "truth": tensor(shape=(None, None), dtype=f4, encoding="zlib"),  # [T, P], P = 0: absent
    }
  )


class Clips(tfds.core.dataset_builder.FileReaderBuilder):
  """The clips of one manifest in its order, with one TFDS split for each of its splits.

  TFDS's own builders write one shard after another, in one process. Here `run`, an engine, writes several at once.
  Where the clips are in object storage, `prepared` is the mirror of `url`, and shards are read and written there.
  """

  VERSION = tfds.core.Version("2.0.0")  # version 1: labels were numbers; no words, segments, speaker
  name = "clips"

  def __init__(self, *, prepared: Path, stamp: Mapping[str, Any], url: str = "", run: Engine | None = None, **kwargs):
    self._prepared, self._stamp, self._url, self._run = prepared, stamp, url, run
    self._lines = [json.loads(line) for line in (prepared / "manifest.jsonl").read_text().splitlines()]
    self._lines = [line for line in self._lines if line["outcome"] == "accepted"]
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    # Lengths are in the metadata, so that finding clips of at least 2T frames does not read every clip.
    lengths: dict[str, list[int]] = {}
    keys: dict[str, list[str]] = {}
    identities: dict[str, list[str]] = {}
    vocabularies = self._lines[0]["vocabularies"]
    for line in self._lines:
      lengths.setdefault(line["split"], []).extend(clip["frames"] for clip in line["clips"])
      keys.setdefault(line["split"], []).extend(clip["key"] for clip in line["clips"])
      identities.setdefault(line["split"], []).extend(line["identity"] for _ in line["clips"])
      if line["vocabularies"] != vocabularies:
        raise InputError(f"{line['file']} has other vocabularies than {self._lines[0]['file']}: {line['vocabularies']}")
    metadata = tfds.core.MetadataDict(
      n_frames=lengths, keys=keys, identities=identities, preprocessing=dict(self._stamp), vocabularies=vocabularies,
      made_of={"manifest": _manifest_hash(self._prepared)},
    )  # fmt: skip
    return tfds.core.DatasetInfo(builder=self, features=_features(), disable_shuffling=True, metadata=metadata)

  def _download_and_prepare(self, dl_manager, download_config=None) -> None:
    lines: dict[str, list[list[dict[str, Any]]]] = {}  # of the shards of a split
    for line in self._lines:
      shards = lines.setdefault(line["split"], [[]])
      if sum(clip["frames"] for each in shards[-1] for clip in each["clips"]) >= SHARD_FRAMES:
        shards.append([])
      shards[-1].append(line)
    templates = {split: self._get_filename_template(split_name=split) for split in lines}
    paths = {
      split: [templates[split].sharded_filepath(shard_index=k, num_shards=len(shards)) for k in range(len(shards))]
      for split, shards in lines.items()
    }
    units = [(path.name, part) for split in lines for path, part in zip(paths[split], lines[split], strict=True)]
    target = f"{self._url}/{_place(self._prepared).as_posix()}" if self._url else str(self.data_dir)
    source = self._url or str(self._prepared)
    work = functools.partial(_write_shard, stamp=self._stamp, source=source, target=target)
    # Of little footage every split is one shard, for which no process is started.
    several = self._run is not None and len(units) > len(lines)
    written = dict(self._run(work, units, lost=_lost_shard) if several else map(work, units))
    infos = []
    for split in lines:
      counts, sizes = zip(*(written[path.name] for path in paths[split]), strict=True)
      infos.append(
        tfds.core.SplitInfo(
          name=split, shard_lengths=list(counts), num_bytes=sum(sizes), filename_template=templates[split]
        )
      )
    self.info.set_splits(tfds.core.splits.SplitDict(infos))


def _write_shard(
  unit: tuple[str, Sequence[Mapping[str, Any]]], *, stamp: Mapping[str, Any], source: str, target: str
) -> tuple[str, tuple[int, int]]:
  """Writes the clips of some lines of the manifest from `source` into `target`, which are folders or URLs.

  `unit`: the name of the shard, and the lines. Returns the name, and how many records and bytes of them it has.
  """
  name, lines = unit

  def examples() -> Iterator[dict[str, Any]]:
    for line in lines:
      with storage.fetched(f"{source}/clips/{line['folder']}") as folder:
        for clip in line["clips"]:
          yield _example(folder / f"{clip['number']:02d}", line, clip, stamp)

  with contextlib.ExitStack() as stack:
    if storage.is_url(target):
      path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="synclipmae-")), name)
    else:
      path = stack.enter_context(tfds.core.utils.incomplete_file(epath.Path(target, name)))
    sizes = write_shard(path, _features(), examples(), named=f"{target}/{name}")
    if storage.is_url(target):
      storage.send(path, f"{target}/{name}")
  return name, (len(sizes), sum(sizes))


def write_shard(
  path: str | os.PathLike,
  features: tfds.features.FeaturesDict,
  examples: Iterable[Mapping[str, Any]],
  *,
  named: str | None = None,
) -> list[int]:
  """Writes examples as they come; returns the bytes of each. Raises InputError with `named` in the place of `path`."""
  serializer, sizes = ExampleSerializer(features.get_serialized_info()), []
  try:
    writer = ArrayRecordWriter(os.fspath(path), "group_size:1")
    for example in examples:
      content = serializer.serialize_example(features.encode_example(example))
      writer.write(content)
      sizes.append(len(content))
    writer.close()
  except InputError:
    raise
  except (RuntimeError, ValueError) as error:  # of ArrayRecord, on a full disk too
    raise InputError(f"{named or path} cannot be written ({error})") from error
  return sizes


def _lost_shard(unit: tuple[str, Any], reason: str) -> None:
  raise InputError(f"writing {unit[0]} ended the process that wrote it ({reason})")


def _example(stem: Path, line: Mapping[str, Any], clip: Mapping[str, Any], stamp: Mapping[str, Any]) -> dict[str, Any]:
  """The record of one clip; `stem`: its files without suffix."""
  frames, start, offset = clip["frames"], clip["start"], clip.get("offset", 0)
  try:
    mp4, flac, arrays = read_clip(stem, offset)
  except InputError as error:
    raise InputError(f"clip {clip['key']} is damaged ({error}): {_MEND}") from error
  known = labels.cut(line, start=start, frames=frames, whole=clip["whole"], offset=offset)
  example = {
    "key": clip["key"],
    **{name: line[name] for name in ("corpus", "split", "identity", "split_group")},
    **{name: json.dumps(value) if name in _JSON else value for name, value in known.items()},
    "n_frames": frames,
    "mp4": mp4,
    "flac": flac,
    **{name: arrays[name] for name in ("face_box", "mouth_box", "landmarks")},
    "landmark_schema": str(arrays["landmark_schema"]),
    "lag": line["lag"] or 0,
    "has_lag": int(line["lag"] is not None),
    "truth": arrays.get("truth", np.zeros((frames, 0), np.float32)),
    "truth_names": json.dumps(arrays.get("truth_names", np.array([])).tolist()),
    "provenance": json.dumps({**line["provenance"], "start_frame": start, "corrected_offset": offset}),
    "preprocessing": json.dumps(stamp),
  }
  _validate(example)
  return example


def _validate(example: Mapping[str, Any]) -> None:
  """Raises InputError for an invalid record, before TFDS raises an error that prints the whole record."""
  frames = example["n_frames"]
  for name in ("face_box", "mouth_box", "landmarks", "truth"):
    value = example[name]
    if len(value) != frames or value.dtype != np.float32 or not np.isfinite(value).all():
      raise InputError(
        f"clip {example['key']}: {name} is {value.dtype} {value.shape}, expected finite float32 with {frames} rows: "
        + _MEND
      )
  if not example["mp4"] or not example["flac"]:
    raise InputError(f"clip {example['key']} is empty: {_MEND}")


def write_records(
  prepared: str | os.PathLike, *, stamp: Mapping[str, Any], url: str = "", run: Engine | None = None
) -> Path | str:
  """Writes the accepted clips of `prepared`/manifest.jsonl, unless written already, and returns their folder.

  `run`: an engine (`data.engines`), which writes several shards at once. `url`: what `prepared` is the mirror of
  (`data.storage`); the records go there.
  """
  prepared = Path(prepared)
  place = _place(prepared)
  folder = prepared / "records" / _manifest_hash(prepared)
  if made := not (prepared / place / "features.json").exists():
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed run
  builder = Clips(prepared=prepared, stamp=stamp, url=url, run=run, data_dir=folder, file_format="array_record")
  written = write(builder, folder)
  if not url:
    return written
  if made:
    storage.send(written, f"{url}/{place.as_posix()}", last="features.json", replace=False)
  return f"{url}/{place.as_posix()}"


def write(builder: tfds.core.DatasetBuilder, folder: Path) -> Path:
  """Writes the records of a builder into `folder`, unless written already, and returns their folder."""
  if not Path(builder.data_dir).exists():
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed run
  tfds.disable_progress_bar()
  # TFDS prints to stdout, which belongs to the caller, and creates a download folder.
  with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as downloads:
    builder.download_and_prepare(download_dir=downloads)
  return Path(builder.data_dir)


def _place(prepared: Path) -> Path:
  """Where below `prepared` the records of its manifest are."""
  return Path("records", _manifest_hash(prepared), Clips.name, str(Clips.VERSION))


def _manifest_hash(prepared: Path) -> str:
  return hashlib.sha256((prepared / "manifest.jsonl").read_bytes()).hexdigest()[:_HASH]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Records:
  """The records of one split: random access to decoded dicts (texts as str, JSON parsed, arrays as in the schema)."""

  directory: Path
  split: str
  keys: Sequence[str]  # of the records
  n_frames: np.ndarray  # int [number of records]
  identities: Sequence[str] | None  # of the subjects; None in records that do not list them
  preprocessing: Mapping[str, Any]
  vocabularies: Mapping[str, Sequence[str]]  # of `labels.VOCABULARIES`, where the corpus has such labels
  made_of: Mapping[str, str]  # of clips: the hash of their manifest; of features: see `data.features`
  _source: Any = dataclasses.field(repr=False)

  def __len__(self) -> int:
    return len(self.n_frames)

  def __getitem__(self, index: int) -> dict[str, Any]:
    try:
      record = dict(self._source[int(index)])
    except RuntimeError as error:  # checksum errors of ArrayRecord
      raise _damaged(self.directory, str(error)) from error
    texts = [name for name in _TEXTS if isinstance(record.get(name), bytes)]
    record |= {name: record[name].decode("utf-8", "surrogateescape") for name in texts}
    record |= {name: json.loads(record[name]) for name in _JSON if name in texts}
    record |= {name: tuple(Segment(*row) for row in record[name]) for name in labels.SEGMENTS if name in texts}
    record |= {
      name: tuple(record[name]) for name in ("actions", "appearance") if name in texts and record[name] is not None
    }
    return record


def _damaged(path: Path, reason: str) -> InputError:
  maker = "make the features" if path.parent.name == FEATURES else "run `synclipmae prepare`"
  return InputError(f"{path} is damaged ({reason}): delete it and {maker} again")


def find_records(directory: str | os.PathLike) -> Path:
  """The version folder of the records in `directory`. Raises InputError if there is none or more than one.

  `directory` is one written by `prepare` (the records are those of its manifest, or the only ones), its folder
  `records`, one written by `features.write_features`, or a version folder.
  """
  directory = Path(directory)
  if (directory / "features.json").exists():
    return directory
  root = directory if directory.name == "records" else directory / "records"
  # The records of the manifest, or of any without a manifest. Incomplete folders have another name.
  manifest = _manifest_hash(root.parent) if (root.parent / "manifest.jsonl").exists() else "*"
  number = "[0-9].[0-9].[0-9]"
  versions = sorted(root.glob(f"{manifest}/{Clips.name}/{number}/features.json"))
  versions = versions or sorted(directory.glob(f"*/{FEATURES}/{number}/features.json"))
  if len(versions) == 1:
    return versions[0].parent
  if versions:
    raise InputError(f"{root} contains {len(versions)} versions and no manifest: pass the folder of one version")
  raise InputError(
    f"there are no records in {directory}: write them with `synclipmae prepare --raw DIR --out {directory}`"
  )


def open_records(directory: str | os.PathLike, *, split: str) -> Records:
  """Opens the records of a split; see `find_records` for `directory`. Raises InputError for a split that is missing."""
  path = find_records(directory)
  try:
    builder = tfds.builder_from_directory(path)
    metadata = json.loads((path / "metadata.json").read_text())
  except Exception as error:  # JSON, protobuf and TFDS have no common error
    raise _damaged(path, str(error)) from error
  if builder.name == Clips.name and builder.version != Clips.VERSION:
    raise InputError(
      f"{path} contains records of version {builder.version}, but version {Clips.VERSION} is required: run the same"
      " `synclipmae prepare` again, which keeps the clips and writes new records"
    )
  if split not in builder.info.splits:
    raise InputError(f"{path} has no split {split!r}: it has {', '.join(builder.info.splits)}")
  source = builder.as_data_source(split=split)
  lengths = np.array(metadata["n_frames"][split])
  if len(lengths) != len(source):
    raise _damaged(path, f"{len(source)} records, {len(lengths)} expected")
  return Records(
    directory=path, split=split, n_frames=lengths, keys=metadata["keys"][split], _source=source,
    identities=metadata.get("identities", {}).get(split),
    **{name: metadata[name] for name in ("preprocessing", "vocabularies", "made_of")},
  )  # fmt: skip
