"""The factor matrix: what each token tells of the true mouth, ambient motion and identity of people not fitted on.

Beside it stand a floor, the principal components of the bare picture, as many as the token has numbers, and a ceiling,
a network trained on the labels of the same training clips. Both are judged by the same functions on the same clips.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from synclipmae_jax import sharding
from synclipmae_jax.baselines.bare_picture import Components, fit_components
from synclipmae_jax.baselines.factor_network import fit_factor_network
from synclipmae_jax.evaluation import pictures
from synclipmae_jax.evaluation.report import write_entries
from synclipmae_jax.evaluation.sync import SYNTHETIC_CORPUS, SYNTHETIC_NOTE
from synclipmae_jax.evaluation.table import interval_or_null, markdown, number_or_null, value_or_null
from synclipmae_jax.evaluation.tokens import HeldOutTokens, empty_pictures, local_tokens, on_all_devices
from synclipmae_jax.metrics import factors
from synclipmae_jax.metrics.bootstrap import Estimate
from synclipmae_jax.metrics.factors import ClipFactors, FactorState
from synclipmae_jax.metrics.sync import MIN_FRAMES
from synclipmae_jax.types import ClipData, EvalClip, HeldOut, Params

TOKENS = {"vocal": "mouth", "ambient": "ambient", "identity": "identity"}  # token -> the factor it claims
CLIPS_A_BLOCK = 8  # training clips that a device embeds at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """What one kind of features tells."""

  r2: Mapping[str, float]  # parameter -> R² on the judged clips; NaN where it is constant
  retrieval: Estimate | None = None  # of a person's other clip; None where the features are no token
  chance: float = math.nan  # of the retrieval

  @functools.cached_property
  def groups(self) -> dict[str, float]:
    """Factor -> mean R², negative ones counted as 0."""
    return factors.group_means(self.r2)

  def to_json(self) -> dict[str, Any]:
    retrieval = self.retrieval and {
      "top1": value_or_null(self.retrieval),
      "ci95": interval_or_null(self.retrieval),
      "chance": number_or_null(self.chance),
    }
    numbers = lambda values: {name: number_or_null(value) for name, value in values.items()}
    return {"groups": numbers(self.groups), "retrieval": retrieval, "r2": numbers(self.r2)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactorReport:
  """The rows of the tokens, of the floor and of the ceiling; `to_json` is the entry `factors` of eval.json."""

  tokens: Mapping[str, Row]
  floor: Row
  ceiling: Row | None
  components: int  # of the floor
  fitted: tuple[int, int]  # people, clips
  judged: tuple[int, int]
  notes: Sequence[str]
  split: str = ""  # of the judged clips, see `types.HeldOut`

  @property
  def leak(self) -> float:
    """The largest group mean of a token and a factor that it does not claim; NaN without any."""
    others = [row.groups[group] for token, row in self.tokens.items() for group in row.groups if group != TOKENS[token]]
    return max((value for value in others if not math.isnan(value)), default=math.nan)

  def scalars(self) -> dict[str, float]:
    """The defined numbers by flat name ("vocal_mouth", "identity_retrieval", "leak_max" …), for a metric writer."""
    named = {f"{token}_{group}": value for token, row in self.tokens.items() for group, value in row.groups.items()}
    named |= {"identity_retrieval": self.tokens["identity"].retrieval.value, "leak_max": self.leak}
    return {name: value for name, value in named.items() if not math.isnan(value)}

  def to_json(self) -> dict[str, Any]:
    """R² and shares in 0..1, null where a number is not defined; the note says why."""
    numbers = lambda counts: dict(zip(("people", "clips"), counts, strict=True))
    return {
      "split": self.split,
      "tokens": {name: row.to_json() for name, row in self.tokens.items()},
      "leak_max": number_or_null(self.leak),
      "floor": {"components": self.components, **self.floor.to_json()},
      "ceiling": self.ceiling and self.ceiling.to_json(),
      "fitted_on": numbers(self.fitted),
      "judged_on": numbers(self.judged),
      "frames_a_clip": factors.FRAMES,
      "note": "; ".join(self.notes),
    }

  @property
  def rows(self) -> dict[str, Row]:
    """By the labels of the table and the picture."""
    rows = {**self.tokens, f"floor: {self.components} components of the picture": self.floor}
    return rows | ({"ceiling: a network told the truth": self.ceiling} if self.ceiling else {})

  def table(self) -> str:
    """Markdown: token by factor, and retrieval of the person."""
    number = lambda value: "-" if math.isnan(value) else f"{value:.2f}"
    body = [[label, *map(number, row.groups.values()), _percent(row.retrieval)] for label, row in self.rows.items()]
    lines = markdown(["mean R²", *factors.GROUPS, "same person, %"], body)
    lines += [
      f"R² of ridge regression, fitted on {self.fitted[0]} people ({self.fitted[1]} clips), judged on {self.judged[0]}"
      f" others ({self.judged[1]} clips); below 0 counts as 0.",
      "Same person: another clip of the person comes before all clips of other people, by cosine of the clips' mean"
      f" tokens; chance {_percent(Estimate(value=self.floor.chance))}.",
    ]
    return "\n".join(lines + [f"Note: {note}." for note in self.notes])


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledClip:
  """The chosen frames of a clip of known truth."""

  key: str
  identity: str
  frames: np.ndarray  # uint8 [n, S, S, 3]
  face_box: np.ndarray  # float32 [n, 4]
  mouth_box: np.ndarray  # float32 [n, 4]
  truth: np.ndarray  # float32 [n, P]

  @classmethod
  def of(cls, clip: EvalClip) -> LabelledClip:
    cut = {name: spread(getattr(clip, name)) for name in ("frames", "face_box", "mouth_box", "truth")}
    return cls(key=clip.key, identity=clip.identity, **cut)

  def with_features(self, features: Mapping[str, np.ndarray]) -> ClipFactors:
    return ClipFactors(key=self.key, identity=self.identity, features=features, truth=self.truth)


class FactorEvaluator:
  """The factor matrix of a model in training on held-out clips (`types.Evaluator`).

  `tokens` embeds this process's share of `data.val`, at the end of the run of `data.test`; of these clips, and of
  `data.train_clips`, the same on every process, those count whose truth has the parameters of the first training clip
  that has any. Writes the entry `factors` of DIR/eval.json at every evaluation (null where fewer than two people can be
  fitted on or no clip judged), and at the final one DIR/factors.png. The floor is fitted once; the ceiling at the final
  evaluation, in `ceiling_steps` steps.
  """

  name = "factors"

  def __init__(self, tokens: HeldOutTokens, data: ClipData, *, workdir: pathlib.Path, ceiling_steps: int = 0):
    self.data, self.workdir, self.ceiling_steps = data, workdir, ceiling_steps
    self.report: FactorReport | None = None
    self._tokens = tokens
    self._synthetic = False
    self._components: Components | None = None
    self._floors: dict[HeldOut, Row] = {}
    self._fitted: tuple[Params, FactorState] | None = None  # of the last parameters
    self._embed = on_all_devices(tokens.model.embed_visual, tokens.mesh)

  @functools.cached_property
  def _training(self) -> tuple[list[LabelledClip], tuple[str, ...]]:
    """The training clips of known truth, and the names of their parameters."""
    clips: list[LabelledClip] = []
    names: tuple[str, ...] = ()
    for clip in self.data.train_clips():
      names = names or _truth_names(clip)
      if names and _truth_names(clip) == names:
        clips.append(LabelledClip.of(clip))
        self._synthetic |= clip.corpus.startswith(SYNTHETIC_CORPUS)
    return clips, names

  def _labelled(self, held_out: HeldOut) -> list[LabelledClip]:
    """This process's clips of known truth, of those that are embedded."""
    names = self._training[1]
    return [
      LabelledClip.of(clip)
      for clip in held_out.clips
      if names and _truth_names(clip) == names and len(clip.frames) >= MIN_FRAMES
    ]

  def __call__(self, trainable: Params, frozen: Params, *, step: int, final: bool) -> Mapping[str, Any]:
    held_out = self.data.test if final else self.data.val
    tokens = self._tokens(trainable, frozen, held_out.clips)
    training, names = self._training
    judged = _everyones(
      clip.with_features({name: spread(getattr(tokens[clip.key], name)) for name in TOKENS})
      for clip in self._labelled(held_out)
    )
    if len({clip.identity for clip in training}) < 2 or not judged.clips:
      self._write(None)
      return {}
    if self._fitted is None or self._fitted[0] is not trainable:
      self._fitted = trainable, _everyones(self._embed_training(trainable))
    fitted = self._fitted[1]
    floor = self._floor(held_out, judged.clips[0].features["vocal"].shape[1])
    self.report = FactorReport(
      tokens={name: _row(name, fitted, judged, names) for name in TOKENS},
      floor=floor,
      ceiling=self._ceiling(held_out) if final and self.ceiling_steps else None,
      components=self._components.directions.shape[1],
      fitted=(len(fitted.people), len(fitted.clips)),
      judged=(len(judged.people), len(judged.clips)),
      notes=self._notes(fitted, judged, held_out.remark),
      split=held_out.split,
    )
    self._write(self.report.to_json())
    if final and jax.process_index() == 0:
      rows = self.report.rows.items()
      pictures.factors(
        self.workdir / "factors.png",
        groups={label: row.groups for label, row in rows},
        parameters={label: row.r2 for label, row in rows},
      )
    return self.report.scalars()

  def _write(self, entry: dict[str, Any] | None) -> None:
    if jax.process_index() == 0:
      write_entries(self.workdir, {"factors": entry})

  def _notes(self, fitted: FactorState, judged: FactorState, remark: str) -> list[str]:
    notes = [SYNTHETIC_NOTE] if self._synthetic else []
    notes += [remark] if remark else []
    if shared := len(fitted.people & judged.people):
      notes.append(f"{shared} of the {len(judged.people)} people were fitted on too")
    if len(judged.people) == len(judged.clips):
      notes.append("nobody is seen in two clips: no person can be retrieved")
    return notes

  def _embed_training(self, trainable: Params) -> Iterator[ClipFactors]:
    """This process's share of the training clips, in blocks that are the same however many processes there are."""
    clips, model, mesh = self._training[0], self._tokens.model, self._tokens.mesh
    blocks = [clips[start : start + CLIPS_A_BLOCK] for start in range(0, len(clips), CLIPS_A_BLOCK)]
    places = mesh.size // jax.process_count()
    for first in range(jax.process_index() * places, len(blocks) + jax.process_index() * places, mesh.size):
      own = blocks[first : first + places]
      batch = empty_pictures(places, CLIPS_A_BLOCK * factors.FRAMES, size=model.image_size)
      for row, block in enumerate(own):
        for name, room in batch.items():
          values = np.concatenate([getattr(clip, name) for clip in block])
          room[row, : len(values)] = values
      placed = sharding.to_global(batch, mesh)
      found = local_tokens(self._embed(trainable, placed.pop("frames"), **placed))
      for row, block in enumerate(own):
        start = 0
        for clip in block:
          rows = slice(start, start + len(clip.frames))
          yield clip.with_features({name: found[name][row, rows] for name in TOKENS})
          start = rows.stop

  def _floor(self, held_out: HeldOut, width: int) -> Row:
    """The row of `width` components of the bare picture, fitted once and measured once on either set of clips."""
    training, names = self._training
    if self._components is None:
      self._components = fit_components(np.concatenate([clip.frames for clip in training]), width)
    components = self._components
    if held_out not in self._floors:
      project = lambda clips: [clip.with_features({"picture": components(clip.frames)}) for clip in clips]
      fitted, judged = FactorState.of(project(training)), _everyones(project(self._labelled(held_out)))
      self._floors[held_out] = _row("picture", fitted, judged, names)
    return self._floors[held_out]

  def _ceiling(self, held_out: HeldOut) -> Row:
    training, names = self._training
    predict = fit_factor_network(
      np.concatenate([clip.frames for clip in training]),
      np.concatenate([clip.truth for clip in training]),
      names,
      steps=self.ceiling_steps,
    )
    judged = _everyones(clip.with_features({"network": predict(clip.frames)}) for clip in self._labelled(held_out))
    return Row(r2=factors.parameter_r2("network", None, judged, names))


def spread(tokens: np.ndarray) -> np.ndarray:
  """The chosen rows of [T, ...]."""
  return tokens[factors.spread_frames(len(tokens))]


def _row(feature: str, fitted: FactorState, judged: FactorState, names: Sequence[str]) -> Row:
  retrieval, chance = factors.retrieve_people(feature, judged)
  r2 = factors.parameter_r2(feature, fitted, judged, names)
  return Row(r2=r2, retrieval=retrieval, chance=chance)


def _everyones(clips: Iterable[ClipFactors]) -> FactorState:
  """Of all processes, each of which gives its own."""
  return functools.reduce(FactorState.merge, sharding.gather(FactorState.of(clips)))


def _truth_names(clip: EvalClip) -> tuple[str, ...]:
  return () if clip.truth is None else tuple(clip.truth_names)


def _percent(estimate: Estimate | None) -> str:
  return "-" if estimate is None or math.isnan(estimate.value) else f"{100 * estimate.value:.1f}"
