"""Linear synchronisation baseline, printed with every synchronisation score of a run.

Canonical correlation analysis between log-mel frames and either the grey pixels of the mouth (the *linear baseline*)
or, if the corpus has them, the true mouth parameters (the *ceiling*: the best linear map with perfect vision). Both are
fitted in closed form on the training clips of the run, applied to held-out clips, and scored by the same functions as
the model. The mean over the clip is first subtracted from audio and video features, because it contains the speaker,
the light and the microphone, which a linear map cannot remove.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import librosa
import numpy as np

from synclipmae_jax.types import SAMPLE_RATE, SAMPLES_PER_FRAME, EvalClip

MELS = 40
WINDOW = 1024  # samples, 64 ms, centred on the video frame
CONTEXT = 1  # mel frames on each side, 3 in total
CROP = 24  # pixels per side after resampling
PIXEL_COMPONENTS = 80
MOUTH_MARGIN = 1.5  # side of the crop / longer side of the mouth box
FACE_PRIOR = (0.5, 0.78, 0.5)  # centre x, centre y, side of the crop relative to the face box, without a mouth box
MOUTH_TRUTH = "mouth/"


def log_mel(waveform: np.ndarray, frames: int) -> np.ndarray:
  """Log-mel energies [frames, 40] of 64 ms windows centred on the video frames. The clip is scaled to mean power 1."""
  wanted = (frames - 1) * SAMPLES_PER_FRAME + WINDOW
  margin = (WINDOW - SAMPLES_PER_FRAME) // 2
  padded = np.pad(np.asarray(waveform, np.float64), (margin, max(0, wanted - margin - len(waveform))))[:wanted]
  windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::SAMPLES_PER_FRAME]
  power = np.abs(np.fft.rfft(windows * np.hanning(WINDOW))) ** 2
  mel = power @ librosa.filters.mel(sr=SAMPLE_RATE, n_fft=WINDOW, n_mels=MELS, fmin=60.0, fmax=7600.0).T
  return np.log(mel / max(mel.mean(), np.finfo(np.float64).tiny) + 1e-4)


def audio_features(clip: EvalClip) -> np.ndarray:
  """Log-mel of each frame and its neighbours, minus the mean over the clip: [T, 3 * 40]."""
  mel = log_mel(clip.waveform, len(clip.frames))
  padded = np.pad(mel, ((CONTEXT, CONTEXT), (0, 0)), mode="edge")
  return _centred(np.concatenate([padded[i : i + len(mel)] for i in range(2 * CONTEXT + 1)], axis=1))


def mouth_region(clip: EvalClip) -> tuple[float, float, float]:
  """(centre x, centre y, side) in pixels of the square that is cut from every frame of the clip.

  It is the median of the known mouth boxes, or else a prior inside the median face box. There is one region per clip,
  because the size of a box that follows the lips would depend on the mouth opening.
  """
  size = clip.frames.shape[1]
  known = clip.mouth_box[(clip.mouth_box >= 0).all(axis=1)]
  x0, y0, x1, y1 = size * np.median(known if len(known) else clip.face_box, axis=0)
  width, height = x1 - x0, y1 - y0
  if len(known):
    return (x0 + x1) / 2, (y0 + y1) / 2, MOUTH_MARGIN * max(width, height)
  x, y, side = FACE_PRIOR
  return x0 + x * width, y0 + y * height, side * width


def mouth_pixels(clip: EvalClip) -> np.ndarray:
  """Grey mouth crop in [0, 1], minus the mean over the clip: [T, 24 * 24]."""
  x, y, side = mouth_region(clip)
  rows, columns = (area_weights(centre, side, clip.frames.shape[1], cells=CROP) for centre in (y, x))
  grey = clip.frames @ (np.array([0.299, 0.587, 0.114], np.float32) / 255)  # [T, S, S]
  return _centred((rows @ grey @ columns.T).reshape(len(grey), -1))


def mouth_parameters(clip: EvalClip) -> np.ndarray | None:
  """True parameters of the visible mouth, minus the mean over the clip: [T, P'], or None if the corpus has none."""
  columns = [i for i, name in enumerate(clip.truth_names) if name.startswith(MOUTH_TRUTH)]
  return _centred(clip.truth[:, columns]) if clip.truth is not None and columns else None


def _centred(features: np.ndarray) -> np.ndarray:
  features = np.asarray(features, np.float64)
  return features - features.mean(axis=0)


def area_weights(centre: float, side: float, size: int, *, cells: int) -> np.ndarray:
  """[cells, size] area resampling: cell i averages the pixels that it covers. Cells are clipped to the image."""
  side = float(np.clip(side, 1.0, size))
  start = float(np.clip(centre - side / 2, 0.0, size - side))
  edges = start + side * np.arange(cells + 1) / cells
  pixel = np.arange(size)
  covered = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
  weights = np.maximum(covered, 0.0)
  return weights / weights.sum(axis=1, keepdims=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cca:
  """Paired linear maps of centred data: column i of x @ x_weights correlates with column i of y @ y_weights."""

  x_weights: np.ndarray  # [p, d]
  y_weights: np.ndarray  # [q, d]
  correlations: np.ndarray  # [d], decreasing


def fit_cca(x: np.ndarray, y: np.ndarray, *, ridge: float = 1e-3) -> Cca:
  """Canonical correlation analysis in closed form: whiten both sides, then take the SVD of their cross-covariance.

  Each pair of columns is scaled by its correlation, as in Gong et al. 2014, "A Multi-View Embedding Space". A cosine
  weights all columns equally, and without the scaling the uncorrelated columns would dominate it.

  Args:
    x: [n, p], rows of mean zero.
    y: [n, q], rows of mean zero, paired with those of x.
    ridge: added to each covariance, in units of its mean eigenvalue.
  """
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  x_white, y_white = _whitener(x, ridge), _whitener(y, ridge)
  u, correlations, vt = np.linalg.svd(x_white.T @ (x.T @ y / len(x)) @ y_white, full_matrices=False)
  return Cca(x_weights=x_white @ u * correlations, y_weights=y_white @ vt.T * correlations, correlations=correlations)


def _whitener(x: np.ndarray, ridge: float) -> np.ndarray:
  values, vectors = np.linalg.eigh(x.T @ x / len(x))
  values = values + ridge * values.mean()
  kept = values > 1e-12 * max(values.max(), np.finfo(np.float64).tiny)
  return vectors[:, kept] / np.sqrt(values[kept])


def _principal_components(x: np.ndarray, count: int) -> np.ndarray:
  """[p, count] directions of largest variance of centred rows."""
  return np.linalg.eigh(x.T @ x)[1][:, ::-1][:, :count]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearSync:
  """A fitted pair of linear maps. A call on a clip returns one audio and one video token per frame, as a model does."""

  video_features: Callable[[EvalClip], np.ndarray | None]
  video_weights: np.ndarray  # [features, d]
  audio_weights: np.ndarray  # [3 * 40, d]
  correlations: np.ndarray  # [d] on the training clips

  def __call__(self, clip: EvalClip) -> tuple[np.ndarray, np.ndarray]:
    """(audio [T, d], video [T, d]), each on its own timeline. Raises ValueError if true parameters are missing."""
    video = self.video_features(clip)
    if video is None:
      raise ValueError(f"{clip.key} has no true mouth parameters")
    return audio_features(clip) @ self.audio_weights, video @ self.video_weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearFits:
  """The linear baseline, and its ceiling if every training clip has true mouth parameters."""

  pixels: LinearSync
  parameters: LinearSync | None


def fit_linear(clips: Iterable[EvalClip]) -> LinearFits | None:
  """Fits both maps on training clips, with each video frame paired with the sound of its true lag; None without clips.

  Clips are read once and not kept. The features take 6 kB of memory per frame.
  """
  audio, pixels, truth = [], [], []
  for clip in clips:
    lag, frames = clip.lag or 0, len(clip.frames)
    seen = slice(max(0, lag), frames + min(0, lag))
    audio.append(audio_features(clip)[max(0, -lag) : frames - max(0, lag)])
    pixels.append(mouth_pixels(clip)[seen])
    true_mouth = mouth_parameters(clip)
    truth.append(None if true_mouth is None else true_mouth[seen])
  if not audio:
    return None
  sound = np.concatenate(audio)

  def fit(video_features, video: np.ndarray, basis: np.ndarray) -> LinearSync:
    cca = fit_cca(sound, video @ basis)
    return LinearSync(
      video_features=video_features,
      video_weights=basis @ cca.y_weights,
      audio_weights=cca.x_weights,
      correlations=cca.correlations,
    )

  video = np.concatenate(pixels)
  parameters: LinearSync | None = None
  if all(rows is not None for rows in truth):
    known = np.concatenate(truth)
    parameters = fit(mouth_parameters, known, np.eye(known.shape[1]))
  return LinearFits(
    pixels=fit(mouth_pixels, video, _principal_components(video, PIXEL_COMPONENTS)), parameters=parameters
  )
