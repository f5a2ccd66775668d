"""Reports of `sync`: a table for the terminal, a CSV file, a plot."""

from __future__ import annotations

import csv
import math
import os
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from synclipmae_jax.data.media.ffmpeg_command import ffmpeg_command
from synclipmae_jax.data.output_file import writing
from synclipmae_jax.figures import new_figure, save
from synclipmae_jax.metrics.sync import LAGS, MAX_LAG
from synclipmae_jax.sync.result import MS_PER_FRAME, SyncResult
from synclipmae_jax.types import FPS, InputError
from synclipmae_jax.web_page import printable

if TYPE_CHECKING:
  from matplotlib.figure import Figure

WIDTH = 100  # columns of a table
_HEADINGS = ("file", "frames", "ms", "confidence", "95 % within", "verdict")
_VERDICTS = {"in_sync": "in sync", "out_of_sync": "out of sync", "not_synchronizable": "cannot be told"}
_COLUMNS = (
  "file", "verdict", "lag_frames", "lag_ms", "confidence", "interval_low", "interval_high", "score",
  "drift_ms_per_min", "faces", "fps", "duration_s", "checkpoint", "reason", "notes",
)  # fmt: skip
_INK, _LAG, _MUTED, _SPEECH = "#222222", "#d55e00", "#8a8a8a", "#56b4e9"  # Okabe and Ito: for colour blindness
_MAX_COLUMNS = 1200  # of a plot: a longer file is averaged


def table(results: Sequence[SyncResult]) -> str:
  """One row for each file, at most WIDTH columns wide; a single file is also described in words. "" without results."""
  if not results:
    return ""
  rows = [_HEADINGS, *(_row(result) for result in results)]
  widths = [max(_width(row[column]) for row in rows) for column in range(len(_HEADINGS))]
  widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1))
  lines = []
  for file, *numbers, verdict in rows:
    cells = [_pad(_shortened(file, widths[0]), widths[0])]
    cells += [number.rjust(width) for number, width in zip(numbers, widths[1:-1], strict=True)]
    lines.append("  ".join([*cells, verdict]).rstrip())
  lines.insert(1, "  ".join("─" * width for width in widths))
  if len(results) == 1:
    lines.append("")
    for sentence in _sentences(results[0]):
      lines += [sentence] if sentence.startswith("ffmpeg ") else _wrapped(sentence)
  return "\n".join(lines)


def advice(result: SyncResult) -> str:
  """One sentence: the lag of the file and its correction."""
  if result.verdict == "not_synchronizable" or result.lag_ms is None:
    return f"Whether picture and sound fit cannot be told: {result.reason}"
  if result.verdict == "in_sync":
    return f"Picture and sound are in sync: {result.reason}"
  late, ms = result.lag_ms > 0, f"{abs(result.lag_ms):.0f} ms"
  return f"The picture comes {ms} {'late' if late else 'early'}: delay the {'sound' if late else 'picture'} by {ms}."


def write_csv(results: Sequence[SyncResult], path: str | os.PathLike) -> None:
  """One row for each file, columns as named in the first row, empty if a value is not defined; UTF-8.

  Raises InputError if `path` cannot be written; an existing file then stays.
  """
  with writing(path) as partial, open(partial, "w", newline="", encoding="utf-8", errors="replace") as file:
    writer = csv.writer(file)
    writer.writerow(_COLUMNS)
    for result in results:
      low, high = result.interval or (None, None)
      values = {
        **result.to_json(), "interval_low": low, "interval_high": high, "faces": len(result.faces),
        "notes": "; ".join(result.notes),
      }  # fmt: skip
      writer.writerow("" if values[name] is None else values[name] for name in _COLUMNS)


def plot(result: SyncResult, path: str | os.PathLike) -> None:
  """Draws a PNG: the lag over time on the score map (if the result has one), beside it the mean curve.

  More than _MAX_COLUMNS frames are averaged. Raises InputError if `path` cannot be written.
  """
  with writing(path) as partial, warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a name in a script it lacks: boxes
    save(_figure(result), partial)


