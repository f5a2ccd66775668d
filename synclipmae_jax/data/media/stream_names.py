"""What the streams of a file are called in messages, and what of a file's description a copy has lost."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping

# Written by every muxer for its own file: which brand, which program.
_OF_THE_FILE = frozenset({
  "major_brand", "minor_version", "compatible_brands", "encoder", "handler_name", "vendor_id", "duration",
  "creation_time", "timecode", "software",
})  # fmt: skip


def stream_name(stream, path: str | os.PathLike) -> str:
  """"audio aac", "audio apac", "data timecode": the codec, or where FFmpeg knows none what the file calls it."""
  if stream.codec_context is not None:
    codec = stream.codec_context.name
  elif "timecode" in stream.metadata:
    codec = "timecode"
  else:
    codec = _sample_entry(path, stream.index) or getattr(stream, "name", None) or ""
  return f"{stream.type} {codec}".strip()


def described(metadata: Mapping[str, str]) -> dict[str, str]:
  """What of a file's metadata describes its content."""
  return {key: value for key, value in metadata.items() if key.lower() not in _OF_THE_FILE}


def lost_keys(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
  """Keys of a file's metadata that a copy does not have. Matroska writes them in capitals."""
  kept = {key.lower() for key in after}
  return [key for key in described(before) if key.lower() not in kept]


def _sample_entry(path: str | os.PathLike, track: int) -> str:
  """The four letters by which an mp4 or mov names the codec of a track; "" elsewhere."""
  try:
    with open(path, "rb") as file:
      (moov,) = (box for name, box in _boxes(file, 0, os.fstat(file.fileno()).st_size) if name == b"moov")
      box = [box for name, box in _boxes(file, *moov) if name == b"trak"][track]
      for wanted in (b"mdia", b"minf", b"stbl", b"stsd"):
        box = dict(_boxes(file, *box))[wanted]
      file.seek(box[0] + 12)  # version and flags, the count, the size of the first entry
      letters = file.read(4).decode("ascii").strip()
      return letters if letters.isprintable() else ""
  except (OSError, ValueError, LookupError, struct.error):
    return ""


def _boxes(file, begin: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
  """(name, (begin, end) of the content) of the boxes in a stretch of an mp4 or mov."""
  while begin + 8 <= end:
    file.seek(begin)
    size, name = struct.unpack(">I4s", file.read(8))
    head = 8
    if size == 1:
      size, head = struct.unpack(">Q", file.read(8))[0], 16
    size = size or end - begin
    if size < head:
      return
    yield name, (begin + head, min(begin + size, end))
    begin += size
