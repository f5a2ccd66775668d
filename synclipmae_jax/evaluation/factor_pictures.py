"""Draws the pictures of the factor report to PNG files; each is also returned, uint8 [H, W, 3]."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from synclipmae_jax.evaluation.factors import TOKENS
from synclipmae_jax.evaluation.pictures import COLOURS, MUTED, image_grid, unit_image
from synclipmae_jax.evaluation.token_sheet import Correlation, Neighbours
from synclipmae_jax.figures import new_figure, save
from synclipmae_jax.metrics.verification import Verification


def roc(path: str | os.PathLike, curves: Mapping[str, Verification]) -> np.ndarray:
  """ROC curves of verification by each feature."""
  figure = new_figure(4.6, 4.4)
  axis = figure.add_subplot()
  for colour, (name, found) in zip(COLOURS, curves.items(), strict=False):
    thinned = found.roc.thinned()
    label = f"{name}: AUC {found.auc.value:.2f}, EER {100 * found.eer.value:.0f} %"
    axis.plot(thinned.false_accepts, thinned.true_accepts, color=colour, label=label)
  axis.plot([0, 1], [0, 1], "--", color=MUTED, linewidth=1)
  axis.plot([0, 1], [1, 0], ":", color=MUTED, linewidth=1, label="equal error")
  axis.set(xlabel="pairs of two people accepted", ylabel="pairs of one person accepted", aspect="equal")
  axis.grid(alpha=0.25)
  axis.legend(fontsize=7, loc="lower right")
  return save(figure, path)


def correlation(path: str | os.PathLike, found: Correlation) -> np.ndarray:
  """|r| of all numbers of all tokens."""
  figure = new_figure(5.2, 4.6)
  axis = figure.add_subplot()
  drawn = axis.imshow(np.abs(found.matrix), vmin=0, vmax=1, cmap="magma", interpolation="nearest")
  places = (np.arange(len(TOKENS)) + 0.5) * found.width
  axis.set_xticks(places, list(TOKENS))
  axis.set_yticks(places, list(TOKENS), rotation=90, va="center")
  for edge in range(1, len(TOKENS)):
    axis.axhline(edge * found.width - 0.5, color="white", linewidth=1)
    axis.axvline(edge * found.width - 0.5, color="white", linewidth=1)
  figure.colorbar(drawn, ax=axis, label="|r|", shrink=0.85)
  return save(figure, path)


def neighbours(path: str | os.PathLike, found: Neighbours, frames: np.ndarray, *, queries: Sequence[int]) -> np.ndarray:
  """A row for each query (a row of `frames` uint8 [N, S, S, 3]): the frame, and the nearest by each token."""
  gap = np.ones((1, *frames.shape[1:]))
  rows = {
    f"{number + 1}": np.concatenate(
      [unit_image(frames[[query]])]
      + [part for token in TOKENS for part in (gap, unit_image(frames[found.nearest[token][query]]))]
    )
    for number, query in enumerate(queries)
  }
  count = found.nearest["vocal"].shape[1]
  titles = ["frame"] + [title for token in TOKENS for title in ("", f"by {token}", *[""] * (count - 1))]
  return save(image_grid(rows, titles), path)


def strip(path: str | os.PathLike, rows: Mapping[str, np.ndarray], titles: Sequence[str] = ()) -> np.ndarray:
  """Labelled rows of images [F, S, S, 3], uint8 or float in 0..1."""
  return save(image_grid({label: unit_image(images) for label, images in rows.items()}, titles), path)
