"""One file -> its clips (one face, one shot, sound throughout, cropped, on one clock), or the reason for its refusal.

A file is read twice, one picture in memory at a time: at reduced size to find the face, the cuts and the sound, then to
write the clips.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synclipmae_jax.data import quality
from synclipmae_jax.data.corpora import SourceItem
from synclipmae_jax.data.faces import litert
from synclipmae_jax.data.faces.sources import BACKENDS, SHORT_SIDE, detector, dominant, open_faces, search_stride
from synclipmae_jax.data.faces.speaker import choose_speakers
from synclipmae_jax.data.faces.track import CROP_RULE, FaceTrack, crop_path
from synclipmae_jax.data.media import audio, video
from synclipmae_jax.data.media.containers import SUFFIXES
from synclipmae_jax.data.media.joined import has_sound, join
from synclipmae_jax.data.media.scenes import SceneCuts
from synclipmae_jax.types import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, InputError

FACES = ("auto", *BACKENDS)
CLIP_FILES = (".mp4", ".flac", ".npz")  # of clip NN of a folder: NN.mp4, NN.flac, NN.npz
VERSION = 1  # of the output of this file: raising it makes prepared clips again
_LOOK = 256  # pixels of the short side, for finding faces and cuts
MAX_UPSCALE = 2.0  # a crop of fewer source pixels than half the size is refused
_UNHEARD = 2  # frames at an end that may lack sound: encoders trim it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings that determine the clips of a file. A change of any makes them again."""

  size: int = 256
  faces: str = "auto"
  min_seconds: float = 1.6
  max_seconds: float = 10.0
  audio_track: int | None = None  # number of the sound track, counted from 1; None: `choose_sound` chooses

  def __post_init__(self):
    if self.size < 32 or self.size % 2:
      raise InputError(f"the size must be an even number of pixels, at least 32, not {self.size}")
    if self.faces not in FACES:
      raise InputError(f"unknown face backend {self.faces!r}: choose one of {', '.join(FACES)}")
    if self.audio_track is not None and self.audio_track < 1:
      raise InputError(f"sound tracks are counted from 1, there is no track {self.audio_track}")
    if self.faces == "mediapipe":
      litert.check()
    if not 1 / FPS <= self.min_seconds <= self.max_seconds <= 10:
      seconds = f"{self.min_seconds:g} to {self.max_seconds:g}"
      raise InputError(f"clips must last {1 / FPS:g} <= min <= max <= 10 s, not {seconds}")

  @property
  def stamp(self) -> dict[str, Any]:
    """The preprocessing that a model trained on these clips depends on. Stored in records and checkpoints."""
    return {"size": self.size, "fps": FPS, "sample_rate": SAMPLE_RATE, "crop": CROP_RULE, "version": VERSION}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
  """The manifest entry of a file: facts of the source, and one entry a clip."""

  source: dict[str, Any]
  clips: list[dict[str, Any]]


