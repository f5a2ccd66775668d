"""A probe on the tokens of a file: its labels as a whole, and over time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from synclipmae_jax.probing.sampling import join
from synclipmae_jax.probing.saved import SavedProbe
from synclipmae_jax.types import FPS, InputError, Segment


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileLabels:
  """Probabilities in 0..1. In frames without a face they are nan."""

  classes: tuple[str, ...]
  several: bool
  whole: np.ndarray  # float32 [C], of the sampled frames, as the probe was fitted
  over_time: np.ndarray  # float32 [T, C], of a window around every frame
  face_frames: int  # frames with the face
  notes: tuple[str, ...] = ()

  @property
  def labels(self) -> tuple[str, ...]:
    """Of the file: the most probable class, or every label above 0.5."""
    if self.several:
      return tuple(name for name, value in zip(self.classes, self.whole, strict=True) if value > 0.5)
    return (self.classes[int(self.whole.argmax())],)

  def stretches(self) -> list[tuple[Segment, float]]:
    """(stretch with one label, its mean probability), in order of their start; several labels may overlap."""
    seen = np.isfinite(self.over_time[:, 0])
    values = np.where(seen[:, None], self.over_time, 0)
    holds = values > 0.5 if self.several else np.arange(values.shape[1]) == values.argmax(axis=1)[:, None]
    holds = (holds & seen[:, None]).astype(int)
    found = []
    for c, name in enumerate(self.classes):
      edges = np.flatnonzero(np.diff(holds[:, c], prepend=0, append=0)).tolist()
      for start, stop in zip(edges[::2], edges[1::2], strict=True):
        found.append((Segment(start / FPS, stop / FPS, name), float(values[start:stop, c].mean())))
    return sorted(found, key=lambda pair: pair[0])

  def to_json(self, file: str) -> dict[str, Any]:
    named = {name: round(float(value), 4) for name, value in zip(self.classes, self.whole, strict=True)}
    return {
      "file": file,
      "labels": list(self.labels),
      "probabilities": named,
      "stretches": [
        {**segment._asdict(), "probability": round(value, 4)} for segment, value in self.stretches()
      ],
      "frames": len(self.over_time),
      "frames_with_a_face": self.face_frames,
      "notes": list(self.notes),
    }  # fmt: skip


def label_file(saved: SavedProbe, tokens: Mapping[str, np.ndarray], *, window: float) -> FileLabels:
  """The labels of tokens [T, D] by name, nan in frames without a face.

  Over time the logits are averaged over the frames with a face in a window of `window` seconds around each frame. The
  probe was fitted on means of many frames: its probabilities over time are less certain than those of the whole.
  Raises InputError if no frame has a face or the probe does not fit the tokens.
  """
  if window <= 0:
    raise InputError(f"the window must be longer than 0 s, not {window:g}")
  probe = saved.probe
  features = join([tokens[name] for name in saved.tokens], beside=saved.beside)
  if features.shape[1] != len(probe.kernel):
    raise InputError(f"the probe reads features of {len(probe.kernel)} numbers, these have {features.shape[1]}")
  seen = np.isfinite(features).all(axis=1)
  count = int(seen.sum())
  if not count:
    raise InputError("no face is found in it")
  logits = probe.logits(np.where(seen[:, None], features, 0)) * seen[:, None]
  rows = np.flatnonzero(seen)[saved.sampling.rows(count)]
  half = int(window * FPS / 2)
  first = np.maximum(np.arange(len(seen)) - half, 0)
  stop = np.minimum(np.arange(len(seen)) + half + 1, len(seen))
  sums = np.concatenate([np.zeros((1, logits.shape[1])), np.cumsum(logits, axis=0, dtype=np.float64)])
  frames = np.concatenate([[0], np.cumsum(seen)])
  smooth = (sums[stop] - sums[first]) / np.maximum(frames[stop] - frames[first], 1)[:, None]
  over_time = np.where(seen[:, None], probe.probabilities(smooth), np.nan).astype(np.float32)
  short = f"its face is seen in {count} frames, fewer than {saved.sampling.shortest}: some count several times"
  return FileLabels(
    classes=probe.classes, several=probe.several, whole=probe.probabilities(logits[rows].mean(axis=0)),
    over_time=over_time, face_frames=count, notes=(short,) * (count < saved.sampling.shortest),
  )  # fmt: skip
