"""Face detection with the local-binary-pattern cascade of scikit-image: frontal faces, boxes only."""

from __future__ import annotations

from collections.abc import Sequence

import av
import numpy as np

from synclipmae_jax.data.faces.follower import Face
from synclipmae_jax.data.faces.track import overlap
from synclipmae_jax.data.media.video import Scaler

_LOOK = 256  # short side of the picture that is searched, pixels
_SMALLEST = 32  # pixels; the 24-pixel window finds faces in noise below that


class Cascade:
  """A `follower.Detector`."""

  stride, idle_stride, everywhere_stride = 5, 5, 50
  landmarks: tuple[int, ...] = ()
  mouth: tuple[int, ...] = ()
  schema = ""

  def __init__(self):
    import skimage.data  # local import: slow, and only this detector needs it
    import skimage.feature

    self._cascade = skimage.feature.Cascade(skimage.data.lbp_frontal_face_cascade_filename())
    self._scaler = Scaler()

  def everywhere(self, image: np.ndarray, *, known: Sequence[Face], closely: bool) -> list[Face]:
    grey = self._grey(image)
    return self._detect(grey, (0, 0), grey.shape, _SMALLEST, min(grey.shape), neighbours=4)

  def near(self, image: np.ndarray, face: Face) -> Face | None:
    """The detection with the largest overlap with `face`, of similar size and in its neighbourhood."""
    grey = self._grey(image)
    box = face.box * np.tile(grey.shape[::-1], 2)
    side = box[2] - box[0]
    x0, y0 = np.maximum(np.floor(box[:2] - 0.5 * side), 0).astype(int)
    x1, y1 = np.ceil(box[2:] + 0.5 * side).astype(int)
    region = np.ascontiguousarray(grey[y0:y1, x0:x1])
    if min(region.shape) < 24:
      return None
    sizes = max(24, int(0.75 * side)), min(int(1.4 * side), *region.shape)
    found = self._detect(region, (x0, y0), grey.shape, *sizes, neighbours=2)
    best = max(found, key=lambda candidate: overlap(candidate.box, face.box), default=None)
    return best if best is not None and overlap(best.box, face.box) > 0.3 else None

  def _grey(self, image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    scale = min(1.0, _LOOK / min(width, height))
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    size = {"width": round(width * scale), "height": round(height * scale)}
    return self._scaler(picture, **size, pixels="gray").to_ndarray()

  def _detect(self, grey, corner, shape, smallest: int, largest: int, *, neighbours: int) -> list[Face]:
    """Faces in a region of a picture of `shape`; `corner` is the upper left corner of the region."""
    if largest < smallest:
      return []
    found = self._cascade.detect_multi_scale(
      img=grey, scale_factor=1.2, step_ratio=1, min_size=(smallest, smallest), max_size=(largest, largest),
      min_neighbor_number=neighbours,
    )  # fmt: skip
    # The detected square ends at the lower lip. 12 % more height includes the chin (compared with a face mesh).
    boxes = [
      np.array([d["c"], d["r"], d["c"] + d["width"], d["r"] + 1.12 * d["height"]], float) + np.tile(corner, 2)
      for d in sorted(found, key=lambda d: (-d["width"], d["r"], d["c"]))
    ]
    return [Face(box=box / np.tile(shape[::-1], 2), confidence=1.0) for box in boxes]
