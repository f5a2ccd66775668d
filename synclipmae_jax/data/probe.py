"""What `prepare` would find in a folder, by the names and the headers of its files: nothing is decoded or written."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import av
from tqdm import tqdm

from synclipmae_jax.data import corpora, labels, storage
from synclipmae_jax.data.clips import MAX_UPSCALE, Settings
from synclipmae_jax.data.corpora import SourceItem
from synclipmae_jax.data.media.containers import SUFFIXES, open_media, video_stream
from synclipmae_jax.types import FPS, InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
  """What the header of a video file declares; 0 where it declares nothing."""

  seconds: float
  fps: float
  width: int  # with square pixels, before a rotation
  height: int
  sample_rate: int


def probe(
  raw: str | os.PathLike, *, corpus: str = "auto", split: str = "hash", settings: Settings | None = None,
  workers: int = 1, progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
  """The corpus, files, splits, labels, sizes and rates of a folder, and what would be refused at once; JSON-ready.

  Whether a file that is not refused here yields a clip depends on its face and its sound. Raises InputError for a
  wrong argument or a folder without files.
  """
  if storage.is_url(raw):
    raise InputError(f"{raw} is a URL, whose files can only be probed where they are: mount it and name the folder")
  settings, raw = settings or Settings(), Path(os.path.realpath(raw))
  if not raw.is_dir():
    raise InputError(f"{raw} is not a folder")
  if workers < 1:
    raise InputError(f"the number of workers must be at least 1, not {workers}")
  items = list(corpora.load(corpus, split=split)(raw))
  if not items:
    raise InputError(f"there is no file in {raw}")
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    read = pool.map(lambda item: _header_or_reason(item, settings), items)
    found = list(tqdm(read, total=len(items), desc="probe", unit="file", disable=not progress))
  headers = [(item, header) for item, header in zip(items, found, strict=True) if isinstance(header, Header)]
  return {
    "corpus": ", ".join(dict.fromkeys(item.corpus for item in items)),
    "files": len(items),
    "readable": len(headers),
    "seconds": round(sum(header.seconds for _, header in headers), 2),
    "splits": _splits(headers),
    "resolutions": _counts(f"{header.width} x {header.height}" for _, header in headers),
    "fps": _counts(f"{header.fps:.5g}" for _, header in headers),
    "sample_rates": _counts(str(header.sample_rate) for _, header in headers),
    "labelled": {name: sum(bool(getattr(item, name)) for item, _ in headers) for name in labels.OF_FILE},
    "labels": {name: _counts(_names(headers, name)) for name in labels.VOCABULARIES},
    "reasons": {item.key: each for item, each in zip(items, found, strict=True) if not isinstance(each, Header)},
  }


def read_header(item: SourceItem, settings: Settings) -> Header:
  """Raises InputError with the reason for which `prepare` would refuse the file without decoding it."""
  if item.path.suffix.lower() not in SUFFIXES:
    raise InputError(f"it is not a video file ({', '.join(SUFFIXES)})")
  if os.path.exists(item.path) and not os.path.isfile(item.path):  # opening a pipe would block
    raise InputError("it is not a regular file")
  with open_media(item.path) as container:
    stream, tracks = video_stream(container), container.streams.audio
    if not tracks and item.sound_path is None:
      raise InputError("it has no sound track")
    if tracks and settings.audio_track is not None and settings.audio_track > len(tracks):
      raise InputError(f"it has {len(tracks)} sound tracks: there is no track {settings.audio_track}")
    if stream.duration is not None:
      seconds = float(stream.duration * stream.time_base)
    else:
      seconds = (container.duration or 0) / av.time_base
    header = Header(
      seconds=max(seconds, 0.0),
      fps=float(stream.average_rate or stream.guessed_rate or 0),
      width=round(stream.width * (stream.sample_aspect_ratio or 1)),
      height=stream.height,
      sample_rate=(tracks[0].rate or 0) if tracks else 0,
    )
  if seconds > 0 and round(seconds * FPS) + 1 < round(settings.min_seconds * FPS):  # of what is declared, roughly
    raise InputError(f"it is too short: {seconds:.2f} s, {settings.min_seconds:g} s are needed")
  if settings.size > MAX_UPSCALE * min(header.width, header.height):
    raise InputError(f"its picture of {header.width} x {header.height} is too small for clips of {settings.size}")
  return header


def _header_or_reason(item: SourceItem, settings: Settings) -> Header | str:
  try:
    return read_header(item, settings)
  except InputError as error:
    return str(error)
  except Exception as error:  # an unforeseen error affects one file
    return f"unexpected {type(error).__name__}: {error}"


def _splits(headers: Sequence[tuple[SourceItem, Header]]) -> dict[str, dict[str, Any]]:
  found = {}
  for split in ("train", "val", "test", *dict.fromkeys(item.split for item, _ in headers)):
    of_split = [(item, header) for item, header in headers if item.split == split]
    if of_split:
      found[split] = {
        "files": len(of_split),
        "groups": len({item.split_group for item, _ in of_split}),
        "seconds": round(sum(header.seconds for _, header in of_split), 2),
      }
  return found


def _counts(values: Iterable[str]) -> dict[str, int]:
  return dict(Counter(values).most_common())


def _names(headers: Sequence[tuple[SourceItem, Header]], kind: str) -> Iterable[str]:
  """The labels of one kind of all files, those with times once a file."""
  for item, _ in headers:
    known = getattr(item, kind)
    names = [known] if isinstance(known, str) else known or ()
    timed = getattr(item, labels.TIMED[kind]) if kind in labels.TIMED else ()
    yield from {*filter(None, names), *(segment.label for segment in timed)}
