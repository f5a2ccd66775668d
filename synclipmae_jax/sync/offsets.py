"""The offsets of prepared clips by a trained model: `data.offsets.OffsetModel`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from synclipmae_jax.data.media import audio, video
from synclipmae_jax.data.offsets import read_clip
from synclipmae_jax.data.quality import SURE
from synclipmae_jax.inference.embedder import Embedder
from synclipmae_jax.metrics.sync import TOLERANCE
from synclipmae_jax.sync.analysis import join
from synclipmae_jax.sync.calibration import Calibration
from synclipmae_jax.sync.estimate import LagEstimate, LagScorer, Scores, estimate

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
    """The offset of a file is that of all its clips together, which is surer than that of one of them.

    A clip that surely has another offset keeps its own: the file is edited.
    """
    scores = [self._scores(stem) for _, stem in clips]
    whole = estimate(join(scores, [start for start, _ in clips]), self._calibration)
    return [_answer(estimate(each, self._calibration), whole) for each in scores]

  def _scores(self, stem: Path) -> Scores:
    mp4, flac, arrays = read_clip(stem)
    count = len(arrays["face_box"])
    frames = video.read_windows(mp4, [0], count=count, size=self._model.image_size)[0]
    _, lips = self._model.encode_frames(frames, face_box=arrays["face_box"], mouth_box=arrays["mouth_box"])
    scorer = LagScorer()
    scorer.push(self._model.heard(self._model.embed_sound(audio.decode_flac(flac))), lips)
    return scorer.finish()


def _answer(own: LagEstimate, whole: LagEstimate) -> dict[str, Any]:
  sure = lambda lags: lags.lag is not None and lags.confidence >= SURE
  differs = sure(own) and sure(whole) and abs(own.lag - whole.lag) > TOLERANCE
  chosen = own if differs or sure(own) and not sure(whole) else whole
  return {
    "offset": chosen.lag,
    "offset_confidence": round(chosen.confidence, 3),
    "sync": None if own.lag is None else round(own.synchronizable, 3),
  }
