"""What tokens tell of the true factors of a picture: ridge regression across people, and retrieval of a person.

A linear map from each kind of token to every true parameter is fitted on the frames of some people and judged on those
of others, by R² = 1 - squared error / squared deviation from the mean of the judged frames. The parameters of a person
(`identity/...`) are constant in a clip: they are read from the mean token of the clip. The strength of the ridge is
chosen for each parameter by cross-validation over the people who are fitted on.

Retrieval: the mean token of another clip of the same person must be nearer, by cosine, than those of all clips of other
people. Every ordered pair of clips of a person is a query; chance is 1 / (1 + clips of other people).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from synclipmae_jax.metrics.bootstrap import Estimate, clip_bootstrap
from synclipmae_jax.metrics.retrieval import expected_hits
from synclipmae_jax.metrics.sync import unit

FRAMES = 24  # of a clip, at most; frames between them say the same
POOL = 160  # clips of a retrieval, at most
FOLDS = 5
STRENGTHS = np.logspace(-6, 2, 17)  # of the ridge, in units of the mean eigenvalue of the features' covariance

# Factor -> the parameters of its mean, as data/synthtalk names them behind "factor/"; none: all of the factor.
GROUPS = {
  "mouth": ("jaw", "opening", "width", "rounding"),
  "ambient": ("yaw", "pitch", "roll", "blink_left", "blink_right", "brow", "gaze_x", "gaze_y", "smile"),
  "identity": (),
}
PER_CLIP = "identity/"  # parameters that are constant in a clip


def spread_frames(frames: int) -> np.ndarray:
  """Which of so many frames of a clip are looked at: int [min(frames, FRAMES)], evenly spread."""
  return np.linspace(0, frames - 1, min(frames, FRAMES)).round().astype(int)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipFactors:
  """The features of the n chosen frames of one clip, by name, and the truth beside them.

  Raises ValueError where their lengths differ or a value is not finite.
  """

  key: str
  identity: str  # who is seen; '' where nobody knows
  features: Mapping[str, np.ndarray]  # name -> float [n, D]
  truth: np.ndarray  # float [n, P]

  def __post_init__(self):
    for name, values in {**self.features, "truth": self.truth}.items():
      if values.ndim != 2 or len(values) != len(self.truth) or not np.isfinite(values).all():
        raise ValueError(f"{self.key}: {name} {values.shape} must be finite numbers [{len(self.truth)}, ...]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactorState:
  """The features of clips; `merge` is exact over any split of the clips, and in any order."""

  clips: tuple[ClipFactors, ...] = ()

  @classmethod
  def of(cls, clips: Iterable[ClipFactors]) -> FactorState:
    return cls(clips=tuple(clips))

  def merge(self, other: FactorState) -> FactorState:
    return FactorState(clips=self.clips + other.clips)

  @property
  def ordered(self) -> list[ClipFactors]:
    """The clips in the order in which they are computed on, that of their keys."""
    return sorted(self.clips, key=lambda clip: clip.key)

  @property
  def people(self) -> set[str]:
    return {clip.identity for clip in self.clips}


def parameter_r2(
  feature: str, fitted: FactorState | None, judged: FactorState, names: Sequence[str]
) -> dict[str, float]:
  """R² of every one of the P parameters `names` on the clips of `judged`; NaN of one that is constant there.

  The maps from `feature` are fitted on the clips of `fitted`; without them the features are taken for predictions
  [n, P] of the parameters. Raises ValueError where `fitted` holds fewer than two people.
  """
  per_clip = np.array([name.startswith(PER_CLIP) for name in names])
  values = np.full(len(names), np.nan)
  for pooled, columns in ((False, ~per_clip), (True, per_clip)):
    if columns.any():
      seen, truth, _ = _rows(judged, feature, pooled=pooled)
      predicted = seen
      if fitted is not None:
        x, y, people = _rows(fitted, feature, pooled=pooled)
        predicted = fit_ridge(x, y, people)(seen)
      values[columns] = r_squared(truth, predicted)[columns]
  return dict(zip(names, values.tolist(), strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossValidated:
  """R² by parameter, each frame judged by a map fitted on other people, or on other clips where there are too few."""

  r2: Mapping[str, float]
  within_clips: Mapping[str, float]  # after the mean of each clip is taken from truth and prediction: the motion alone
  over: str  # "people" or "clips"


def cross_validated_r2(feature: str, state: FactorState, names: Sequence[str]) -> CrossValidated | None:
  """As `parameter_r2` where nothing is set apart to fit on: in FOLDS folds over people; None for fewer than 3 clips."""
  over = "people" if len(state.people) >= FOLDS else "clips"
  x, y, groups = _rows(state, feature, pooled=False)
  lengths = [len(clip.truth) for clip in state.ordered]
  clip = np.repeat(np.arange(len(lengths)), lengths)
  everyone, group = np.unique(groups if over == "people" else clip, return_inverse=True)
  if len(everyone) < 3:
    return None
  predicted = np.empty_like(y)
  for fold in range(min(FOLDS, len(everyone))):
    out = group % FOLDS == fold
    predicted[out] = fit_ridge(x[~out], y[~out], group[~out])(x[out])
  centred = lambda values: values - (np.stack([values[clip == c].mean(axis=0) for c in range(len(lengths))]))[clip]
  by_name = lambda values: dict(zip(names, values.tolist(), strict=True))
  return CrossValidated(
    r2=by_name(r_squared(y, predicted)),
    within_clips=by_name(r_squared(centred(y), centred(predicted))),
    over=over,
  )


def group_means(r2: Mapping[str, float]) -> dict[str, float]:
  """Factor -> mean R² of the parameters of `GROUPS`, negative ones counted as 0; NaN where none of them is known."""
  means = {}
  for group, names in GROUPS.items():
    wanted = {f"{group}/{name}" for name in names} or {name for name in r2 if name.startswith(f"{group}/")}
    known = [max(value, 0.0) for name, value in r2.items() if name in wanted and not np.isnan(value)]
    means[group] = float(np.mean(known)) if known else np.nan
  return means


def _rows(state: FactorState, feature: str, *, pooled: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(features [N, D], truth [N, P], people [N]) of all frames, or of the clips' means."""
  features, truth, people = [], [], []
  for clip in state.ordered:
    x, y = np.asarray(clip.features[feature], np.float64), np.asarray(clip.truth, np.float64)
    if pooled:
      x, y = x.mean(axis=0, keepdims=True), y.mean(axis=0, keepdims=True)
    features.append(x)
    truth.append(y)
    people += [clip.identity] * len(x)
  return np.concatenate(features), np.concatenate(truth), np.array(people)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ridge:
  """x [n, D] -> predictions [n, P]."""

  weights: np.ndarray  # [D, P]
  offset: np.ndarray  # [P]
  strengths: np.ndarray  # [P] the chosen ones, of STRENGTHS

  def __call__(self, x: np.ndarray) -> np.ndarray:
    return x @ self.weights + self.offset


