"""Files that FFmpeg reads completely only after some bytes are replaced. The bytes are replaced while reading.

There are two kinds. An AVI file whose index points to wrong places is read chunk by chunk, as players do, if the index
is hidden. Matroska files joined end to end are read to the end if the lengths of their segments are unknown.
"""

from __future__ import annotations

import io
import mmap
import os
import struct
from collections.abc import Mapping

_PROBES = 64  # entries of an index that are compared with their chunks
_SIGNATURES = {  # first bytes of a file, by the name of its demuxer
  "mov,mp4,m4a,3gp,3g2,mj2": b"ftyp",
  "flv": b"FLV\x01",
  "asf": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
}
_MXF_HEADER = bytes.fromhex("060e2b34020501010d0102010102")  # SMPTE 377: the key of a header partition pack
_OGG_PAGE = b"OggS\x00"  # a byte of flags follows: 1 a packet goes on, 2 a stream begins
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


class PatchedFile(io.RawIOBase):
  """A read-only file with some bytes replaced. `patches`: new bytes by their place."""

  def __init__(self, path: str | os.PathLike, patches: Mapping[int, bytes]):
    self.name = os.path.abspath(path)
    self._file, self._patches = open(path, "rb"), patches

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    return self._file.seek(offset, whence)

  def tell(self) -> int:
    return self._file.tell()

  def read(self, size: int = -1) -> bytes:
    start = self._file.tell()
    data = bytearray(self._file.read(size))
    for at, new in self._patches.items():
      for offset, byte in enumerate(new, at - start):
        if 0 <= offset < len(data):
          data[offset] = byte
    return bytes(data)

  def close(self) -> None:
    self._file.close()
    super().close()


def without_bad_index(path: str | os.PathLike) -> dict[int, bytes]:
  """Patches that hide the index of an AVI file if it does not point to chunks; none if it does or is absent."""
  with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
    at, movi = 12, 0
    while data[at : at + 4] != b"idx1":  # chunk by chunk: RIFF, AVI, LIST hdrl, LIST movi, idx1
      if at + 12 > len(data):
        return {}
      movi = at + 8 if data[at + 8 : at + 12] == b"movi" else movi
      at += 8 + -(-struct.unpack_from("<I", data, at + 4)[0] // 2) * 2
    count = min(struct.unpack_from("<I", data, at + 4)[0], len(data) - at - 8) // 16
    step = max(1, count // _PROBES)
    entries = [struct.unpack_from("<4sIII", data, at + 8 + 16 * k) for k in range(0, count, step)]
    for base in (movi, 0):  # offsets count from `movi`, in some files from the start
      places = [(name, base + offset, size) for name, _, offset, size in entries]
      if all(data[place : place + 8] == name + struct.pack("<I", size) for name, place, size in places):
        return {}
    return {at: b"JUNK"}


def joined_segments(path: str | os.PathLike, *, after: int) -> dict[int, bytes]:
  """Patches that make the segment lengths of a Matroska file unknown, if another file begins after place `after`."""
  with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
    if data.find(_EBML, after) < 0:
      return {}
    patches, at = {}, data.find(_EBML)
    while at >= 0:
      size, length = _size(data, at + 4)
      segment = at + 4 + length + size
      if length and data[segment : segment + 4] == _SEGMENT:
        _, length = _size(data, segment + 4)
        patches[segment + 4] = (2 ** (7 * length) - 1 | 1 << 7 * length).to_bytes(length, "big")  # unknown
      at = data.find(_EBML, at + 4)
    return patches


def joined_behind(path: str | os.PathLike, *, name: str, after: int) -> bool:
  """Whether another file of the format begins after place `after`, which FFmpeg and players do not read."""
  signature = _SIGNATURES.get(name)
  if signature is None:
    return False
  with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
    return data.find(signature, after) >= 0


def joined_at(path: str | os.PathLike, *, name: str) -> int | None:
  """The place in an Ogg or MXF file at which another file begins; None if there is none.

  FFmpeg reads the packets of the second file and cannot decode them. In Ogg the first pages of all streams precede any
  other page. An MXF file has one header partition.
  """
  if name not in ("ogg", "mxf"):
    return None
  with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
    if name == "mxf":
      place = data.find(_MXF_HEADER, data.find(_MXF_HEADER) + 1)
    else:
      others = [at for at in (data.find(_OGG_PAGE + bytes([flags])) for flags in (0, 1)) if at >= 0]
      place = data.find(_OGG_PAGE + b"\x02", min(others, default=len(data)))
  return place if place >= 0 else None


def _size(data: mmap.mmap, at: int) -> tuple[int, int]:
  """(value, length in bytes) of an EBML number; (0, 0) if there is none."""
  if at >= len(data) or not data[at]:
    return 0, 0
  length = 9 - data[at].bit_length()
  return int.from_bytes(data[at : at + length], "big") & (1 << 7 * length) - 1, length
