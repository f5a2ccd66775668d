"""Face detection with BlazeFace, full range (Bazarevsky et al. 2019, arXiv 1907.05047).

The decoding of the outputs and the anchors follow MediaPipe's `modules/face_detection/face_detection_full_range` graph.
The scores are highest for faces of 12 to 64 pixels in the input of 192 pixels (measured). The input is therefore the
picture with a margin of half its size, and, for small faces, overlapping tiles of the picture.
"""

from __future__ import annotations

import numpy as np

from synclipmae_jax.data.faces.litert import network
from synclipmae_jax.data.faces.track import overlaps
from synclipmae_jax.data.faces.window import Window, cut_window

_MIN_SCORE = 0.3  # MediaPipe uses 0.5; here the face mesh confirms or rejects every detection
_SAME = 0.3  # intersection over union of two detections of one face
_GRID = 48  # anchors per row of the input
_WHOLE = 2.0  # side of the window with the whole picture, relative to the longer side of the picture
_TILE = 0.75  # side of a tile, relative to the shorter side of the picture
_MOST_TILES = 8  # a tile is at least the longer side divided by this: narrow pictures have few tiles
_SHARED = 0.3  # minimum overlap of neighbouring tiles, relative to their side


def find_faces(image: np.ndarray, *, closely: bool) -> np.ndarray:
  """Detects the faces of a picture.

  Args:
    image: uint8 [H, W, 3] RGB.
    closely: search the tiles too. They are also searched if no face is found in the whole picture.

  Returns:
    float32 [n, 8, 2], pixels, sorted by size, largest first. The points of a face are: upper left and lower right
    corner of the box, both eyes, tip of the nose, mouth, both ears. Of a pair, the point further left in an upright
    picture is first.
  """
  height, width = image.shape[:2]
  found = [_look(image, Window(centre=np.array([width, height]) / 2, side=_WHOLE * max(height, width)))]
  if closely or not len(found[0][0]):
    found += [_look(image, tile) for tile in tiles(height, width)]
  points = _suppress(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
  return points[np.argsort(-(points[:, 1] - points[:, 0]).prod(1), kind="stable")]


def _look(image: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
  """Scores [n] and points [n, 8, 2] of the anchors above the threshold."""
  run = network("face_detection_full_range_sparse.tflite")
  regressors, logits = run(cut_window(image, window, size=run.size).astype(np.float32) / 127.5 - 1)
  found = np.flatnonzero(logits[:, 0] > np.log(_MIN_SCORE / (1 - _MIN_SCORE)))
  anchors = (np.stack(np.divmod(found, _GRID)[::-1], -1)[:, None] + 0.5) / _GRID
  values = regressors[found].reshape(-1, 8, 2) / run.size
  values[:, [0, *range(2, 8)]] += anchors
  centre, half = values[:, 0], values[:, 1] / 2
  points = np.concatenate([(centre - half)[:, None], (centre + half)[:, None], values[:, 2:]], 1)
  return 1 / (1 + np.exp(-logits[found, 0])), window.to_picture(points)


def tiles(height: int, width: int) -> list[Window]:
  """Overlapping squares that cover a picture. A face smaller than the overlap is inside at least one of them."""
  side = max(_TILE * min(height, width), max(height, width) / _MOST_TILES)

  def centres(length: int) -> np.ndarray:
    count = 1 + int(np.ceil((length - side) / (side - _SHARED * side)))
    return np.linspace(side / 2, length - side / 2, count) if count > 1 else np.array([length / 2])

  return [Window(centre=np.array([x, y]), side=side) for y in centres(height) for x in centres(width)]


def _suppress(scores: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Non-maximum suppression: the score-weighted mean of overlapping detections (WEIGHTED in MediaPipe)."""
  order = np.argsort(-scores, kind="stable")
  scores, points, kept = scores[order], points[order], []
  while len(scores):
    near = overlaps(points[0, :2].ravel(), points[:, :2].reshape(-1, 4)) > _SAME
    near[0] = True
    kept.append(np.average(points[near], axis=0, weights=scores[near]))
    scores, points = scores[~near], points[~near]
  return np.array(kept, np.float32).reshape(-1, 8, 2)
