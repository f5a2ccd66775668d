"""Offsets between picture and sound of finished clips, measured by a model and corrected by whole frames.

An offset is positive where the picture is late. It is measured after all clips are cut, in this process: a model may
need an accelerator, and the processes that cut clips have none. The answers for a file are stored beside its clips with
the fingerprint of model and clips, so that a stopped run continues.

The clips stay as they were cut. `read_clip` corrects one while it is read: it leaves out the pictures at one end and
the sound at the other.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np

from synclipmae_jax.data.media import audio, video
from synclipmae_jax.data.media.containers import video_stream
from synclipmae_jax.types import SAMPLES_PER_FRAME, InputError

ANSWERS = "offsets.json"  # beside the clips of a file


class OffsetModel(Protocol):
  """Measures offsets. `sync.offsets.ClipOffsets` is one."""

  fingerprint: str  # of the model and of how it measures

  def __call__(self, clips: Sequence[tuple[int, Path]]) -> list[dict[str, Any]]:
    """For the clips of one file, (first frame, path without suffix): for each the numbers

    offset: int, frames, or None where the clips are too short; offset_confidence: P(|error| <= 1 frame); sync:
    probability that picture and sound belong together, or None where the clip is too short.
    """
    ...


def known(entry: Mapping[str, Any], folder: Path, model: OffsetModel) -> dict[str, Any] | None:
  """The entry of a file with the offsets of its clips among their `quality`, if `folder` has those of this model."""
  try:
    stored = json.loads((folder / ANSWERS).read_text())
  except (OSError, ValueError):
    return None
  return _with(entry, stored["answers"]) if stored.get("fingerprint") == _fingerprint(entry, model) else None


def measured(entry: Mapping[str, Any], folder: Path, model: OffsetModel) -> dict[str, Any]:
  """As `known`, measured now from the clips in `folder`, and stored there."""
  try:
    answers = model([(clip["start"], folder / f"{clip['number']:02d}") for clip in entry["clips"]])
  except (InputError, OSError):  # a checkpoint that does not fit, a full disk: not an error of the file
    raise
  except Exception as error:  # an unforeseen error affects one file, which is tried again in the next run
    unknown = {
      "offset": None,
      "offset_confidence": 0.0,
      "sync": 0.0,
      "offset_error": f"{type(error).__name__}: {error}",
    }
    return _with(entry, [unknown] * len(entry["clips"]))
  unfinished = folder / f".{ANSWERS}"
  unfinished.write_text(json.dumps({"fingerprint": _fingerprint(entry, model), "answers": answers}))
  unfinished.rename(folder / ANSWERS)
  return _with(entry, answers)


def _fingerprint(entry: Mapping[str, Any], model: OffsetModel) -> dict[str, Any]:
  return {"model": model.fingerprint, "clips": [clip["sha256"] for clip in entry["clips"]]}


def _with(entry: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  clips = [
    {**clip, "quality": {**clip["quality"], **answer}} for clip, answer in zip(entry["clips"], answers, strict=True)
  ]
  return {**entry, "clips": clips}


def read_clip(stem: Path, offset: int = 0) -> tuple[bytes, bytes, dict[str, np.ndarray]]:
  """(mp4, FLAC, arrays) of the clip at `stem`, a path without suffix, corrected by `offset` frames.

  Its n pictures and sounds become n - |offset|: a late picture loses its first frames, an early one its last. Arrays
  with a row per frame follow the pictures. Raises InputError for a damaged clip.
  """
  try:
    with np.load(stem.with_suffix(".npz")) as stored:
      arrays = {name: stored[name] for name in stored.files}
  except Exception as error:  # a damaged archive raises many kinds of exceptions
    raise InputError(str(error)) from error
  mp4, flac = (stem.with_suffix(end).read_bytes() for end in (".mp4", ".flac"))
  if not offset:
    return mp4, flac, arrays
  total = len(arrays["face_box"])
  frames, first = total - abs(offset), max(0, offset)
  arrays = {
    name: array[first : first + frames] if array.ndim > 1 and len(array) == total else array
    for name, array in arrays.items()
  }
  heard = audio.decode_flac(flac)[max(0, -offset) * SAMPLES_PER_FRAME :][: frames * SAMPLES_PER_FRAME]
  return _cut_pictures(mp4, first, frames), audio.encode_flac(heard), arrays


def _cut_pictures(mp4: bytes, first: int, frames: int) -> bytes:
  """Frames [first, first + frames) of a clip, encoded again."""
  with av.open(io.BytesIO(mp4), format="mp4") as container:
    size = video_stream(container).width
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "cut.mp4")
    with video.ClipWriter(path, size=size) as writer:
      for image in video.read_windows(mp4, [first], count=frames, size=size)[0]:
        writer.write(image)
    return path.read_bytes()