def cut_file(item: SourceItem, settings: Settings, folder: Path, *, check: Callable[[], None]) -> Cut:
  """Writes the clips of a file into `folder`. Calls `check` at every frame; an exception of it stops the work.

  Raises InputError with the reason if the file yields no clip.
  """
  if item.path.suffix.lower() not in SUFFIXES:
    raise InputError(f"it is not a video file ({', '.join(SUFFIXES)})")
  # Path raises, unlike os.path, for a loop of links, a name too long with its new suffix, and a locked folder.
  if os.path.exists(item.path) and not os.path.isfile(item.path):  # opening a pipe would block
    raise InputError("it is not a regular file")
  path = _with_sound(item, folder)
  info, notes = video.probe(path, audio_track=settings.audio_track), []
  backend = backend_of(item, settings)
  source, _ = open_faces(path, backend, info=info, sidecar=item.faces_path)
  scenes, damaged = SceneCuts(), []
  small = video.read_frames(path, short_side=SHORT_SIDE.get(backend, _LOOK), notes=notes)
  speakers = functools.partial(
    choose_speakers, info=info, read=audio.Track(path, origin=info.origin, sound=info.sound).read
  )
  track = dominant(source, scenes.watch(_checked(small, check, damaged)), speakers=speakers)
  frames = len(track.box)
  heard = _heard(path, info, frames, notes)
  heard[damaged] = False
  segments = _segments(track.track, cuts=scenes.cuts, heard=heard, settings=settings)

  scale = np.tile([info.width, info.height], 2)
  crops = [crop_path(track.box[a:b] * scale, width=info.width, height=info.height).round() for a, b in segments]
  large = [settings.size <= MAX_UPSCALE * crop[0, 2] for crop in crops]
  if not any(large):
    side = max(crop[0, 2] for crop in crops)
    raise InputError(f"its face is too small: a crop of {side:.0f} pixels, for clips of {settings.size}")

  truth = _read_truth(item.truth_path)
  sound = audio.Track(path, origin=info.origin, sound=info.sound)
  pictures = _checked(video.read_frames(path), check, [])
  clips = []
  for (start, stop), crop in itertools.compress(zip(segments, crops, strict=True), large):
    stem = folder / f"{len(clips):02d}"
    sources = _write_pictures(stem.with_suffix(".mp4"), pictures, start, crop, size=settings.size)
    waveform = sound.read(start * SAMPLES_PER_FRAME, stop * SAMPLES_PER_FRAME)
    stem.with_suffix(".flac").write_bytes(audio.encode_flac(waveform))
    arrays: dict[str, Any] = crop_boxes(track, start, stop, crop, info)
    if truth:
      if len(truth["truth"]) <= sources[-1]:
        raise InputError(f"its truth file has {len(truth['truth'])} rows, fewer than the video has frames")
      arrays |= {"truth": truth["truth"][sources], "truth_names": truth["names"]}
    np.savez(stem.with_suffix(".npz"), landmark_schema=track.schema, **arrays)
    mp4, *rest = (stem.with_suffix(end).read_bytes() for end in CLIP_FILES)
    clips.append({
      "key": f"{item.key}#{start}", "number": len(clips), "start": start, "frames": stop - start,
      "whole": stop - start >= 0.95 * frames, "upscale": round(max(1.0, settings.size / float(crop[0, 2])), 2),
      "sha256": hashlib.sha256(b"".join([mp4, *rest])).hexdigest(),
      "quality": quality.measure(mp4, waveform, track[start:stop], info=info, stride=search_stride(backend)),
    })  # fmt: skip
  if path != item.path:
    path.unlink()
  facts = {field.name: getattr(info, field.name) for field in dataclasses.fields(info) if field.name != "sound"}
  notes = [*info.notes, *notes]
  facts |= {"origin": float(info.origin), "notes": notes, "frames": frames, "faces": backend}
  return Cut(source=facts, clips=clips)


def _with_sound(item: SourceItem, folder: Path) -> Path:
  """The file, or a joint one in `folder` if it has no sound track and its sound is another file."""
  if item.sound_path is None or has_sound(item.path):
    return item.path
  path = folder / "joint.mkv"
  join(item.path, item.sound_path, path)
  return path


def backend_of(item: SourceItem, settings: Settings) -> str:
  """The face backend for a file. `auto` is `precomputed` if the file has a `.faces.npz`."""
  if settings.faces != "auto":
    return settings.faces
  return "precomputed" if item.faces_path and os.path.exists(item.faces_path) else detector()[0]


def _checked(frames: Iterator[video.Frame], check: Callable[[], None], damaged: list[int]) -> Iterator[video.Frame]:
  """The same frames; adds the indices of damaged ones to `damaged`."""
  for frame in frames:
    check()
    if frame.damaged:
      damaged.append(frame.index)
    yield frame


def _write_pictures(
  path: Path, pictures: Iterator[video.Frame], start: int, crop: np.ndarray, *, size: int
) -> list[int]:
  """Writes the crops of frames [start, start + len(crop)), taken from the stream; returns their source frames."""
  sources = []
  with video.ClipWriter(path, size=size) as writer:
    for frame in pictures:
      if frame.index >= start:
        x, y, side = crop[frame.index - start].astype(int)
        writer.write(frame.image[y : y + side, x : x + side])
        sources.append(frame.source)
        if len(sources) == len(crop):
          break
  return sources


