"""Names of streams in messages, and the metadata that a copy has lost."""

from __future__ import annotations

import os
from collections.abc import Mapping

from synclipmae_jax.data.media.mp4_boxes import sample_entry

# Every muxer writes these for its own file.
_OF_THE_FILE = frozenset({
  "major_brand", "minor_version", "compatible_brands", "encoder", "handler_name", "vendor_id", "duration",
  "creation_time", "timecode", "software",
})  # fmt: skip


def stream_name(stream, path: str | os.PathLike) -> str:
  """ "audio aac", "audio apac", "data timecode": the codec, or its name in the file if FFmpeg does not know it."""
  if stream.codec_context is not None:
    codec = stream.codec_context.name
  elif "timecode" in stream.metadata:
    codec = "timecode"
  else:
    codec = sample_entry(path, stream.index) or getattr(stream, "name", None) or ""
  return f"{stream.type} {codec}".strip()


def described(metadata: Mapping[str, str]) -> dict[str, str]:
  """The metadata of a file that describe its content."""
  return {key: value for key, value in metadata.items() if key.lower() not in _OF_THE_FILE}


def lost_keys(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
  """Keys of a file's metadata that a copy does not have. Case is ignored: Matroska writes capitals."""
  kept = {key.lower() for key in after}
  return [key for key in described(before) if key.lower() not in kept]