def _row(result: SyncResult) -> tuple[str, ...]:
  lag = "–" if result.lag_frames is None else _signed(result.lag_frames, 1)
  ms = "–" if result.lag_ms is None else _signed(result.lag_ms, 0)
  interval = "–" if result.interval is None else " … ".join(_signed(end, 0) for end in result.interval)
  confidence = f"{100 * result.confidence:.0f} %" if math.isfinite(result.confidence) else "–"
  return printable(result.file), lag, ms, confidence, interval, _VERDICTS[result.verdict]


def _sentences(result: SyncResult) -> Iterator[str]:
  yield advice(result)
  if result.verdict == "out_of_sync" and result.lag_ms is not None:
    try:
      command = ffmpeg_command(result.file, result.lag_ms)
      yield "With --fix OUT, or:" if command else "With --fix OUT."
      if command:
        yield command  # never wrapped: it is copied into a shell
    except InputError as error:
      yield f"--fix cannot correct it: {error}."
  if result.drift_ms_per_min is not None:
    yield f"Drift: {_signed(result.drift_ms_per_min, 1)} ms a minute."
  for face in result.faces:
    lag = "its lag cannot be told" if face.lag_frames is None else f"lag {_signed(face.lag_frames, 1)} frames"
    yield (
      f"Face {face.id}: {face.start:.1f} – {face.end:.1f} s, speaks {100 * face.speaking:.0f} % of the speech, {lag}."
    )
  for note in result.notes:
    yield f"Note: {note}"


def _signed(value: float, digits: int) -> str:
  """+5, 0, -5: never -0."""
  text = f"{value:+.{digits}f}"
  return text if text.strip("+-0.") else text[1:]


def _width(text: str) -> int:
  return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _pad(text: str, width: int) -> str:
  return text + " " * (width - _width(text))


