"""How a generated mouth moves, compared with the true one: from the 68 points of iBUG 300-W, in order."""

from __future__ import annotations

import numpy as np

_LIPS, _EYES = slice(48, 68), (36, 45)  # all points of the lips; the outer corners of the eyes
_INNER = ([61, 62, 63], [65, 66, 67])  # the inner edge of the upper and the lower lip


def mouth_distance(found: np.ndarray, true: np.ndarray) -> float:
  """Mean distance of the points of the lips [T, 68, 2], in percent of the distance between the true eyes.

  Both mouths are moved to one centre in every frame, so that only their form counts. Frames with nan are left out; nan
  without any.
  """
  centred = [points[:, _LIPS] - points[:, _LIPS].mean(axis=1, keepdims=True) for points in (found, true)]
  distance = np.linalg.norm(centred[0] - centred[1], axis=-1).mean(axis=1) / _across(true)
  return _mean(100 * distance)


def opening(points: np.ndarray) -> np.ndarray:
  """float [T]: the distance between the lips, relative to that of the eyes, of points [T, 68, 2]."""
  upper, lower = (points[:, part].mean(axis=1) for part in _INNER)
  return np.linalg.norm(upper - lower, axis=-1) / _across(points)


def opening_correlation(found: np.ndarray, true: np.ndarray) -> float:
  """Correlation of the `opening` of two mouths over time; nan where one does not move or fewer than two are known."""
  a, b = opening(found), opening(true)
  known = np.isfinite(a) & np.isfinite(b)
  if known.sum() < 2 or not (np.ptp(a[known]) and np.ptp(b[known])):
    return float("nan")
  return float(np.corrcoef(a[known], b[known])[0, 1])


def drift(difference: np.ndarray, *, frames: int) -> float:
  """How far the mean colour [T, 3] of a result less that of its source moves from the first to the last `frames`.

  The largest of the channels, in the unit of `difference`; nan frames are left out.
  """
  known = difference[np.isfinite(difference).all(axis=1)]
  if not len(known):
    return float("nan")
  return float(np.abs(known[-frames:].mean(axis=0) - known[:frames].mean(axis=0)).max())


def _across(points: np.ndarray) -> np.ndarray:
  return np.linalg.norm(points[:, _EYES[0]] - points[:, _EYES[1]], axis=-1)


def _mean(values: np.ndarray) -> float:
  known = values[np.isfinite(values)]
  return float(known.mean()) if len(known) else float("nan")


def region_error(found: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """[B]: mean squared difference of videos [B, T, H, W, 3] in [-1, 1] over the mask [B, H, W], in pixels of 0..1."""
  squared = np.square((found - truth) / 2).mean(axis=(1, 4))
  return (squared * mask).sum(axis=(1, 2)) / np.maximum(mask.sum(axis=(1, 2)), 1)


def mouth_gain(told: float, still: float) -> float:
  """dB by which a model that is told the true mouth is nearer to it than a still picture of the person.

  Both are errors in the mouth region (`region_error`).
  """
  return float(10 * np.log10(max(still, 1e-10) / max(told, 1e-10)))


def motion_errors(found: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """[B, 2]: (what is wrong of the motion, the motion) in the mask, as sums of squares, of videos [B, T, H, W, 3].

  The motion of a video is its difference from its own mean over time: a still picture has none.
  """
  motion = lambda video: (video - video.mean(axis=1, keepdims=True)) * mask[:, None, :, :, None]
  moved, true = motion(found), motion(truth)
  return np.stack([np.square(moved - true).sum(axis=(1, 2, 3, 4)), np.square(true).sum(axis=(1, 2, 3, 4))], axis=1)


def motion_explained(errors: np.ndarray) -> float:
  """Share of the true motion that is found, of `motion_errors` [N, 2] of segments.

  1: all of it; 0: as good as a still mouth; below 0: it moves wrongly. nan where nothing moves.
  """
  wrong, motion = np.sum(errors, axis=0)
  return float(1 - wrong / motion) if motion > 0 else float("nan")
