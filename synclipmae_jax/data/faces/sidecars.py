"""`<stem>.faces.npz` beside a video: the face found by another tool."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from synclipmae_jax.data.faces.track import FaceTrack
from synclipmae_jax.data.media.video import MediaInfo
from synclipmae_jax.types import InputError

_MAX_SIDECAR = 2**30  # bytes: three hours of a face mesh


def read_sidecar(path: Path, *, info: MediaInfo) -> FaceTrack:
  """Reads `<stem>.faces.npz`, which has one row per source frame.

  Arrays: boxes [n, 4] and landmarks [n, K, 2] in pixels of the picture, scores [n] (0: no face), schema, mouth (indices
  of the lip landmarks). Only boxes is required. Raises InputError if the file cannot be used.
  """
  try:
    if not os.path.isfile(path):  # reading a pipe would block
      raise ValueError("it is not a regular file")
    with np.load(path) as stored:
      if (size := sum(entry.file_size for entry in stored.zip.infolist())) > _MAX_SIDECAR:
        raise ValueError(f"{size / 2**30:.0f} GiB when unpacked")
      sheet = {name: stored[name] for name in stored.files}
    boxes = np.asarray(sheet["boxes"], np.float32)
    score = np.broadcast_to(np.asarray(sheet.get("scores", 1), np.float32), len(boxes))
    landmarks = np.asarray(sheet.get("landmarks", np.zeros((len(boxes), 0, 2))), np.float32)
    if boxes.shape[1:] != (4,) or landmarks.ndim != 3 or landmarks.shape[::2] != (len(boxes), 2):
      raise ValueError(f"boxes {boxes.shape} and landmarks {landmarks.shape} are not [n, 4] and [n, K, 2]")
    mouth = tuple(int(i) for i in sheet.get("mouth", ()))
    if mouth and not 0 <= min(mouth) <= max(mouth) < landmarks.shape[1]:
      raise ValueError(f"mouth names landmark {max(mouth)} of {landmarks.shape[1]}")
  except Exception as error:  # damaged archives raise many types of errors
    raise InputError(f"its face file {path.name} cannot be read ({error})") from error
  scale = np.array([info.width, info.height], np.float32)
  found = np.isfinite(boxes).all(1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]) & (score > 0)
  return FaceTrack(
    box=np.where(found[:, None], boxes / np.tile(scale, 2), np.nan).astype(np.float32),
    track=np.where(found, 0, -1),
    confidence=np.where(found, np.clip(score, 0, 1), 0).astype(np.float32),
    landmarks=landmarks / scale if landmarks.shape[1] else None,
    mouth=mouth,
    schema=str(sheet.get("schema", "")),
  )
