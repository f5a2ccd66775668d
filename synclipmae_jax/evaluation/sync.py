"""Measures audio-visual synchronisation from tokens; writes `eval.json` and a table (paper section 5, tables 1, 2).

Chance, a linear baseline and a linear ceiling are reported with the model's numbers. The same functions measure them on
the same clips; none of them is a constant. This module does not depend on data or training: it takes clips and
functions from a clip to its two token sequences.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from synclipmae_jax import sharding
from synclipmae_jax.baselines.linear import LinearFits, fit_linear
from synclipmae_jax.evaluation import pictures
from synclipmae_jax.evaluation.report import write_entries
from synclipmae_jax.evaluation.table import (
  cell,
  heading,
  interval_or_null,
  markdown,
  nest,
  number_or_null,
  value_or_null,
)
from synclipmae_jax.metrics import retrieval, sync
from synclipmae_jax.metrics.bootstrap import Estimate
from synclipmae_jax.metrics.retrieval import RetrievalState
from synclipmae_jax.metrics.sync import ClipTokens, LagState, PairScores
from synclipmae_jax.types import ClipData, EvalClip, HeldOut, Params

TokensOf = Callable[[EvalClip], tuple[Any, Any]]  # -> (audio [T, D], vocal [T, D])

# The columns of the protocol, in the order of the paper's tables; all other columns are extra.
PROTOCOL = tuple(f"{name}/k{k}" for k in sync.WINDOWS for name in ("acc", "offset")) + tuple(
  f"r_precision/top{k}" for k in retrieval.TOPS
)
SYNTHETIC_NOTE = "synthetic, not valid for real faces"
SYNTHETIC_CORPUS = "synthtalk"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyncScores:
  """Scores of one token function on a set of clips, with the chance level of those clips."""

  estimates: Mapping[str, Estimate]  # "acc/k1" …: every column of metrics.sync and metrics.retrieval
  chance: Mapping[str, float]  # same names
  lags: LagState  # per clip: keys, scored frames, the mean score curve
  skipped: tuple[str, ...]  # keys of the clips with fewer than sync.MIN_FRAMES frames
  lag_assumed: tuple[str, ...]  # keys of the clips of unknown lag, scored as lag 0
  synthetic: bool
  pool_note: str | None
  examples: tuple[ClipTokens, ...]  # the first few clips, for the pictures
  by_corpus: Mapping[str, SyncScores] = dataclasses.field(default_factory=dict)  # of each; empty where there is one

  def notes(self, remark: str = "") -> list[str]:
    """Caveats about the numbers; `remark` comes from the caller."""
    notes = [SYNTHETIC_NOTE] if self.synthetic else []
    notes += [remark] if remark else []
    if self.lag_assumed:
      notes.append(f"the true lag of {len(self.lag_assumed)} clips is unknown: 0 is assumed")
    if self.skipped:
      notes.append(f"{len(self.skipped)} clips with fewer than {sync.MIN_FRAMES} frames were skipped")
    return notes + ([self.pool_note] if self.pool_note else [])


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyncState:
  """Contribution of clips to the scores; `merge` is exact for any split of the clips."""

  lags: LagState = LagState()
  pairs: RetrievalState = RetrievalState()
  skipped: tuple[str, ...] = ()
  lag_assumed: tuple[str, ...] = ()
  synthetic: bool = False

  @classmethod
  def from_clip(cls, clip: EvalClip, tokens_of: TokensOf, similarity: str | PairScores = "cosine") -> SyncState:
    synthetic = clip.corpus.startswith(SYNTHETIC_CORPUS)
    if len(clip.frames) < sync.MIN_FRAMES:
      return cls(skipped=(clip.key,), synthetic=synthetic)
    audio, vocal = tokens_of(clip)
    compared, in_pairs = (similarity, None) if isinstance(similarity, str) else ("pairs", similarity)
    tokens = ClipTokens(key=clip.key, audio=audio, vocal=vocal, lag=clip.lag, similarity=compared)
    if tokens.frames != len(clip.frames):
      raise ValueError(f"{clip.key}: {tokens.frames} tokens for {len(clip.frames)} frames")
    return cls(
      lags=LagState.from_clip(tokens, in_pairs),
      pairs=RetrievalState.from_clip(tokens),
      lag_assumed=(clip.key,) if clip.lag is None else (),
      synthetic=synthetic,
    )

  def merge(self, other: SyncState) -> SyncState:
    return SyncState(
      lags=self.lags.merge(other.lags),
      pairs=self.pairs.merge(other.pairs),
      skipped=self.skipped + other.skipped,
      lag_assumed=self.lag_assumed + other.lag_assumed,
      synthetic=self.synthetic or other.synthetic,
    )


def score_tokens(
  tokens_of: TokensOf, clips: Iterable[EvalClip], *, similarity: str | PairScores = "cosine", examples: int = 3
) -> SyncScores:
  """Scores `tokens_of` on every clip of at least sync.MIN_FRAMES frames. Clips are read once and not stored.

  `similarity`: "cosine", "l2", or the function of a model that scores pairs (`baselines.protocol.SyncModel`).
  Each process passes its own share of the clips; every process gets the scores of all clips, identical to those of a
  single process. Raises ValueError if the tokens are not [T, D], one for each frame of the clip, or are not finite.
  """
  own: dict[str, SyncState] = {}
  for clip in clips:
    own[clip.corpus] = own.get(clip.corpus, SyncState()).merge(SyncState.from_clip(clip, tokens_of, similarity))
  everyones = sharding.gather(own)
  merged = lambda states: functools.reduce(SyncState.merge, states, SyncState())
  states = {
    corpus: merged(share[corpus] for share in everyones if corpus in share)
    for corpus in sorted(set().union(*everyones))
  }
  scores = lambda state: _compute(state, similarity, examples)
  by_corpus = {corpus: scores(state) for corpus, state in states.items()} if len(states) > 1 else {}
  return dataclasses.replace(scores(merged(states.values())), by_corpus=by_corpus)


def _compute(state: SyncState, similarity: str | PairScores, examples: int) -> SyncScores:
  return SyncScores(
    estimates=state.lags.compute() | state.pairs.compute(None if isinstance(similarity, str) else similarity),
    chance=state.lags.chance() | retrieval.CHANCE,
    lags=state.lags,
    skipped=state.skipped,
    lag_assumed=state.lag_assumed,
    synthetic=state.synthetic,
    pool_note=state.pairs.pool_note,
    examples=state.pairs.clips[:examples],
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class References:
  """References for the model; both are fitted on training clips and measured on the evaluation clips."""

  linear: SyncScores | None = None  # None without training clips
  ceiling: SyncScores | None = None  # None also if the true mouth parameters are unknown


def measure_references(clips: Iterable[EvalClip], fits: LinearFits | None) -> References:
  """Linear baseline and ceiling on `clips`. They do not depend on the model, so one measurement per run is enough.

  Each process passes its own share of `clips` and the same `fits`, which are `fit_linear` of the training clips.
  """
  if fits is None:
    return References()
  known = fits.parameters is not None and all(sharding.gather(all(clip.truth is not None for clip in clips)))
  return References(
    linear=score_tokens(fits.pixels, clips),
    ceiling=score_tokens(fits.parameters, clips) if known else None,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyncReport:
  """The model's scores and their references; `to_json` is `eval.json`, `table` is printed at the end of a run."""

  model: SyncScores
  references: References
  name: str = "SyncLipMAE"
  split: str = ""  # of the clips, see `types.HeldOut`
  remark: str = ""  # the caller's remark about these clips

  @property
  def notes(self) -> list[str]:
    """Caveats about the numbers."""
    return self.model.notes(self.remark)

  def scalars(self) -> dict[str, float]:
    """The model's defined numbers by flat name ("acc/k5", "r_precision/top1", ...), for the log."""
    return {name: e.value for name, e in self.model.estimates.items() if not math.isnan(e.value)}

  def to_json(self) -> dict[str, Any]:
    """Fractions in 0..1, offsets in frames; null for undefined numbers, explained in the notes."""
    protocol = {name: self.model.estimates[name] for name in PROTOCOL}
    extra = {name: e for name, e in self.model.estimates.items() if name not in PROTOCOL}
    linear, ceiling = self.references.linear, self.references.ceiling
    clips = self.model.lags.clips
    return {
      "split": self.split,
      **nest(protocol, value_or_null),
      "chance": nest({name: self.model.chance[name] for name in PROTOCOL}, number_or_null),
      "linear_baseline": _protocol(linear, value_or_null),
      "ceiling": _protocol(ceiling, value_or_null),
      "ci95": nest(self.model.estimates, interval_or_null),
      "clips": len(clips),
      **nest(extra, value_or_null),
      "chance_extra": nest({name: self.model.chance[name] for name in extra}, number_or_null),
      "linear_baseline_ci95": _protocol(linear, interval_or_null),
      "ceiling_ci95": _protocol(ceiling, interval_or_null),
      "frames": sum(clip.frames for clip in clips),
      "skipped": list(self.model.skipped),
      "lag_assumed_zero": list(self.model.lag_assumed),
      "pool_note": self.model.pool_note,
      "by_corpus": {corpus: self._corpus_json(corpus) for corpus in self.model.by_corpus},
      "note": "; ".join(self.notes),
    }

  def _corpus_json(self, corpus: str) -> dict[str, Any]:
    scores, linear = self.model.by_corpus[corpus], self.references.linear
    return {
      "clips": len(scores.lags.clips),
      **(_protocol(scores, value_or_null) or {}),
      "chance": nest({name: scores.chance[name] for name in PROTOCOL}, number_or_null),
      "linear_baseline": _protocol(linear.by_corpus.get(corpus) if linear else None, value_or_null),
      "ci95": _protocol(scores, interval_or_null),
    }

  def table(self) -> str:
    """Markdown table: chance, linear baseline, the model with its 95 % interval and ratio to linear, ceiling."""
    model, linear, ceiling = self.model.estimates, self.references.linear, self.references.ceiling
    rows = {"": [heading(name) for name in PROTOCOL]}
    rows["chance"] = [cell(name, self.model.chance[name]) for name in PROTOCOL]
    if linear:
      rows["linear baseline"] = [cell(name, linear.estimates[name].value) for name in PROTOCOL]
    rows[self.name] = [cell(name, model[name].value) for name in PROTOCOL]
    rows["  95 % interval, +-"] = [cell(name, (model[name].high - model[name].low) / 2) for name in PROTOCOL]
    if linear:
      rows["  times linear"] = [_ratio(model[name].value, linear.estimates[name].value) for name in PROTOCOL]
    if ceiling:
      rows["linear map of the true mouth"] = [cell(name, ceiling.estimates[name].value) for name in PROTOCOL]
    for corpus, scores in self.model.by_corpus.items():
      rows[f"of {corpus}, {len(scores.lags.clips)} clips"] = [
        cell(name, scores.estimates[name].value) for name in PROTOCOL
      ]
      if linear and corpus in linear.by_corpus:
        own = linear.by_corpus[corpus].estimates
        rows[f"  linear, {corpus}"] = [cell(name, own[name].value) for name in PROTOCOL]
    lines = markdown(["", *rows.pop("")], [[label, *cells] for label, cells in rows.items()])
    clips = self.model.lags.clips
    frames = sum(clip.frames for clip in clips)
    of_split = f" of the split {self.split}" if self.split else ""
    lines += [
      f"{len(clips)} clips{of_split}, {frames} scored frames. Acc (%): within {sync.TOLERANCE} frame of the true lag;"
      " Off: error in frames;",
      f"search +-{sync.MAX_LAG} frames, smoothing window K. R@k (%): {retrieval.POOL} candidates, 1 right, the others "
      "from other clips.",
    ]
    return "\n".join(lines + [f"Note: {note}." for note in self.notes])


