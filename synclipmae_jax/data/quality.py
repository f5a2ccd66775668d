"""Quality of a clip: numbers that `prepare` measures, and the thresholds below or above which a clip is refused.

The numbers are measured once, when a clip is cut, and stand in the manifest under `quality`. Thresholds are applied to
them when the manifest is written: another threshold needs no new clips. A number that is not known refuses nothing.

  seconds        length of the clip
  face_pixels    longer side of the face box in the source, median
  face_share     area of the face box as a share of the picture, median
  coverage       share of the frames in which the face was found; in the others its box is interpolated
  yaw, pitch, roll   `faces.pose`, degrees, median; null without the face mesh
  lips           correlation of lips and sound, `faces.speaker`; null without the face mesh
  loud           share of the frames that are loud enough for speech
  speech         `media.speech.speech_score`: 0 for silence and steady sound, more for speech; null below 1 s
  sharpness      variance of the Laplacian of the crop at 128 pixels, grey levels 0 .. 255, median
  offset, offset_confidence, sync   `data.offsets`; only with a model
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from synclipmae_jax.data.faces.pose import SCHEMA, head_pose
from synclipmae_jax.data.faces.speaker import agreement, articulation, lip_motion
from synclipmae_jax.data.faces.track import FaceTrack
from synclipmae_jax.data.media import video
from synclipmae_jax.data.media.speech import level_db, speech_activity, speech_score
from synclipmae_jax.data.media.video import MediaInfo
from synclipmae_jax.types import FPS, SAMPLES_PER_FRAME, InputError

VERSION = 1  # of the numbers: raising it makes prepared clips again
IN_SYNC = 1  # frames: an offset up to this is not corrected, because an answer is exact to a frame only
SURE = 0.5  # confidence from which an offset is acted on
_SHARP_SIZE, _SHARP_FRAMES = 128, 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gates:
  """Thresholds of the clips that are kept. The defaults refuse little: what is hardly a face."""

  min_face: float = 16.0  # pixels of `face_pixels`
  min_coverage: float = 0.5
  max_yaw: float = 80.0  # degrees, either side
  min_speech: float = 0.0  # of `speech`, which is 0.06 to 0.14 in sentences of 3 s (GRID)
  min_sharpness: float = 0.0
  max_offset: int = 15  # frames; with a model: a clip with a larger offset is refused, others are corrected
  min_sync: float = 0.0  # with a model: probability that picture and sound belong together

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      most = 1.0 if name in ("min_coverage", "min_sync") else np.inf
      if not 0 <= value <= most:
        raise InputError(f"{option(name)} must be a number from 0{'' if most == np.inf else ' to 1'}, not {value:g}")


def option(name: str) -> str:
  """A threshold as it is called on the command line."""
  return f"--{name.replace('_', '-')}"


def measure(mp4: bytes, waveform: np.ndarray, track: FaceTrack, *, info: MediaInfo, stride: int) -> dict[str, Any]:
  """The numbers of a clip of n frames, without its offset.

  Args:
    mp4: its pictures.
    waveform: float32 [640 n].
    track: its n rows.
    info: of the source.
    stride: frames between searches for the face (`faces.sources.search_stride`).
  """
  size = (track.box[:, 2:] - track.box[:, :2]) * np.array([info.width, info.height], np.float32)
  return {
    "seconds": round(len(size) / FPS, 2),
    "face_pixels": round(float(np.median(size.max(1))), 1),
    "face_share": round(float(np.median(size.prod(1))) / (info.width * info.height), 4),
    "coverage": _coverage(track.confidence > 0, stride),
    **_pose(track, info),
    "lips": _lips(track, waveform, info),
    "loud": round(float(speech_activity(level_db(waveform)).mean()), 3),
    "speech": round(speech_score(waveform), 3) if len(size) > FPS else None,
    "sharpness": _sharpness(mp4, len(size)),
  }


def _coverage(found: np.ndarray, stride: int) -> float:
  """Share of the frames that are found, or lie between two searches next to one that is."""
  near = np.convolve(found, np.ones(2 * stride - 1), "same") > 0 if len(found) >= 2 * stride - 1 else found
  return round(float(near.mean()), 3)


def _pose(track: FaceTrack, info: MediaInfo) -> dict[str, float | None]:
  angles = np.full((1, 3), np.nan)
  if track.schema == SCHEMA and track.landmarks is not None:
    pose = head_pose(track.landmarks * np.array([info.width, info.height], np.float32))
    angles = pose[np.isfinite(pose).all(1)]
  middle = np.median(angles, axis=0) if len(angles) else np.full(3, np.nan)
  return {
    name: round(float(angle), 1) if np.isfinite(angle) else None
    for name, angle in zip(("yaw", "pitch", "roll"), middle, strict=True)
  }


def _lips(track: FaceTrack, waveform: np.ndarray, info: MediaInfo) -> float | None:
  motion = lip_motion(track, width=info.width, height=info.height)
  if motion is None:
    return None
  margin = SAMPLES_PER_FRAME
  padded = np.pad(waveform, margin)
  sound = articulation(lambda first, last: padded[first + margin : last + margin], len(motion))
  return round(float(agreement(motion, sound).mean()), 3)


def _sharpness(mp4: bytes, frames: int) -> float:
  from skimage.color import rgb2gray  # local import: slow
  from skimage.filters import laplace

  starts = sorted({round(at) for at in np.linspace(0, frames - 1, _SHARP_FRAMES)})
  pictures = video.read_windows(mp4, starts, count=1, size=_SHARP_SIZE)[:, 0]
  return round(float(np.median([laplace(255 * rgb2gray(picture)).var() for picture in pictures])), 1)


# -- the decision --


def gated(entry: Mapping[str, Any], gates: Gates, *, shortest: int, known_lag: bool) -> dict[str, Any]:
  """The entry of a file with its clips divided into `clips`, which are kept, and `refused`, each with its reason.

  A file whose clips are all refused is rejected. An offset is corrected by whole frames: `start` and `frames` are then
  those of the corrected clip, and `offset` says by how much its picture was late (`offsets.read_clip`).

  Args:
    shortest: frames that a corrected clip must keep.
    known_lag: the corpus states the lag of the file. It is right, and the offset is a number only.
  """
  kept, refused = [], []
  for clip in entry["clips"]:
    try:
      _check(clip["quality"], gates)
      if "offset" in clip["quality"]:
        clip = _synchronised(clip, gates, shortest=shortest, known_lag=known_lag, of=entry["source"]["frames"])
      kept.append(clip)
    except InputError as error:
      refused.append({**clip, "reason": str(error)})
  done = {**entry, "clips": kept, "refused": refused}
  if refused and not kept:
    reasons = list(dict.fromkeys(clip["reason"] for clip in refused))
    done |= {"outcome": "rejected", "reason": f"no clip of it is good enough: {'; '.join(reasons[:3])}"}
  return done


def _check(quality: Mapping[str, Any], gates: Gates) -> None:
  """Raises InputError with the reason why a clip is refused."""

  def least(name: str, gate: str, words: str) -> None:
    if (value := quality[name]) is not None and value < getattr(gates, gate):
      raise InputError(f"{words.format(value)}, {option(gate)} is {getattr(gates, gate):g}")

  least("face_pixels", "min_face", "its face has {:g} pixels")
  least("coverage", "min_coverage", "its face is found in {:.0%} of the frames")
  least("speech", "min_speech", "its sound is hardly speech ({:g})")
  least("sharpness", "min_sharpness", "it is blurred ({:g})")
  if quality["yaw"] is not None and abs(quality["yaw"]) > gates.max_yaw:
    raise InputError(f"its face is turned by {abs(quality['yaw']):g} degrees, {option('max_yaw')} is {gates.max_yaw:g}")


def _synchronised(
  clip: Mapping[str, Any], gates: Gates, *, shortest: int, known_lag: bool, of: int
) -> dict[str, Any]:  # fmt: skip
  """The clip with its offset corrected, if it has one. Raises InputError with the reason why it is refused."""
  quality, clip = clip["quality"], dict(clip)
  if quality["sync"] is not None and quality["sync"] < gates.min_sync:
    raise InputError(
      f"lips and sound belong together with probability {quality['sync']:.2f}, {option('min_sync')} is"
      f" {gates.min_sync:g}"
    )
  offset = quality["offset"]
  if known_lag or offset is None or quality["offset_confidence"] < SURE or abs(offset) <= IN_SYNC:
    return clip
  if abs(offset) > gates.max_offset:
    late = "picture" if offset > 0 else "sound"
    raise InputError(f"its {late} is {abs(offset)} frames late, {option('max_offset')} is {gates.max_offset}")
  frames = clip["frames"] - abs(offset)
  if frames < shortest:
    raise InputError(f"corrected by {abs(offset)} frames it is too short: {frames} frames, {shortest} are needed")
  return clip | {
    "start": clip["start"] + max(0, offset), "frames": frames, "offset": offset, "whole": frames >= 0.95 * of,
  }  # fmt: skip
