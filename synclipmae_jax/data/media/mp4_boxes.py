"""Codec names, fragments and edit lists of MP4 and MOV, read from the boxes (ISO/IEC 14496-12).

PyAV does not give them.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edit:
  """One entry of an edit list: a stretch of a track, and when it is presented. In seconds."""

  start: Fraction  # of the movie
  media: Fraction  # of the track: where the stretch begins
  length: Fraction
  rate: float


def edit_lists(path: str | os.PathLike) -> list[Sequence[Edit]]:
  """The edits of every track without the empty ones; () for a track without a list; [] for another format."""
  try:
    with open(path, "rb") as file:
      (moov,) = (box for name, box in _boxes(file, 0, os.fstat(file.fileno()).st_size) if name == b"moov")
      content = list(_boxes(file, *moov))
      movie = _timescale(file, dict(content)[b"mvhd"])
      return [_edits(file, box, movie) for name, box in content if name == b"trak"]
  except (OSError, ValueError, LookupError, ZeroDivisionError, struct.error):
    return []


def _edits(file, track: tuple[int, int], movie: int) -> Sequence[Edit]:
  boxes = dict(_boxes(file, *track))
  if b"edts" not in boxes or b"elst" not in (lists := dict(_boxes(file, *boxes[b"edts"]))):
    return ()
  scale = _timescale(file, dict(_boxes(file, *boxes[b"mdia"]))[b"mdhd"])
  file.seek(lists[b"elst"][0])
  version, count = struct.unpack(">B3xI", file.read(8))
  row = struct.Struct(">QqI" if version == 1 else ">IiI")
  count = max(0, min(count, (lists[b"elst"][1] - file.tell()) // row.size))
  edits, start = [], Fraction(0)
  for length, media, rate in row.iter_unpack(file.read(count * row.size)):
    if media >= 0:
      begin, lasts = Fraction(media, scale), Fraction(length, movie)
      edits.append(Edit(start=start, media=begin, length=lasts, rate=rate / 2**16))
    start += Fraction(length, movie)
  return tuple(edits)


def _timescale(file, box: tuple[int, int]) -> int:
  """Ticks a second, of a movie header or a media header."""
  file.seek(box[0])
  version = file.read(1)[0]
  file.seek(box[0] + (20 if version == 1 else 12))
  return struct.unpack(">I", file.read(4))[0]


def sample_entry(path: str | os.PathLike, track: int) -> str:
  """The four-letter codec name of a track of an MP4 or MOV; "" for other formats."""
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
  """Whether a file is a fragmented MP4. Its times do not come from one index."""
  try:
    with open(path, "rb") as file:
      return any(name == b"moof" for name, _ in _boxes(file, 0, os.fstat(file.fileno()).st_size))
  except (OSError, struct.error):
    return False


def _boxes(file, begin: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
  """(name, (begin, end) of the content) of the boxes in a stretch of an MP4 or MOV."""
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