def evaluate_sync(
  tokens_of: TokensOf,
  clips: Iterable[EvalClip],
  *,
  references: References | None = None,
  similarity: str | PairScores = "cosine",
  name: str = "SyncLipMAE",
  split: str = "",
  remark: str = "",
) -> SyncReport:
  """Measures `tokens_of` on `clips`; `references` come from `measure_references` on the same clips."""
  return SyncReport(
    model=score_tokens(tokens_of, clips, similarity=similarity),
    references=references or References(),
    name=name,
    split=split,
    remark=remark,
  )


class TokenEvaluator(abc.ABC):
  """Acc, Offset and R-precision of a model in training on held-out clips (`types.Evaluator`).

  The clips are `data.val`, at the end of the run `data.test`, of each this process's share, which may be empty; every
  process gets the scores of all clips. Every evaluation writes WORKDIR/eval.json, the final one also WORKDIR/lag.png.
  The linear baseline and the ceiling are fitted once, at the first evaluation, on `data.train_clips`, which are the
  same on every process, and measured once on either.
  """

  name = "sync"

  def __init__(self, data: ClipData, *, workdir: pathlib.Path):
    self.data, self.workdir = data, workdir
    self.report: SyncReport | None = None  # of the last evaluation
    self._references: dict[HeldOut, References] = {}

  @functools.cached_property
  def _fits(self) -> LinearFits | None:
    return fit_linear(self.data.train_clips())

  def references(self, held_out: HeldOut) -> References:
    """Linear baseline and ceiling on these clips."""
    if held_out not in self._references:
      self._references[held_out] = measure_references(held_out.clips, self._fits)
    return self._references[held_out]

  @abc.abstractmethod
  def measure(self, trainable: Params, frozen: Params, held_out: HeldOut, *, step: int, final: bool) -> SyncReport:
    """The report of these parameters on these clips."""

  def __call__(self, trainable: Params, frozen: Params, *, step: int, final: bool) -> Mapping[str, Any]:
    held_out = self.data.test if final else self.data.val
    self.report = self.measure(trainable, frozen, held_out, step=step, final=final)
    if jax.process_index() == 0:
      write_entries(self.workdir, self.report.to_json())
    if final and jax.process_index() == 0:
      pictures.lag(self.workdir / "lag.png", self.report.model.examples, state=self.report.model.lags)
    return self.report.scalars()


def _protocol(scores: SyncScores | None, convert: Callable[[Estimate], Any]) -> dict[str, Any] | None:
  return nest({name: scores.estimates[name] for name in PROTOCOL}, convert) if scores else None


def _ratio(value: float, reference: float) -> str:
  return f"{value / reference:.2f}" if reference > 0 and not math.isnan(value) else "-"
