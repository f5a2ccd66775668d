"""What tokens show without training anything but a ridge: who is who, what goes together, what lies near.

All of it is measured on the chosen frames of held-out clips, with or without a known truth.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from synclipmae_jax.evaluation.factors import TOKENS
from synclipmae_jax.evaluation.table import interval_or_null, markdown, number_or_null, value_or_null
from synclipmae_jax.metrics import factors
from synclipmae_jax.metrics.bootstrap import Estimate
from synclipmae_jax.metrics.factors import ClipFactors, CrossValidated, FactorState
from synclipmae_jax.metrics.sync import unit
from synclipmae_jax.metrics.verification import Verification, verify_people

FEATURES = (*TOKENS, "picture")  # beside the tokens the principal components of the bare picture, as many numbers
NEAREST = 4  # of each token, in a picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class People:
  """Who is who, by the mean of a feature over a clip."""

  verification: Verification | None  # None without two clips of a person
  retrieval: Estimate
  chance: float  # of the retrieval

  @classmethod
  def of(cls, feature: str, state: FactorState) -> People:
    retrieval, chance = factors.retrieve_people(feature, state)
    return cls(verification=verify_people(feature, state), retrieval=retrieval, chance=chance)

  def to_json(self) -> dict[str, Any] | None:
    if self.verification is None:
      return None
    found, roc = self.verification, self.verification.roc.thinned()
    cell = lambda estimate: {"value": value_or_null(estimate), "ci95": interval_or_null(estimate)}
    return {
      "auc": cell(found.auc), "eer": cell(found.eer), "pairs_of_one_person": found.pairs[0],
      "pairs_of_two": found.pairs[1], "retrieval_top1": cell(self.retrieval), "retrieval_chance": self.chance,
      "roc": {"false_accepts": roc.false_accepts.round(5).tolist(), "true_accepts": roc.true_accepts.round(5).tolist()},
    }  # fmt: skip


def people_table(people: Mapping[str, People]) -> str:
  """Markdown; "" where nobody is seen in two clips."""
  known = {name: each for name, each in people.items() if each.verification}
  if not known:
    return ""

  def cell(estimate: Estimate, scale: float = 1, digits: int = 2) -> str:
    value, low, high = (f"{scale * x:.{digits}f}" for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low}–{high})"

  rows = [
    [name, cell(each.verification.auc), cell(each.verification.eer, 100, 1), cell(each.retrieval, 100, 1)]
    for name, each in known.items()
  ]
  one = next(iter(known.values()))
  return "\n".join([
    *markdown(["same person?", "AUC", "EER, %", "retrieved first, %"], rows),
    f"Cosine of the clips' means; {one.verification.pairs[0]} pairs of clips of one person, {one.verification.pairs[1]}"
    f" of two. Chance: AUC .5, EER 50 %, retrieval {100 * one.chance:.1f} %. In brackets 95 % over people.",
  ])  # fmt: skip


# -- measured motion --


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
  """R² from each feature to the motion that the landmarks of the face mesh show."""

  rows: Mapping[str, CrossValidated]
  people: int
  clips: int

  @property
  def over(self) -> str:
    return next(iter(self.rows.values())).over

  def to_json(self) -> dict[str, Any]:
    numbers = lambda values: {name: number_or_null(value) for name, value in values.items()}
    return {
      "people": self.people, "clips": self.clips, "folds_over": self.over,
      "r2": {name: numbers(row.r2) for name, row in self.rows.items()},
      "r2_within_clips": {name: numbers(row.within_clips) for name, row in self.rows.items()},
    }  # fmt: skip

  def table(self) -> str:
    names = list(next(iter(self.rows.values())).r2)
    cell = lambda value: "-" if np.isnan(value) else f"{value:.2f}"
    blocks = []
    for label, kind in (("R² of the value", "r2"), ("R² within clips", "within_clips")):
      body = [[name, *(cell(getattr(row, kind)[each]) for each in names)] for name, row in self.rows.items()]
      blocks += [*markdown([label, *(name.split("/")[1] for name in names)], body), ""]
    return "\n".join([
      *blocks,
      f"Ridge regression to what the landmarks of the face mesh show, {self.clips} clips of {self.people} people, in"
      f" {factors.FOLDS} folds over {self.over}. Within clips: the mean of each clip is taken away, so that only the"
      " motion counts.",
    ])  # fmt: skip


def measure_motion(state: FactorState, names: Sequence[str]) -> Measured | None:
  """`state`: its truth is the measured motion [n, names]. None for fewer than 3 clips."""
  rows = {name: factors.cross_validated_r2(name, state, names) for name in FEATURES}
  if any(row is None for row in rows.values()):
    return None
  return Measured(rows=rows, people=len(state.people), clips=len(state.clips))


# -- what goes together --


@dataclasses.dataclass(frozen=True, kw_only=True)
class Correlation:
  """Pearson's r of all numbers of all tokens over frames."""

  matrix: np.ndarray  # [3 D, 3 D], in the order of TOKENS
  width: int  # D
  frames: int

  @classmethod
  def of(cls, state: FactorState) -> Correlation:
    tokens = [np.concatenate([clip.features[name] for clip in state.ordered]) for name in TOKENS]
    joined = np.concatenate(tokens, axis=1).astype(np.float64)
    joined -= joined.mean(0)
    deviation = np.linalg.norm(joined, axis=0)
    joined /= np.where(deviation > 0, deviation, 1)  # a constant number goes with nothing
    return cls(matrix=joined.T @ joined, width=tokens[0].shape[1], frames=len(joined))

  def blocks(self) -> dict[str, dict[str, float]]:
    """Root mean square of r of each pair of tokens; of a token with itself without the diagonal."""
    found: dict[str, dict[str, float]] = {name: {} for name in TOKENS}
    for (i, a), (j, b) in itertools.product(enumerate(TOKENS), repeat=2):
      block = self.matrix[i * self.width :, j * self.width :][: self.width, : self.width]
      kept = ~np.eye(self.width, dtype=bool) if a == b else np.ones_like(block, bool)
      found[a][b] = float(np.sqrt(np.mean(np.square(block[kept]))))
    return found

  def to_json(self) -> dict[str, Any]:
    return {"rms_r": self.blocks(), "frames": self.frames}

  def table(self) -> str:
    body = [[name, *(f"{value:.2f}" for value in row.values())] for name, row in self.blocks().items()]
    return "\n".join([
      *markdown(["rms r", *TOKENS], body),
      f"Correlation of the numbers of two tokens over {self.frames} frames; of unrelated numbers about"
      f" {self.frames**-0.5:.2f}.",
    ])  # fmt: skip


