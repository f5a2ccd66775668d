"""A video file as a stream of tokens: one pass, constant memory, any length.

One thread decodes, one tracks and crops the faces, the calling thread runs the model. Blocks are whole clips of the
model. The sound around a block is encoded with it, so that its tokens equal those of the whole file.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import os
import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

import av
import numpy as np

from synclipmae_jax.data.clips import crop_boxes
from synclipmae_jax.data.faces.follower import LOOKAHEAD
from synclipmae_jax.data.faces.sources import FaceSource, open_faces
from synclipmae_jax.data.faces.track import FaceTrack, crop_path
from synclipmae_jax.data.media import audio, video
from synclipmae_jax.inference.blocks import BlockEncoder, Embedding
from synclipmae_jax.types import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, InputError

_SHORT_SIDE = 360  # pixels of the pictures in memory; more if a model needs larger crops
_MAX_ASPECT = 2.5  # a more elongated picture is held smaller to bound memory
_MAX_STRIDE = 3  # frames between searches near a face that hardly moves
_MIN_CROP = 16  # pixels: a smaller face is not used


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaceBlock:
  """One face in one block of n frames; nan in frames without it."""

  box: np.ndarray  # float32 [n, 4] fractions of the picture
  identity: np.ndarray  # float32 [n, D]
  ambient: np.ndarray  # float32 [n, D]
  lips: np.ndarray  # float32 [n, looks * D], `Embedder.encode_frames`

  @property
  def vocal(self) -> np.ndarray:
    """float32 [n, D]: the lips at the first look, that of the crop itself."""
    return self.lips[:, : self.identity.shape[1]]

  @property
  def count(self) -> int:
    """Number of frames with the face."""
    return int(np.isfinite(self.vocal[:, 0]).sum())

  @classmethod
  def absent(cls, frames: int, *, width: int, looks: int = 1) -> FaceBlock:
    nothing = lambda size: np.full((frames, size), np.nan, np.float32)
    return cls(box=nothing(4), identity=nothing(width), ambient=nothing(width), lips=nothing(looks * width))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
  """Frames [start, start + count) of the 25 frames/s clock."""

  start: int
  count: int
  waveform: np.ndarray  # float32 [640 * count]
  audio: np.ndarray  # float32 [count, D]
  faces: dict[int, FaceBlock]  # by number


class TokenStream:
  """Iterates over the `Block`s of a file, once. `info` is available at once; `notes` are complete at the end.

  `audio_track`: number of the sound track, counted from 1 (`data.media.sound_track`).
  """

  def __init__(self, model: BlockEncoder, path: str | os.PathLike, *, faces: str, audio_track: int | None = None):
    self._model, self._path = model, path
    self.info = probe_file(path, audio_track=audio_track)
    self._source, notes = open_faces(path, faces, info=self.info, max_stride=_MAX_STRIDE)
    self._notes = [*self.info.notes, *notes]

  @property
  def notes(self) -> tuple[str, ...]:
    """What the user must know of how the file was read."""
    return tuple(self._notes)

  def __iter__(self) -> Iterator[Block]:
    with contextlib.closing(in_thread(self._cuts(), ahead=2)) as cuts:
      for cut in cuts:
        yield self._tokens(cut)

  def _cuts(self) -> Generator[Cut, None, None]:
    """The input of the model, block by block."""
    short_side = short_side_of(self.info, self._model.image_size)
    pictures = video.read_frames(self._path, short_side=short_side, notes=self._notes)
    with contextlib.closing(in_thread(pictures, ahead=16)) as pictures:  # parallel to the search for faces
      yield from self._cut_all(pictures)

  def _cut_all(self, pictures: Iterator[video.Frame]) -> Iterator[Cut]:
    model, info = self._model, self.info
    sound = audio.Track(self._path, origin=info.origin, sound=info.sound, notes=self._notes)
    size, ahead = model.block_frames, max(LOOKAHEAD, model.audio_context)
    start, held, ended = 0, collections.deque(), False
    while not ended or held:
      while not ended and len(held) < size + ahead:
        if (frame := next(pictures, None)) is None:
          ended = True
          break
        self._source.see(frame)
        held.append(frame.image)
      if held:
        count = min(size, len(held))
        heard = self._hear(sound, start, end=start + len(held) if ended else None)
        images = [held.popleft() for _ in range(count)]
        yield cut_faces(self._source, images, start, heard, info=info, size=model.image_size)
        start += count
    self._check_end(start)

  def _hear(self, sound: audio.Track, start: int, *, end: int | None) -> np.ndarray:
    """The sound of a block and its context; zero before the first picture and after the last."""
    context = self._model.audio_context
    first = SAMPLES_PER_FRAME * (start - context)
    heard = sound.read(first, SAMPLES_PER_FRAME * (start + self._model.block_frames + context))
    heard[: max(0, -first)] = 0
    if end is not None:
      heard[max(0, SAMPLES_PER_FRAME * end - first) :] = 0
    return heard

  def _check_end(self, frames: int) -> None:
    """Raises InputError if both tracks end early. A single track is checked while it is read."""
    end = float(self.info.origin) + frames / FPS
    try:
      video.check_length("footage", end=end, declared=self.info.end)
    except InputError:  # unless the sound continues
      heard = max(first + len(samples) for first, samples in self._chunks())
      end = max(end, float(self.info.origin) + heard / SAMPLE_RATE)
      video.check_length("footage", end=end, declared=self.info.end)

  def _chunks(self) -> Iterator[tuple[int, np.ndarray]]:
    return audio.read_chunks(self._path, origin=self.info.origin, sound=self.info.sound)

  def _tokens(self, cut: Cut) -> Block:
    model, context = self._model, SAMPLES_PER_FRAME * self._model.audio_context
    tokens = model.encode_sound(cut.heard)[: cut.count]
    nowhere = dict(width=tokens.shape[1], looks=len(model.looks))
    found = {number: FaceBlock.absent(cut.count, **nowhere) for number in cut.tracks}
    if len(cut.frames):
      seen, lips = model.encode_frames(cut.frames, face_box=cut.face_box, mouth_box=cut.mouth_box)
      for number, face in found.items():
        mine = cut.face == number
        face.box[cut.row[mine]] = cut.tracks[number].box[cut.row[mine]]
        for own, tokens_of in ((face.identity, seen.identity), (face.ambient, seen.ambient), (face.lips, lips)):
          own[cut.row[mine]] = tokens_of[mine]
    waveform = cut.heard[context : context + SAMPLES_PER_FRAME * cut.count]
    return Block(start=cut.start, count=cut.count, waveform=waveform, audio=tokens, faces=found)


def probe_file(path: str | os.PathLike, **options: Any) -> video.MediaInfo:
  """`video.probe` of a file that may be anything. Raises InputError, also for a length that is beyond measure."""
  if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would block
    raise InputError("it is not a regular file")
  info = video.probe(path, **options)
  if (hours := (info.end - float(info.origin)) / 3600) > video.MAX_HOURS:
    raise InputError(f"it declares a length of {hours:.0f} hours, more than {video.MAX_HOURS}")
  return info


def short_side_of(info: video.MediaInfo, image_size: int) -> int:
  """Pixels of the short side of the pictures in memory."""
  aspect = max(info.width, info.height) / min(info.width, info.height)
  return round(max(_SHORT_SIDE, 3 * image_size) * math.sqrt(min(1, _MAX_ASPECT / aspect)))


def embed_file(
  model: BlockEncoder, path: str | os.PathLike, *, faces: str = "auto", audio_track: int | None = None
) -> Embedding:
  """Tokens of the face that is visible in most frames. Raises InputError."""
  return embed_stream(TokenStream(model, path, faces=faces, audio_track=audio_track))


def embed_stream(source: TokenStream) -> Embedding:
  """`embed_file` of an opened file."""
  blocks = list(source)
  seen = [number for block in blocks for number, face in block.faces.items() for _ in range(face.count)]
  if not seen:
    raise InputError("no face is found in it")
  most = max(sorted(set(seen)), key=seen.count)
  gap = FaceBlock.absent
  mine = [block.faces.get(most) or gap(block.count, width=block.audio.shape[1]) for block in blocks]
  joined = {
    name: np.concatenate([getattr(face, name) for face in mine]) for name in ("identity", "vocal", "ambient", "box")
  }
  audio = np.concatenate([block.audio for block in blocks])
  times = np.arange(len(audio)) / FPS
  return Embedding(face_box=joined.pop("box"), **joined, audio=audio, times=times, notes=source.notes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crops:
  """One face of a file at 25 frames/s, and its sound. A frame without the face shows the one before (or the first)."""

  frames: np.ndarray  # uint8 [T, S, S, 3]
  face_box: np.ndarray  # float32 [T, 4] fractions of the crop
  mouth_box: np.ndarray  # float32 [T, 4], -1 where unknown
  waveform: np.ndarray  # float32 [640 * T]
  missing: int  # how many of the T frames are without the face
  notes: tuple[str, ...]


def crop_file(
  model: BlockEncoder, path: str | os.PathLike, *, faces: str = "auto", audio_track: int | None = None, longest: int
) -> Crops:
  """The crops of the face that is visible in most of the first `longest` frames. Raises InputError."""
  source, cuts = TokenStream(model, path, faces=faces, audio_track=audio_track), []
  with contextlib.closing(source._cuts()) as found:
    for cut in found:
      cuts.append(cut)
      if cut.start + cut.count >= longest:
        break
  frames = min(longest, sum(cut.count for cut in cuts))
  numbers = np.concatenate([cut.face for cut in cuts])
  rows = np.concatenate([cut.start + cut.row for cut in cuts])
  if not (rows < frames).any():
    raise InputError("no face is found in it")
  values, counts = np.unique(numbers[rows < frames], return_counts=True)
  mine = np.flatnonzero((numbers == values[counts.argmax()]) & (rows < frames))
  mine = mine[rows[mine].argsort(kind="stable")]
  shown = mine[np.maximum(np.searchsorted(rows[mine], np.arange(frames), side="right") - 1, 0)]
  context = SAMPLES_PER_FRAME * model.audio_context
  heard = [cut.heard[context:][: SAMPLES_PER_FRAME * cut.count] for cut in cuts]
  joined = {
    name: np.concatenate([getattr(cut, name) for cut in cuts])[shown] for name in ("frames", "face_box", "mouth_box")
  }
  return Crops(
    **joined,
    waveform=np.concatenate(heard)[: SAMPLES_PER_FRAME * frames],
    missing=frames - len(mine),
    notes=source.notes,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
  """The m face crops of a block of `count` frames, all faces together, and its sound."""

  start: int
  count: int
  heard: np.ndarray  # float32, with the context
  tracks: dict[int, FaceTrack]
  face: np.ndarray  # int [m]: which face
  row: np.ndarray  # int [m]: which frame of the block
  frames: np.ndarray  # uint8 [m, S, S, 3]
  face_box: np.ndarray  # float32 [m, 4] fractions of the crop
  mouth_box: np.ndarray  # float32 [m, 4], -1 where unknown


def cut_faces(
  source: FaceSource, images: list[np.ndarray], start: int, heard: np.ndarray, *, info: video.MediaInfo, size: int
) -> Cut:
  height, width = images[0].shape[:2]
  small, scaler = dataclasses.replace(info, width=width, height=height), video.Scaler()
  tracks = source.take(start, start + len(images))
  face, row, frames = [], [], []
  boxes = {"face_box": [np.zeros((0, 4), np.float32)], "mouth_box": [np.zeros((0, 4), np.float32)]}
  for number, track in tracks.items():
    for a, b in runs(track.track >= 0):
      crop = crop_path(track.box[a:b] * np.tile([width, height], 2), width=width, height=height).round()
      if crop[0, 2] < _MIN_CROP:
        continue
      for t, (x, y, side) in enumerate(crop.astype(int), a):
        picture = np.ascontiguousarray(images[t][y : y + side, x : x + side])
        picture = scaler(av.VideoFrame.from_ndarray(picture, format="rgb24"), width=size, height=size, pixels="rgb24")
        frames.append(picture.to_ndarray())
      face += [number] * (b - a)
      row += range(a, b)
      placed = crop_boxes(track, a, b, crop, small)
      for name, parts in boxes.items():
        parts.append(placed[name])
  return Cut(
    start=start, count=len(images), heard=heard, tracks=tracks, face=np.array(face, int), row=np.array(row, int),
    frames=np.reshape(frames, (-1, size, size, 3)).astype(np.uint8),
    **{name: np.concatenate(parts) for name, parts in boxes.items()},
  )  # fmt: skip


def runs(true: np.ndarray) -> list[tuple[int, int]]:
  """[a, b) of the unbroken stretches."""
  edges = np.flatnonzero(np.diff(np.concatenate([[False], true, [False]]).astype(int)))
  return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


Item = TypeVar("Item")


def in_thread(items: Generator[Item, None, None], *, ahead: int) -> Generator[Item, None, None]:
  """`items`, made by another thread, which is at most `ahead` of them ahead; an exception there is raised here."""
  ready, stop = queue.Queue(ahead), threading.Event()

  def put(entry) -> bool:
    while not stop.is_set():
      try:
        ready.put(entry, timeout=0.1)
        return True
      except queue.Full:
        pass
    return False

  def work() -> None:
    try:
      with contextlib.closing(items):
        for item in items:
          if not put((item, None)):
            return
      put((None, None))
    except BaseException as error:
      put((None, error))

  thread = threading.Thread(target=work, daemon=True)
  thread.start()
  try:
    while True:
      item, error = ready.get()
      if error is not None:
        raise error
      if item is None:
        return
      yield item
  finally:
    stop.set()
    thread.join()
