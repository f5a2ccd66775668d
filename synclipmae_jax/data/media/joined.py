"""A picture and its sound from two files as one file: packets are copied, and each keeps the times of its own file."""

from __future__ import annotations

import contextlib
import errno
import heapq
import os
from collections.abc import Iterator
from pathlib import Path

import av

from synclipmae_jax.data.media.containers import open_media, video_stream
from synclipmae_jax.types import InputError

_NOT_OF_THE_FILE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


def has_sound(path: str | os.PathLike) -> bool:
  """Whether a video file has a sound track."""
  with open_media(path) as container:
    return len(container.streams.audio) > 0


def join(picture: str | os.PathLike, sound: str | os.PathLike, out: Path) -> None:
  """Writes the picture of one file and the sound of another to the Matroska file `out`.

  Second 0 of both files is one moment. The sound is in a container of `media.containers`, of which M4A is one. Raises
  InputError if a file cannot be read.
  """
  name = os.path.basename(sound)
  with open_media(picture) as pictures, contextlib.ExitStack() as stack:
    try:
      sounds = stack.enter_context(open_media(sound))
      if (heard := sounds.streams.best("audio")) is None:
        raise InputError("it has no sound track")
    except InputError as error:
      raise InputError(f"its sound, {name}: {error}") from error
    seen = video_stream(pictures)
    try:
      with av.open(os.fspath(out), "w", format="matroska") as target:
        written = [target.add_stream_from_template(stream, opaque=True) for stream in (seen, heard)]
        packets = [_timed(pictures, seen, written[0]), _timed(sounds, heard, written[1])]
        for _, _, packet in heapq.merge(*packets):
          target.mux(packet)
    except av.error.FFmpegError as error:
      if error.errno in _NOT_OF_THE_FILE:  # of the disk: `open_media` would take it for damage
        raise OSError(error.errno, error.strerror, os.fspath(out)) from error
      raise


def _timed(container, stream, target) -> Iterator[tuple[float, int, av.Packet]]:
  for packet in container.demux(stream):
    if packet.size and packet.dts is not None:
      time, packet.stream = float(packet.dts * packet.time_base), target
      yield time, packet.stream_index, packet