# -- what lies near --


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbours:
  """The frames of other clips that are nearest to each frame, by cosine."""

  nearest: Mapping[str, np.ndarray]  # token -> int [N, NEAREST], at most one of a clip
  clip: np.ndarray  # int [N]: the clip of a frame, in the order of the keys
  ratios: Mapping[str, Mapping[str, float]]  # token -> factor -> squared difference / that of two random frames

  def to_json(self) -> dict[str, Any]:
    return {name: {group: number_or_null(value) for group, value in row.items()} for name, row in self.ratios.items()}

  def table(self) -> str:
    """ "" without known parameters."""
    groups = [group for group in factors.GROUPS if any(not np.isnan(row[group]) for row in self.ratios.values())]
    if not groups:
      return ""
    body = [[name, *(f"{row[group]:.2f}" for group in groups)] for name, row in self.ratios.items()]
    return "\n".join([
      *markdown(["nearest by", *groups], body),
      "Squared difference of the parameters between a frame and the nearest frame of another clip, relative to two"
      " frames drawn at random: 0 is equal, 1 is chance.",
    ])  # fmt: skip


def find_neighbours(state: FactorState, names: Sequence[str]) -> Neighbours | None:
  """`names`: of the truth, which may have no column. None for a single clip."""
  clips = state.ordered
  if len(clips) < 2:
    return None
  clip = np.repeat(np.arange(len(clips)), [len(each.truth) for each in clips])
  truth = np.concatenate([each.truth for each in clips]).astype(np.float64)
  count = min(NEAREST, len(clips) - 1)
  nearest = {}
  for token in TOKENS:
    tokens = unit(np.concatenate([each.features[token] for each in clips]))
    rows = np.zeros((len(clip), count), int)
    starts = np.searchsorted(clip, np.arange(len(clips)))
    for own in range(len(clips)):  # one clip at a time bounds the memory
      mine = np.flatnonzero(clip == own)
      cosine = tokens[mine] @ tokens.T
      cosine[:, mine] = -np.inf
      best = np.maximum.reduceat(cosine, starts, axis=1)  # of every other clip
      for row, scores, of_clips in zip(mine, cosine, best, strict=True):
        chosen = np.argsort(-of_clips, kind="stable")[:count]
        rows[row] = [starts[c] + scores[clip == c].argmax() for c in chosen]
    nearest[token] = rows
  return Neighbours(
    nearest=nearest, clip=clip, ratios={token: _ratios(truth, rows[:, 0], names) for token, rows in nearest.items()}
  )


def _ratios(truth: np.ndarray, nearest: np.ndarray, names: Sequence[str]) -> dict[str, float]:
  """Factor -> mean over its parameters, as `factors.group_means` counts them."""
  if not len(names):
    return dict.fromkeys(factors.GROUPS, np.nan)
  spread = 2 * truth.var(axis=0)  # of two frames drawn at random
  near = np.square(truth - truth[nearest]).mean(axis=0)
  values = np.where(spread > 0, near / np.where(spread > 0, spread, 1), np.nan)
  return factors.group_means(dict(zip(names, values.tolist(), strict=True)))


def without_unknown(clip: ClipFactors, motion: np.ndarray) -> ClipFactors | None:
  """The frames of a clip whose motion [n, M] is known, with it as the truth; None for fewer than two."""
  known = np.isfinite(motion).all(axis=1)
  if known.sum() < 2:
    return None
  return dataclasses.replace(
    clip, features={name: values[known] for name, values in clip.features.items()}, truth=motion[known]
  )