def _segments(
  track: np.ndarray, *, cuts: Sequence[int], heard: np.ndarray, settings: Settings
) -> list[tuple[int, int]]:
  """[start, stop) of the clips: one face, one shot, sound throughout; long stretches are divided into equal parts.

  If equal parts would be too short (all clips of one length), the end of a stretch is dropped.
  """
  shortest, longest = round(settings.min_seconds * FPS), round(settings.max_seconds * FPS)
  if len(track) < shortest:
    raise InputError(f"it is too short: {len(track)} frames at {FPS} frames/s, {shortest} are needed")
  if (track < 0).all():
    raise InputError("no face is found in it")
  state = np.where(heard, track, -1)
  edges = sorted({0, len(state), *cuts, *(np.flatnonzero(np.diff(state)) + 1).tolist()})
  runs = [(a, b) for a, b in itertools.pairwise(edges) if state[a] >= 0]
  found = []
  for a, b in runs:
    parts = min(-(-(b - a) // longest), (b - a) // shortest)
    bounds = np.linspace(a, min(b, a + parts * longest), parts + 1).round().astype(int).tolist()
    found += itertools.pairwise(bounds)
  if not found:
    best = max((b - a for a, b in runs), default=0)
    raise InputError(
      f"no {settings.min_seconds:g} s of it show one face in one shot with sound: the longest stretch is {best} frames"
    )
  return found


def _heard(path: Path, info: video.MediaInfo, frames: int, notes: list[str]) -> np.ndarray:
  """bool [frames]: the frame, or one at most `_UNHEARD` away, has sound.

  Raises InputError for a silent track, and for a file of which both tracks end early.
  """
  heard, peak, last = np.zeros(frames, bool), 0.0, 0
  for start, samples in audio.read_chunks(path, origin=info.origin, sound=info.sound, notes=notes):
    first, last = start // SAMPLES_PER_FRAME, -(-(start + len(samples)) // SAMPLES_PER_FRAME)
    heard[max(0, first - _UNHEARD) : max(0, last + _UNHEARD)] = True
    peak = max(peak, float(np.abs(samples).max(initial=0)))
  seconds = float(info.origin) + max(frames, last) / FPS
  video.check_length("footage", end=seconds, declared=info.end)
  if peak < 1e-4:
    raise InputError("its sound track is silent")
  return heard


def crop_boxes(
  track: FaceTrack, start: int, stop: int, crop: np.ndarray, info: video.MediaInfo
) -> dict[str, np.ndarray]:
  """Face box, mouth box and landmarks of frames [start, stop) as fractions of their crops."""
  scale, corner, side = np.array([info.width, info.height]), crop[:, :2], crop[:, 2:]
  face = (track.box[start:stop] * np.tile(scale, 2) - np.tile(corner, 2)) / side
  landmarks = np.zeros((stop - start, 0, 2), np.float32)
  mouth = np.full((stop - start, 4), -1.0)
  if track.landmarks is not None:
    landmarks = (track.landmarks[start:stop] * scale - corner[:, None]) / side[:, None]
    if track.mouth:
      lips = landmarks[:, list(track.mouth)]
      low, high = lips.min(1), lips.max(1)
      margin = 0.15 * (high - low).max(1, keepdims=True)
      box = np.concatenate([low - margin, high + margin], 1).clip(0, 1)
      mouth = np.where(np.isfinite(box).all(1, keepdims=True), box, -1.0)
    landmarks = np.nan_to_num(landmarks, nan=-1.0, posinf=-1.0, neginf=-1.0)
  boxes = {"face_box": face.clip(0, 1), "mouth_box": mouth, "landmarks": landmarks}
  return {name: value.astype(np.float32) for name, value in boxes.items()}


def _read_truth(path: Path | None) -> dict[str, np.ndarray]:
  """truth float32 [source frames, P] and names [P]; empty if the file has none."""
  if path is None or not path.exists():
    return {}
  try:
    with np.load(path) as stored:
      truth, names = stored["truth"].astype(np.float32), stored["names"].astype(str)
  except Exception as error:  # a damaged archive raises many kinds of exception
    raise InputError(f"its truth file {path.name} cannot be read ({error})") from error
  if truth.ndim != 2 or truth.shape[1:] != names.shape or not np.isfinite(truth).all():
    raise InputError(f"its truth file {path.name} must hold finite numbers [n, P] and P names, not {truth.shape}")
  return {"truth": truth, "names": names}