def _shortened(text: str, width: int) -> str:
  """Shortens a path in the middle."""
  if _width(text) <= width:
    return text
  head, tail = text[: len(text) // 2], text[len(text) // 2 :]
  while _width(head) + _width(tail) + 1 > width:
    head, tail = (head[:-1], tail) if _width(head) > _width(tail) / 2 else (head, tail[1:])
  return f"{head}…{tail}"


def _wrapped(sentence: str) -> Iterator[str]:
  line = ""
  for word in printable(sentence).split():
    if line and _width(line) + 1 + _width(word) > WIDTH:
      yield line
      line = "  " + word
    else:
      line = f"{line} {word}" if line else word
  yield line


def _figure(result: SyncResult) -> Figure:
  figure = new_figure(11, 5.2)
  grid = figure.add_gridspec(2, 2, width_ratios=(5, 1), height_ratios=(14, 1))
  over_time = figure.add_subplot(grid[0, 0])
  speech = figure.add_subplot(grid[1, 0], sharex=over_time)
  curve = figure.add_subplot(grid[0, 1], sharey=over_time)
  name = _shortened(printable(os.path.basename(result.file)), 60).replace("$", r"\$")
  figure.suptitle(f"{name}: {_headline(result)}", fontsize=12, color=_INK)

  times, lags, scores, speaks, score_map = _blocks(result)
  unit, scale = ("min", 60) if result.duration_s > 180 else ("s", 1)
  times, end = times / scale, max(result.duration_s, 1 / FPS) / scale
  drawn = None
  if score_map is not None:
    low, high = np.nanpercentile(score_map, (2, 99.8)) if np.isfinite(score_map).any() else (0, 1)
    drawn = over_time.imshow(
      score_map.T, origin="lower", aspect="auto", cmap="cividis", vmin=low, vmax=high, interpolation="nearest",
      extent=(0, len(result.frames) / FPS / scale, -MAX_LAG - 0.5, MAX_LAG + 0.5),
    )  # fmt: skip
    over_time.scatter(times, lags, s=5, color="white", edgecolors=_INK, linewidths=0.3, label="best lag", zorder=3)
  elif len(times):
    drawn = over_time.scatter(times, lags, s=9, c=scores, cmap="cividis", zorder=3)
  if drawn is not None:
    figure.colorbar(drawn, ax=over_time, location="left", pad=0.01, label="cosine of sound and lips")
  for axis in (over_time, curve):
    if result.interval is not None:
      low, high = result.interval
      axis.axhspan(low - 0.5, high + 0.5, facecolor=_LAG, alpha=0.15, lw=0)
      axis.hlines((low - 0.5, high + 0.5), 0, 1, transform=axis.get_yaxis_transform(), color=_LAG, lw=1, ls=":",
                  label="95 % interval")  # fmt: skip
    if result.lag_frames is not None:
      axis.axhline(result.lag_frames, color=_LAG, lw=1.6, ls="--", label=f"lag {_signed(result.lag_frames, 1)}")
  over_time.set(xlim=(0, end), ylim=(-MAX_LAG - 0.5, MAX_LAG + 0.5), ylabel="lag / frames of 40 ms")
  over_time.tick_params(labelbottom=False)
  if over_time.get_legend_handles_labels()[0]:
    legend = over_time.legend(
      loc="lower right", bbox_to_anchor=(1, 1), fontsize=9, frameon=False, ncols=3, borderaxespad=0.2
    )
    for handle in legend.legend_handles[: score_map is not None]:  # a dot of the map is too small for a legend
      handle.set_sizes([24])

  speech.fill_between(times, speaks, step="mid", color=_SPEECH, lw=0)
  speech.set(ylim=(0, 1), yticks=[], xlabel=f"time / {unit}")
  speech.set_ylabel("speech", rotation=0, ha="right", va="center")

  if len(result.curve) == len(LAGS):
    curve.plot(result.curve, LAGS, color=_INK, lw=1.4, marker="o", ms=2.5)
  curve.xaxis.tick_top()
  curve.set_title("mean cosine", fontsize=10)
  curve.secondary_yaxis("right", functions=(lambda lag: lag * MS_PER_FRAME, lambda ms: ms / MS_PER_FRAME)).set_ylabel(
    "lag / ms (positive: the picture comes late)"
  )
  curve.tick_params(labelleft=False)
  curve.grid(axis="x", color=_MUTED, alpha=0.3)
  return figure


def _headline(result: SyncResult) -> str:
  if result.lag_ms is None:
    return _VERDICTS[result.verdict]
  return f"{_VERDICTS[result.verdict]}, {_signed(result.lag_ms, 0)} ms, confidence {100 * result.confidence:.0f} %"


def _blocks(result: SyncResult) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
  """(times, lags, scores, share of speech, score map): rows of blocks of frames, one frame each in a short file.

  A block's lag is the median, its score and map rows the mean, of the frames that have them; nan without any.
  """
  size = max(1, -(-len(result.frames) // _MAX_COLUMNS))

  def blocks(values, reduce) -> np.ndarray:
    values = np.asarray(values, np.float32)
    padding = np.full((-len(values) % size, *values.shape[1:]), np.nan, np.float32)
    values = np.ma.masked_invalid(np.concatenate([values, padding]).reshape(-1, size, *values.shape[1:]))
    return np.ma.filled(reduce(values, axis=1), np.nan) if len(values) else np.zeros((0, *values.shape[2:]))

  def column(name: str) -> list[float]:
    return [np.nan if (value := getattr(frame, name)) is None else float(value) for frame in result.frames]

  score_map = None if result.score_map is None else blocks(result.score_map, np.ma.mean)
  return (
    blocks(column("t"), np.ma.mean),
    blocks(column("lag"), np.ma.median),
    blocks(column("score"), np.ma.mean),
    blocks(column("speech"), np.ma.mean),
    score_map,
  )
