"""Draws the pictures of a training run to PNG files. Pictures for the log are also returned, uint8 [H, W, 3]."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from synclipmae_jax.figures import new_figure, save
from synclipmae_jax.metrics.bootstrap import clip_bootstrap
from synclipmae_jax.metrics.sync import LAGS, MAX_LAG, ClipTokens, LagState, lag_scores, unit
from synclipmae_jax.types import FPS

if TYPE_CHECKING:
  from matplotlib.figure import Figure

INK, TRUTH, MUTED = "#1f4e79", "#d1495b", "#8a8a8a"
COLOURS = ("#1f4e79", "#d1495b", "#3a7d44", "#e09f3e", "#6d597a", "#8a8a8a")


def reconstruction(
  path: str | os.PathLike,
  *,
  original: np.ndarray,
  uniform_visible: np.ndarray,
  face_view: np.ndarray,
  face_visible: np.ndarray,
  video_driven: np.ndarray,
  audio_driven: np.ndarray,
  titles: Sequence[str] = (),
) -> np.ndarray:
  """Input of the encoder and output of the decoder, one column per frame.

  Images are [F, S, S, 3], uint8 or float in 0..1. The rows "visible pasted" show the visible patches of the uniform
  view unchanged and the decoder's pixels elsewhere: the decoder need not predict visible patches.

  Args:
    path: PNG file.
    original: un-jittered frames.
    uniform_visible: bool [F, N], the patches of view 1, row by row (N a square).
    face_view: jittered frames of view 2.
    face_visible: bool [F, N], the patches of view 2.
    video_driven: decoded from identity, ambient and vocal tokens.
    audio_driven: decoded with the audio token in place of the vocal one.
    titles: one for each column.
  """
  original, face_view, video_driven, audio_driven = map(unit_image, (original, face_view, video_driven, audio_driven))
  visible = _pixels(uniform_visible, original.shape[1])
  rows = {
    "original": original,
    "view 1: uniform": _masked(original, visible),
    "view 2: face-aware,\njittered": _masked(face_view, _pixels(face_visible, original.shape[1])),
    "video-driven": video_driven,
    "video-driven,\nvisible pasted": np.where(visible, original, video_driven),
    "audio-driven": audio_driven,
    "audio-driven,\nvisible pasted": np.where(visible, original, audio_driven),
  }
  return save(image_grid(rows, titles), path)


def factor_swap(
  path: str | os.PathLike,
  *,
  identity_of: np.ndarray,
  mouth_of: np.ndarray,
  pose_of: np.ndarray,
  decoded: np.ndarray,
  titles: Sequence[str] = (),
) -> np.ndarray:
  """Each column: three people and the picture decoded from the identity, mouth and pose of the first, second and third.

  All [R, S, S, 3], uint8 or float in 0..1.
  """
  rows = {"identity of": identity_of, "mouth of": mouth_of, "pose of": pose_of, "decoded": decoded}
  return save(image_grid({label: unit_image(images) for label, images in rows.items()}, titles), path)


def similarity(path: str | os.PathLike, clips: Sequence[ClipTokens]) -> np.ndarray:
  """cos(audio at t, vocal at t') of each clip (at least one), with the range of searched lags and the true lag."""
  matrices = [unit(clip.audio) @ unit(clip.vocal).T for clip in clips]
  limit = max(np.abs(matrix).max() for matrix in matrices)
  figure = new_figure(4.2 * len(clips) + 0.8, 4.4)
  axes = figure.subplots(1, len(clips), squeeze=False)[0]
  for axis, clip, matrix in zip(axes, clips, matrices, strict=True):
    seconds = clip.frames / FPS
    extent = (0, seconds, 0, seconds)
    image = axis.imshow(matrix, extent=extent, origin="lower", cmap="RdBu_r", vmin=-limit, vmax=limit)
    lines = [(lag, MUTED, "--", f"searched, ±{MAX_LAG}" if lag > 0 else None) for lag in (-MAX_LAG, MAX_LAG)]
    for lag, colour, style, label in lines + [(clip.true_lag, "black", ":", _lag_label(clip))]:
      # The video shows the sound of time t at t + lag.
      axis.plot([lag / FPS, lag / FPS + seconds], [0, seconds], style, color=colour, linewidth=1, label=label)
    axis.set(xlim=(0, seconds), ylim=(0, seconds), xlabel="video time, s", ylabel="audio time, s")
    axis.set_title(clip.key, fontsize=9)
    axis.legend(loc="lower right", fontsize=7)
  figure.colorbar(image, ax=axes, label="cosine", shrink=0.8)
  return save(figure, path)


def lag(path: str | os.PathLike, clips: Sequence[ClipTokens], *, state: LagState) -> None:
  """The score s(l, t) of `clips` over time and its mean; found lag against true lag and mean score of all clips.

  The last column shows the clips of `state` whose true lag is inside the search range. Without such clips no file is
  written.
  """
  scored = [clip for clip in state.clips if abs(clip.true_lag) < MAX_LAG]
  if not scored:
    return
  figure = new_figure(3.4 * (len(clips) + 1), 5.6)
  axes = figure.subplots(2, len(clips) + 1, squeeze=False, height_ratios=(3, 2))
  for (heat, curve), clip in zip(axes.T[:-1], clips, strict=True):
    scores = lag_scores(clip.audio, clip.vocal, clip.similarity)
    start = MAX_LAG / FPS
    heat.imshow(
      scores.T,
      extent=(start, start + len(scores) / FPS, -MAX_LAG - 0.5, MAX_LAG + 0.5),
      origin="lower",
      aspect="auto",
      cmap="viridis",
    )
    heat.axhline(clip.true_lag, color=TRUTH, linestyle=":")
    heat.set(xlabel="audio time, s", ylabel="lag, frames")
    heat.set_title(clip.key, fontsize=9)
    _lag_curve(curve, LAGS, scores.mean(axis=0))
    curve.axvline(clip.true_lag, color=TRUTH, linestyle=":", label=_lag_label(clip))
    curve.legend(fontsize=7)
  heat, curve = axes.T[-1]
  reach = MAX_LAG - max(abs(clip.true_lag) for clip in scored)
  around = np.arange(-reach, reach + 1)
  curves = np.stack([clip.curve[clip.true_lag + MAX_LAG + around] for clip in scored])
  found = [int(LAGS[clip.curve.argmax()]) for clip in scored]
  heat.plot([-MAX_LAG, MAX_LAG], [-MAX_LAG, MAX_LAG], ":", color=TRUTH)
  heat.scatter([clip.true_lag for clip in scored], found, s=14, alpha=0.6, color=INK)
  heat.set(xlabel="true lag, frames", ylabel="lag of the whole clip, frames")
  heat.set_title(f"{len(curves)} clips", fontsize=9)
  estimates = clip_bootstrap(curves)
  _lag_curve(curve, around, np.array([e.value for e in estimates]))
  low, high = [e.low for e in estimates], [e.high for e in estimates]
  curve.fill_between(around, low, high, color=INK, alpha=0.2, label="95 %")
  curve.axvline(0, color=TRUTH, linestyle=":")
  curve.set_xlabel("lag minus true lag, frames")
  curve.legend(fontsize=7)
  save(figure, path)


def factors(
  path: str | os.PathLike,
  *,
  groups: Mapping[str, Mapping[str, float]],
  parameters: Mapping[str, Mapping[str, float]],
) -> None:
  """R² by kind of token (rows): of every factor, and of every true parameter, "factor/name". Below 0 is drawn as 0."""
  columns = [len(next(iter(rows.values()))) for rows in (groups, parameters)]
  figure = new_figure(3 + 0.9 * columns[0] + 0.24 * columns[1], 3.2)
  left, axis = figure.subplots(1, 2, width_ratios=(columns[0] / 2, columns[1] / 6))
  values = _heat_map(left, groups)[0]
  left.set_yticks(range(len(groups)), list(groups), fontsize=8)
  for (row, column), value in np.ndenumerate(values):
    text = "-" if np.isnan(value) else f"{value:.2f}"
    left.text(column, row, text, ha="center", va="center", color="black" if value > 0.6 else "white")
  image = _heat_map(axis, parameters)[1]
  axis.tick_params("x", rotation=90)
  axis.set_yticks([])
  figure.colorbar(image, ax=axis, label="R², people not fitted on")
  save(figure, path)


def confusion(path: str | os.PathLike, counts: np.ndarray, classes: Sequence[str]) -> None:
  """int [C, C], row: true class, column: what was answered. The colour is the share of the row."""
  shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  rows = {name: dict(zip(classes, row.tolist(), strict=True)) for name, row in zip(classes, shares, strict=True)}
  figure = new_figure(2.4 + 0.6 * len(classes), 1.8 + 0.45 * len(classes))
  axis = figure.subplots()
  image = _heat_map(axis, rows)[1]
  axis.tick_params("x", rotation=45)
  axis.set_yticks(range(len(classes)), classes, fontsize=7)
  axis.set(xlabel="answered", ylabel="true")
  for (row, column), count in np.ndenumerate(counts):
    colour = "black" if shares[row, column] > 0.6 else "white"
    axis.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
  figure.colorbar(image, ax=axis, label="share of the true class")
  save(figure, path)


def class_bars(path: str | os.PathLike, values: Mapping[str, float], *, label: str, chance: float) -> None:
  """One bar a class, in 0..1, and the level of chance. A class without a number has no bar."""
  figure = new_figure(6, 1.2 + 0.24 * len(values))
  axis = figure.subplots()
  places = np.arange(len(values))[::-1]
  axis.barh(places, list(values.values()), color=INK)
  axis.set_yticks(places, list(values), fontsize=8)
  axis.axvline(chance, color=TRUTH, linestyle=":", label="chance")
  axis.set(xlim=(0, 1), xlabel=label)
  axis.legend(fontsize=7)
  save(figure, path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
  """One axis of `curves`: values of the records over the steps, and reference levels."""

  title: str
  series: Mapping[str, str]  # label -> key in the records; a nested key is written with "/"
  references: Mapping[str, float] = dataclasses.field(default_factory=dict)  # label -> level
  log: bool = False


def curves(path: str | os.PathLike, records: Iterable[Mapping[str, Any]], *, panels: Sequence[Panel]) -> None:
  """Curves over training steps. `records` hold "step" and logged values; absent keys leave gaps.

  If a step was logged several times, the last record counts.
  """
  records = list(records)
  columns = min(3, len(panels))
  rows = -(-len(panels) // columns)
  figure = new_figure(4.2 * columns, 3.0 * rows)
  axes = figure.subplots(rows, columns, squeeze=False).ravel()
  for axis in axes[len(panels) :]:
    axis.set_axis_off()
  for axis, panel in zip(axes, panels, strict=False):
    for (label, key), colour in zip(panel.series.items(), COLOURS, strict=False):
      points = {r["step"]: value for r in records if (value := _lookup(r, key)) is not None}
      steps = sorted(points)
      values = [points[step] for step in steps]
      marker = "o" if len(steps) < 30 else None
      axis.plot(steps, values, color=colour, marker=marker, markersize=3, linewidth=1.4, label=label)
    for (label, level), style in zip(panel.references.items(), ("--", ":", "-."), strict=False):
      axis.axhline(level, color=MUTED, linestyle=style, linewidth=1, label=label)
    axis.set_yscale("log" if panel.log else "linear")
    axis.set_title(panel.title, fontsize=10)
    axis.set_xlabel("step")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=7)
  save(figure, path)


def _heat_map(axis, rows: Mapping[str, Mapping[str, float]]) -> tuple[np.ndarray, Any]:
  """The values [rows, columns] and their drawn image on a scale of 0 to 1."""
  values = np.array([list(row.values()) for row in rows.values()])
  image = axis.imshow(np.clip(values, 0, 1), vmin=0, vmax=1, cmap="viridis", aspect="auto")
  axis.set_xticks(range(values.shape[1]), list(next(iter(rows.values()))), fontsize=7)
  return values, image


def _lookup(record: Mapping[str, Any], key: str) -> Any:
  """The value under "a/b", flat or nested; None if absent."""
  if key in record:
    return record[key]
  head, _, rest = key.partition("/")
  inner = record.get(head)
  return _lookup(inner, rest) if rest and isinstance(inner, Mapping) else None


def _lag_curve(axis, lags: np.ndarray, scores: np.ndarray) -> None:
  axis.plot(lags, scores, color=INK)
  axis.plot(lags[scores.argmax()], scores.max(), "o", color=INK, markersize=5, label=f"best {lags[scores.argmax()]:+d}")
  axis.set(xlabel="lag, frames", ylabel="mean cosine")
  axis.grid(alpha=0.25)


def _lag_label(clip: ClipTokens) -> str:
  return f"true lag {clip.lag:+d}" if clip.lag is not None else "true lag unknown"


def unit_image(images: np.ndarray) -> np.ndarray:
  """[F, S, S, 3] uint8 or float -> float in 0..1."""
  images = np.asarray(images)
  return images / 255 if images.dtype == np.uint8 else np.clip(images.astype(np.float64), 0, 1)


def _pixels(visible: np.ndarray, size: int) -> np.ndarray:
  """[F, N] over a square grid of patches -> [F, S, S, 1] over pixels."""
  visible = np.asarray(visible, bool)
  side = int(round(visible.shape[1] ** 0.5))
  if side * side != visible.shape[1] or size % side:
    raise ValueError(f"{visible.shape[1]} patches do not tile a square image of {size} pixels")
  grid = visible.reshape(-1, side, side)
  return grid.repeat(size // side, axis=1).repeat(size // side, axis=2)[..., None]


def _masked(images: np.ndarray, visible: np.ndarray) -> np.ndarray:
  return np.where(visible, images, 0.75)


def image_grid(rows: Mapping[str, np.ndarray], titles: Sequence[str]) -> Figure:
  count = len(next(iter(rows.values())))
  figure = new_figure(1.25 * count + 1.1, 1.25 * len(rows) + 0.3)
  axes = figure.subplots(len(rows), count, squeeze=False)
  for line, (label, images) in zip(axes, rows.items(), strict=True):
    for axis, image in zip(line, images, strict=True):
      axis.imshow(image)
      axis.set(xticks=[], yticks=[])
      axis.spines[:].set_visible(False)
    line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
  for axis, title in zip(axes[0], titles, strict=False):
    axis.set_title(title, fontsize=8)
  return figure
