"""Generated face crops are put back into their pictures: colours matched, edges feathered, all else untouched."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

from synclipmae_jax.data.faces.mouth_mask import region_mask
from synclipmae_jax.types import InputError

_GAIN = (0.8, 1.25)  # of a colour: beyond, what was generated is not the same face, and stretching it would not help


def match_colour(generated: np.ndarray, source: np.ndarray, kept: np.ndarray) -> np.ndarray:
  """`generated` with the colours of `source`, both [T, H, W, 3] in 0..255; float32.

  For each channel, one gain and one offset for all frames give the pixels of `kept` [H, W], which the model was shown,
  the mean and the spread that they have in the source. Raises InputError for sizes that differ, and if nothing is kept.
  """
  if generated.shape != source.shape or generated.shape[1:3] != kept.shape or not kept.any():
    raise InputError(
      f"colours are matched where two videos of one size are to agree, not in {generated.shape} and {source.shape} over"
      f" {int(kept.sum())} pixels of {kept.shape}"
    )
  made, true = (video[:, kept].reshape(-1, 3).astype(np.float64) for video in (generated, source))
  gain = np.clip(true.std(axis=0) / np.maximum(made.std(axis=0), 1e-6), *_GAIN)
  return np.clip((generated - made.mean(axis=0)) * gain + true.mean(axis=0), 0, 255).astype(np.float32)


def feathered(mask: np.ndarray, *, width: float) -> np.ndarray:
  """float32 [H, W]: the weight of what is generated. It is 0 outside of the mask and rises to 1 within `width` pixels.

  The edge of the picture is no edge of the mask.
  """
  return np.clip(ndimage.distance_transform_edt(mask) / (width + 1), 0, 1).astype(np.float32)


Crop = tuple[float, float, float, float]  # x0, y0, width, height in pixels of the picture; pixels need not be square


def mouth_weight(region: np.ndarray, *, crop: Crop, height: int, width: int, feather: float = 0.04) -> np.ndarray:
  """`feathered` weights [height, width] of a picture for a mouth region [4] in fractions of its crop.

  `feather`: of the crop's shorter side. Raises InputError for a region without a pixel, or outside of the crop.
  """
  x, y, *size = crop
  region = np.asarray(region, np.float64)
  if region.min() < 0 or region.max() > 1:
    raise InputError(f"the mouth region {region.round(3).tolist()} leaves its crop")
  corners = region * np.tile(size, 2) + np.array([x, y, x, y])
  mask = region_mask(corners / np.array([width, height, width, height]), height=height, width=width)
  if not mask.any():
    raise InputError("the mouth region has no pixel of the picture")
  return feathered(mask, width=feather * min(size))


def paste(picture: np.ndarray, generated: np.ndarray, weight: np.ndarray, *, crop: Crop) -> np.ndarray:
  """A picture, uint8 [H, W, 3], with `generated` [S, S, 3] in 0..255 blended in by `weight` [H, W].

  `generated` is the `crop` of the picture. Pixels of weight 0 keep every bit. Raises InputError if a pixel with weight
  lies outside of the crop.
  """
  rows, columns = (np.flatnonzero(weight.any(axis=axis)) for axis in (1, 0))
  out = picture.copy()
  if not len(rows):
    return out
  box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)
  x, y, *across = crop
  if (box[:2] + 0.5 < (x, y)).any() or (box[2:] - 0.5 > (x + across[0], y + across[1])).any():
    raise InputError(f"the mask reaches to {box.tolist()}, beyond its crop {crop}")
  part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
  size = len(generated)
  # The outermost pixels may reach beyond the crop by half of their width.
  margin = int(np.ceil(size / min(across))) + 1
  padded = np.pad(generated.astype(np.float32), ((margin, margin), (margin, margin), (0, 0)), "edge")
  within = tuple((box - np.array([x, y, x, y])) * size / np.tile(across, 2) + margin)
  shape = (int(box[2] - box[0]), int(box[3] - box[1]))
  scaled = [
    np.asarray(Image.fromarray(padded[..., channel]).resize(shape, Image.Resampling.BILINEAR, box=within))
    for channel in range(3)
  ]
  share = weight[part][..., None]
  blended = share * np.stack(scaled, axis=-1) + (1 - share) * picture[part]
  out[part] = np.where(share > 0, np.clip(np.rint(blended), 0, 255).astype(np.uint8), picture[part])
  return out
