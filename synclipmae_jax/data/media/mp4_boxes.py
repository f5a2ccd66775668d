"""What FFmpeg knows of an mp4 or mov and PyAV does not say, read from its boxes (ISO/IEC 14496-12)."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator


def sample_entry(path: str | os.PathLike, track: int) -> str:
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


def fragmented(path: str | os.PathLike) -> bool:
  """Whether a file is an mp4 in fragments, whose times do not come from one index; edit lists hide nothing between."""
  try:
    with open(path, "rb") as file:
      return any(name == b"moof" for name, _ in _boxes(file, 0, os.fstat(file.fileno()).st_size))
  except (OSError, struct.error):
    return False


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
