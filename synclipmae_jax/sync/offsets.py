"""The offsets of prepared clips, by a trained model or by the lips of the face mesh: `data.offsets.OffsetModel`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from synclipmae_jax.data.faces.speaker import articulation, lip_motion
from synclipmae_jax.data.faces.track import FaceTrack
from synclipmae_jax.data.media import audio, video
from synclipmae_jax.data.offsets import read_clip
from synclipmae_jax.data.quality import SURE
from synclipmae_jax.inference.embedder import Embedder
from synclipmae_jax.metrics.sync import TOLERANCE
from synclipmae_jax.sync.analysis import join
from synclipmae_jax.sync.calibration import Calibration
from synclipmae_jax.sync.estimate import LagEstimate, LagScorer, Scores, compare, estimate
from synclipmae_jax.types import SAMPLES_PER_FRAME

_VERSION = 1  # of the answers: raising it measures prepared clips again


class ClipOffsets:
  """Measures the offsets of the clips of one file; see `data.offsets.OffsetModel`."""

  def __init__(self, model: Embedder, calibration: Calibration):
    self._model, self._calibration = model, calibration
    digest = hashlib.sha256(json.dumps([_VERSION, calibration.to_json(), model.looks]).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.params):
      digest.update(jax.tree_util.keystr(path).encode())
      digest.update(np.asarray(leaf).tobytes())
    self.fingerprint = digest.hexdigest()[:16]

  def __call__(self, clips: Sequence[tuple[int, Path]]) -> list[dict[str, Any]]:
    return _answers([self._scores(stem) for _, stem in clips], [start for start, _ in clips], self._calibration)

  def _scores(self, stem: Path) -> Scores:
    mp4, flac, arrays = read_clip(stem)
    count = len(arrays["face_box"])
    frames = video.read_windows(mp4, [0], count=count, size=self._model.image_size)[0]
    _, lips = self._model.encode_frames(frames, face_box=arrays["face_box"], mouth_box=arrays["mouth_box"])
    scorer = LagScorer()
    scorer.push(self._model.heard(self._model.embed_sound(audio.decode_flac(flac))), lips)
    return scorer.finish()


class LipOffsets:
  """The same without a model: the opening of the lips against the sound (`data.faces.speaker`).

  It needs the landmarks of the face mesh. Of 45 clips of 2 to 6 s of GRID and of talks the best lag is right within a
  frame in 38; it is sure of 20, all of them right, and of 9 % of those with the sound of another clip.
  """

  fingerprint = "lips 1"

  def __call__(self, clips: Sequence[tuple[int, Path]]) -> list[dict[str, Any]]:
    scores = [self._scores(stem) for _, stem in clips]
    known = [each for each in scores if each is not None]
    starts = [start for each, (start, _) in zip(scores, clips, strict=True) if each is not None]
    answers = iter(_answers(known, starts, Calibration.uncalibrated()) if known else ())
    unknown = {"offset": None, "offset_confidence": 0.0, "sync": None}
    return [unknown if each is None else next(answers) for each in scores]

  def _scores(self, stem: Path) -> Scores | None:
    _, flac, arrays = read_clip(stem)
    points = arrays["landmarks"]
    track = FaceTrack(
      box=arrays["face_box"],
      track=np.zeros(len(points), int),
      confidence=np.ones(len(points), np.float32),
      landmarks=np.where(points == -1, np.nan, points),  # -1: unknown
      schema=str(arrays["landmark_schema"]),
    )
    lips = lip_motion(track, width=1, height=1)
    if lips is None:
      return None
    padded = np.pad(audio.decode_flac(flac), SAMPLES_PER_FRAME)
    sound = articulation(lambda first, last: padded[first + SAMPLES_PER_FRAME : last + SAMPLES_PER_FRAME], len(lips))
    return compare(sound, lips)


def _answers(scores: Sequence[Scores], starts: Sequence[int], calibration: Calibration) -> list[dict[str, Any]]:
  """The offset of a file is that of all its clips together, which is surer than that of one of them.

  A clip that surely has another offset keeps its own: the file is edited.
  """
  whole = estimate(join(scores, starts), calibration)
  return [_answer(estimate(each, calibration), whole) for each in scores]


def _answer(own: LagEstimate, whole: LagEstimate) -> dict[str, Any]:
  sure = lambda lags: lags.lag is not None and lags.confidence >= SURE
  differs = sure(own) and sure(whole) and abs(own.lag - whole.lag) > TOLERANCE
  chosen = own if differs or sure(own) and not sure(whole) else whole
  return {
    "offset": chosen.lag,
    "offset_confidence": round(chosen.confidence, 3),
    "sync": None if own.lag is None else round(own.synchronizable, 3),
  }