def fit_ridge(x: np.ndarray, y: np.ndarray, people: np.ndarray) -> Ridge:
  """Ridge regression of y [n, P] on x [n, D] in closed form; a strength for each column of y.

  The strength is that of the least squared error on people [n] who are left out, in FOLDS folds. Features are centred
  and not scaled, so that the fit does not depend on their basis. Raises ValueError for fewer than two people.
  """
  everyone, person = np.unique(people, return_inverse=True)
  if len(everyone) < 2:
    raise ValueError(f"{len(everyone)} people are too few to choose the strength of a ridge on people left out")
  folds = min(FOLDS, len(everyone))
  errors = np.zeros((len(STRENGTHS), y.shape[1]))
  for fold in range(folds):
    out = person % folds == fold
    solve = _ridge_solver(x[~out], y[~out])
    for i, strength in enumerate(STRENGTHS):
      weights, offset = solve(np.full(y.shape[1], strength))
      errors[i] += np.square(y[out] - x[out] @ weights - offset).sum(axis=0)
  strengths = STRENGTHS[errors.argmin(axis=0)]
  weights, offset = _ridge_solver(x, y)(strengths)
  return Ridge(weights=weights, offset=offset, strengths=strengths)


def _ridge_solver(x: np.ndarray, y: np.ndarray):
  """The function from strengths [P] to (weights [D, P], offset [P])."""
  x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
  x = x - x_mean
  values, vectors = np.linalg.eigh(x.T @ x / len(x))
  projected = vectors.T @ (x.T @ (y - y_mean)) / len(x)
  scale = max(values.mean(), np.finfo(np.float64).tiny)

  def solve(strengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    weights = vectors @ (projected / (np.maximum(values, 0)[:, None] + scale * strengths))
    return weights, y_mean - x_mean @ weights

  return solve


def r_squared(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
  """1 - squared error / squared deviation from the mean, of each column: [n, P] -> [P]; NaN of a constant column."""
  deviation = np.square(truth - truth.mean(axis=0)).sum(axis=0)
  error = np.square(truth - predicted).sum(axis=0)
  varies = deviation > 1e-9 * np.square(truth).sum(axis=0)
  return np.where(varies, 1 - error / np.where(varies, deviation, 1), np.nan)


def retrieve_people(feature: str, state: FactorState) -> tuple[Estimate, float]:
  """(share of the queries whose person comes first, chance); NaN where no person is seen in two clips.

  Of more than POOL clips it takes whole people, in the order of their names, and as many of their clips as fit.
  """
  clips = sorted((clip for clip in state.clips if clip.identity), key=lambda clip: (clip.identity, clip.key))[:POOL]
  if len({clip.identity for clip in clips}) < 2:
    return Estimate(value=np.nan), np.nan
  means = unit(np.stack([clip.features[feature].mean(axis=0, dtype=np.float64) for clip in clips]))
  cosine, people = means @ means.T, np.array([clip.identity for clip in clips])
  values, queries, chance = [], [], []
  for person in np.unique(people):
    own, others = np.flatnonzero(people == person), np.flatnonzero(people != person)
    pairs = [(query, other) for query in own for other in own if query != other]
    if pairs:
      heard, partner = np.transpose(pairs)
      hits = expected_hits(cosine[heard, partner], cosine[heard][:, others])[:, 0]
      values.append(hits.mean())
      queries.append(len(pairs))
      chance.append(1 / (1 + len(others)))
  if not queries:
    return Estimate(value=np.nan), np.nan
  estimate = clip_bootstrap(np.array(values)[:, None], np.array(queries, float)[:, None])[0]
  return estimate, float(np.average(chance, weights=queries))
