"""The face of one file with the mouth of a second and the pose and expression of a third, decoded from their tokens."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import numpy as np

from synclipmae_jax.inference.embedder import Embedder
from synclipmae_jax.inference.stream import Crops, crop_file
from synclipmae_jax.models.editing import decode_around
from synclipmae_jax.types import FPS, SAMPLES_PER_FRAME, InputError

ROLES = ("identity", "mouth", "ambient")
FITS = ("shortest", "loop")
LONGEST = 60 * FPS  # frames that are read of a file: crops and pictures are held in memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edit:
  """T frames at 25 frames/s."""

  frames: np.ndarray  # uint8 [T, S, S, 3]
  shown: Mapping[str, np.ndarray]  # role -> the crops that the tokens are of, uint8 [T, S, S, 3]
  waveform: np.ndarray  # float32 [640 * T], of the mouth's file
  notes: tuple[tuple[str, str], ...]  # (file, sentence)


def sources_of(given: Mapping[str, str | None]) -> dict[str, str]:
  """Role -> file. A missing role is that of the identity's file, or without one of the ambient's, then the mouth's.

  Raises InputError where no file is given.
  """
  default = next((given[role] for role in ("identity", "ambient", "mouth") if given.get(role)), None)
  if default is None:
    raise InputError("name at least one file: --identity, --mouth or --ambient")
  return {role: given.get(role) or default for role in ROLES}


def edit_files(
  model: Embedder,
  files: Mapping[str, str],
  *,
  fit: str = "shortest",
  faces: str = "auto",
  audio_track: int | None = None,
) -> Edit:
  """`files`: role -> path, of all ROLES; `model` has its decoder. Of each file at most LONGEST frames are read.

  `fit` "shortest": as long as the shortest file; "loop": as long as the mouth's, while the others run to and fro. Where
  the ambient motion is of another file than the identity, identity token and surroundings are those of the middle frame
  of the identity's file: the surroundings would show its own pose otherwise. `audio_track` is that of the mouth's file.

  Raises InputError, with the file in its sentence, for a file that cannot be read or has no face.
  """
  crops: dict[str, Crops] = {}
  for path in files.values():
    if path not in crops:
      track = audio_track if path == files["mouth"] else None
      try:
        crops[path] = crop_file(model, path, faces=faces, audio_track=track, longest=LONGEST)
      except InputError as error:
        raise InputError(f"{path}: {error}") from error
  of = {role: crops[path] for role, path in files.items()}
  lengths = {role: len(each.frames) for role, each in of.items()}
  count = min(lengths.values()) if fit == "shortest" else lengths["mouth"]
  rows = {role: to_and_fro(length, count) for role, length in lengths.items()}
  if files["ambient"] != files["identity"]:
    rows["identity"] = np.full(count, lengths["identity"] // 2)
  taken = {role: {name: getattr(of[role], name)[rows[role]] for name in _VIEW} for role in ROLES}
  return Edit(
    frames=_decode(model, **taken),
    shown={role: view["frames"] for role, view in taken.items()},
    waveform=of["mouth"].waveform[: SAMPLES_PER_FRAME * count],
    notes=tuple(_notes(crops)),
  )


_VIEW = ("frames", "face_box", "mouth_box")


def to_and_fro(length: int, count: int) -> np.ndarray:
  """Rows of `length` frames for `count` frames: 0, 1 … length - 1, length - 2 … 0, 1 …"""
  period = max(1, 2 * (length - 1))
  place = np.arange(count) % period
  return np.minimum(place, period - place) if length > 1 else np.zeros(count, int)


def _decode(model: Embedder, *, identity, mouth, ambient) -> np.ndarray:
  """uint8 [T, S, S, 3], in blocks of one shape."""
  tokens = {
    role: model.encode_frames(view["frames"], face_box=view["face_box"], mouth_box=view["mouth_box"])[0]
    for role, view in (("identity", identity), ("vocal", mouth), ("ambient", ambient))
  }
  run = jax.jit(functools.partial(decode_around, model.model))
  pieces, size, count = [], model.block_frames, len(identity["frames"])
  for start in range(0, count, size):
    cut = lambda x, start=start: np.pad(
      x[start : start + size], [(0, max(0, start + size - count))] + [(0, 0)] * (x.ndim - 1), "edge"
    )
    given = {role: cut(getattr(each, role)) for role, each in tokens.items()}
    pieces.append(np.asarray(run(model.params, cut(identity["frames"]), cut(identity["face_box"]), **given)))
  pictures = np.concatenate(pieces)[:count]
  return np.round(np.clip(pictures, 0, 1) * 255).astype(np.uint8)


def _notes(crops: Mapping[str, Crops]):
  for path, each in crops.items():
    for note in each.notes:
      yield path, note
    if each.missing:
      yield path, f"{each.missing} of {len(each.frames)} frames are without the face: each shows the one before"
    if len(each.frames) == LONGEST:
      yield path, f"at most the first {LONGEST // FPS} s of a file are used"
