"""The lips of a video file without its sound: the vocal tokens of every face, in one pass and constant memory.

The tokens are those of `stream`, at the first look. A file without sound can be read too.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
from collections.abc import Callable, Generator, Iterator

import numpy as np

from synclipmae_jax.data.faces.follower import LOOKAHEAD
from synclipmae_jax.data.faces.sources import open_faces
from synclipmae_jax.data.media import video
from synclipmae_jax.inference.embedder import Embedder
from synclipmae_jax.inference.stream import Cut, cut_faces, in_thread, probe_file, short_side_of
from synclipmae_jax.types import FPS, InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lips:
  """One face of a file at 25 frames/s; nan in frames without it."""

  vocal: np.ndarray  # float32 [T, D]
  face_box: np.ndarray  # float32 [T, 4] fractions of the picture

  @property
  def seen(self) -> int:
    """Number of frames with the face."""
    return int(np.isfinite(self.vocal[:, 0]).sum())


def read_lips(
  model: Embedder,
  path: str | os.PathLike,
  *,
  faces: str = "auto",
  progress: Callable[[float, float], None] | None = None,
) -> tuple[list[Lips], tuple[str, ...]]:
  """The faces of a file, those seen in most frames first, and notes of how it was read.

  `progress(reached, length)` is called with seconds; the length is 0 if the file does not state it. Raises InputError,
  also if there is no face.
  """
  info = probe_file(path, silent=True)
  source, told = open_faces(path, faces, info=info)
  notes = [*info.notes, *told]
  length = max(info.end - float(info.origin), 0.0)
  places: dict[int, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
  count = 0
  pictures = video.read_frames(path, short_side=short_side_of(info, model.image_size), notes=notes)
  with contextlib.closing(in_thread(pictures, ahead=16)) as pictures:
    cuts = _cuts(source, pictures, model, info)
    with contextlib.closing(in_thread(cuts, ahead=2)) as cuts:
      for cut in cuts:
        vocal = model.encode_lips(cut.frames, face_box=cut.face_box, mouth_box=cut.mouth_box)
        for number in set(cut.face.tolist()):
          mine = cut.face == number
          rows = cut.row[mine]
          places.setdefault(number, []).append((cut.start + rows, vocal[mine], cut.tracks[number].box[rows]))
        count = cut.start + cut.count
        if progress is not None:
          progress(count / FPS, length)
  if not places:
    raise InputError("no face is found in it")
  found = [_joined(parts, count) for parts in places.values()]
  return sorted(found, key=lambda lips: -lips.seen), tuple(notes)


def _cuts(
  source, pictures: Iterator[video.Frame], model: Embedder, info: video.MediaInfo
) -> Generator[Cut, None, None]:
  start, held, ended = 0, collections.deque(), False
  while not ended or held:
    while not ended and len(held) < model.block_frames + LOOKAHEAD:
      if (frame := next(pictures, None)) is None:
        ended = True
        break
      source.see(frame)
      held.append(frame.image)
    if held:
      images = [held.popleft() for _ in range(min(model.block_frames, len(held)))]
      yield cut_faces(source, images, start, np.zeros(0, np.float32), info=info, size=model.image_size)
      start += len(images)


def _joined(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]], count: int) -> Lips:
  rows, vocal, box = (np.concatenate(each) for each in zip(*parts, strict=True))
  placed = [np.full((count, x.shape[1]), np.nan, np.float32) for x in (vocal, box)]
  for whole, part in zip(placed, (vocal, box), strict=True):
    whole[rows] = part
  return Lips(vocal=placed[0], face_box=placed[1])
