"""PSNR and SSIM of a picture against the true one, of the whole and of regions; SSIM by scikit-image."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

WHOLE = (0.0, 0.0, 1.0, 1.0)
MAX_PSNR = 100.0  # dB, of equal pictures


def picture_scores(
  made: np.ndarray, true: np.ndarray, boxes: Mapping[str, np.ndarray | tuple[float, ...]]
) -> dict[str, tuple[float, float]]:
  """Region -> (PSNR in dB, SSIM) of a picture [S, S, 3] in 0..1; NaN of an empty region.

  A region is a box x0, y0, x1, y1 in fractions of the picture. SSIM is that of Wang et al. 2004, with Gaussian weights;
  its map is averaged over the region. Equal pictures have a PSNR of MAX_PSNR.
  """
  from skimage.metrics import structural_similarity

  made, true = np.asarray(made, np.float64), np.asarray(true, np.float64)
  _, similarity = structural_similarity(
    true, made, channel_axis=-1, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    full=True,
  )  # fmt: skip
  square, scores = np.square(made - true), {}
  for region, box in boxes.items():
    x0, y0, x1, y1 = (np.clip(np.asarray(box, float), 0, 1) * len(true)).round().astype(int)
    inside = slice(y0, y1), slice(x0, x1)
    if x1 <= x0 or y1 <= y0:
      scores[region] = (np.nan, np.nan)
      continue
    error = max(square[inside].mean(), 10 ** (-MAX_PSNR / 10))
    scores[region] = (float(-10 * np.log10(error)), float(similarity[inside].mean()))
  return scores
