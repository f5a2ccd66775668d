"""The paper's synchronisation protocol for several models on the same clips (paper tables 1 and 2).

`evaluation.sync.score_tokens` measures every row. The digit after a model's name is the number of video frames that one
of its tokens depends on.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synclipmae_jax import sharding
from synclipmae_jax.baselines.protocol import SyncModel
from synclipmae_jax.evaluation.report import write_json, write_text
from synclipmae_jax.evaluation.sync import References, SyncScores, score_tokens
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
from synclipmae_jax.metrics.lse import LseState
from synclipmae_jax.types import SAMPLES_PER_FRAME, EvalClip

LARGEST_INJECTED = 10  # frames
# Columns of the tables: those of the paper, and two more samplers of R-precision.
PAPER = (
  *(f"{name}/k{k}" for k in sync.WINDOWS for name in ("acc", "offset")),
  *("utterance/acc", "utterance/offset"),
  *(f"r_precision/top{k}" for k in retrieval.TOPS),
)
POOLS = tuple(f"{sampler}/top{k}" for sampler in retrieval.SAMPLERS[1:] for k in retrieval.TOPS)


def inject_lag(clip: EvalClip, *, seed: int) -> EvalClip:
  """Adds a known lag to a clip of unknown lag, which is assumed to be in sync: 0 for half of the clips, else -10..10.

  The lag depends only on `seed` and the clip's key. A positive lag makes the video late: the sound loses its first
  frames and the picture its last frames, so that both have the same length, shorter by the lag. A clip of known lag is
  returned unchanged.
  """
  if clip.lag is not None:
    return clip
  rng = np.random.default_rng([seed, zlib.crc32(clip.key.encode())])
  lag = int(rng.integers(-LARGEST_INJECTED, LARGEST_INJECTED + 1)) * int(rng.integers(2))
  frames = len(clip.frames) - abs(lag)
  if frames < 1:
    return dataclasses.replace(clip, lag=0)
  seen, heard = slice(max(0, -lag), max(0, -lag) + frames), max(0, lag) * SAMPLES_PER_FRAME
  return dataclasses.replace(
    clip,
    lag=lag,
    **{name: getattr(clip, name)[seen] for name in ("frames", "face_box", "mouth_box")},
    waveform=clip.waveform[heard : heard + frames * SAMPLES_PER_FRAME],
    truth=None if clip.truth is None else clip.truth[seen],
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """The row of one model."""

  kind: str
  name: str  # with its context: "SyncNet-5"
  scores: SyncScores
  checkpoint: str | None = None
  context_frames: int | None = None
  similarity: str | None = None  # one of sync.SIMILARITIES
  lse: Mapping[str, Estimate] = dataclasses.field(default_factory=dict)  # from metrics.lse, if defined for the model

  @property
  def frames(self) -> int:
    """Number of scored frames in all clips."""
    return sum(clip.frames for clip in self.scores.lags.clips)

  def to_json(self) -> dict[str, Any]:
    return {
      "kind": self.kind,
      "name": self.name,
      "checkpoint": self.checkpoint,
      "context_frames": self.context_frames,
      "similarity": self.similarity,
      "clips": len(self.scores.lags.clips),
      "frames": self.frames,
      **nest(self.scores.estimates, value_or_null),
      "ci95": nest(self.scores.estimates, interval_or_null),
      "by_corpus": {
        corpus: {"clips": len(scores.lags.clips), **nest(scores.estimates, value_or_null)}
        for corpus, scores in self.scores.by_corpus.items()
      },
      "lse": {name: {"value": value_or_null(e), "ci95": interval_or_null(e)} for name, e in self.lse.items()} or None,
    }


LseOf = Callable[[str, Any, Any], LseState]  # key, (audio, video) tokens [T, D] of a clip


def measure_model(
  kind: str, model: SyncModel, clips: Iterable[EvalClip], *, checkpoint: str | None = None, lse: LseOf | None = None
) -> Row:
  """The row of a model; with `lse` also LSE-C and LSE-D of its tokens.

  Each process passes its own share of `clips`; every process gets the row of all clips.
  """
  states = []

  def embed(clip: EvalClip) -> tuple[Any, Any]:
    tokens = model.embed(clip)
    if lse:
      states.append(lse(clip.key, *tokens))
    return tokens

  scores = score_tokens(embed, clips, similarity=model.similarity)
  states = [state for share in sharding.gather(states) for state in share]
  return Row(
    kind=kind,
    name=f"{model.name}-{model.context_frames}",
    scores=scores,
    checkpoint=checkpoint,
    context_frames=model.context_frames,
    similarity=model.similarity if isinstance(model.similarity, str) else "pairs",
    lse=functools.reduce(LseState.merge, states).compute() if states else {},
  )


def syncnet_lse(key: str, audio: Any, video: Any) -> LseState:
  """LSE of SyncNet's tokens, restricted to windows inside the clip, as in its script."""
  return LseState.from_syncnet(key, audio[2:-3], video[2:-3])


def stable_syncnet_lse(key: str, audio: Any, video: Any) -> LseState:
  """LSE of StableSyncNet's tokens, restricted to windows inside the clip."""
  return LseState.from_stable_syncnet(key, audio[8:-7], video[8:-7])


def reference_rows(references: References) -> list[Row]:
  """The linear baseline and, if the true mouth is known, the linear map of it."""
  named = {
    "linear": ("linear baseline", references.linear),
    "ceiling": ("linear map of the true mouth", references.ceiling),
  }
  return [
    Row(kind=kind, name=name, scores=scores, context_frames=1, similarity="cosine")
    for kind, (name, scores) in named.items()
    if scores is not None
  ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
  """All rows, measured on the same clips; `to_json` is sync.json, `markdown` is sync.md."""

  rows: Sequence[Row]
  split: str = ""  # of the clips, see `types.HeldOut`
  remarks: Sequence[str] = ()  # the caller's remarks about these clips

  @property
  def lags(self) -> list[int]:
    """The true lag of every scored clip, in frames, in increasing order."""
    return sorted(clip.true_lag for clip in self.rows[0].scores.lags.clips)

  @property
  def notes(self) -> list[str]:
    """Caveats about the numbers."""
    notes = self.rows[0].scores.notes("; ".join(self.remarks))
    if any(row.similarity == "pairs" for row in self.rows):
      notes.append(f"R-precision of models that score pairs is measured on about {retrieval.PAIR_QUERIES} queries")
    return notes

  def to_json(self) -> dict[str, Any]:
    """Fractions in 0..1, offsets in frames; null for undefined numbers, explained in the notes."""
    scores = self.rows[0].scores
    return {
      "split": self.split,
      "chance": nest(scores.chance, number_or_null),
      "lags": self.lags,
      "rows": [row.to_json() for row in self.rows],
      "skipped": list(scores.skipped),
      "lag_assumed_zero": list(scores.lag_assumed),
      "notes": self.notes,
    }

  def write(self, workdir: Path) -> None:
    """Writes WORKDIR/sync.json and WORKDIR/sync.md."""
    write_json(workdir / "sync.json", self.to_json())
    write_text(workdir / "sync.md", f"# Synchronisation\n\n{self.markdown()}\n")

  def markdown(self) -> str:
    """The paper's table, the table of the other pools, LSE if defined, and the notes; +- is half a 95 % interval."""
    lags = self.lags
    span = f"lags {lags[0]}..{lags[-1]}, {lags.count(0)} of them 0" if lags else "lags unknown"
    of_split = f" of the split {self.split}" if self.split else ""
    lse = [row for row in self.rows if row.lse]
    return "\n".join([
      *self._table(PAPER),
      "",
      f"{len(lags)} clips{of_split}, true {span}. Acc (%): within {sync.TOLERANCE} frame of the true lag; Off: error in"
      f" frames; search +-{sync.MAX_LAG} frames, smoothing window K, utt: one lag per clip. R@k (%): {retrieval.POOL}"
      " candidates, 1 right, the others from other clips. Chance is computed for these lags.",
      "",
      "R-precision with the other candidates from the same clip (within) and from both (mixed), %:",
      "",
      *self._table(POOLS),
      *(["", *_lse_table(lse)] if lse else []),
      "",
      *(f"Note: {note}." for note in self.notes),
    ])  # fmt: skip

  def _table(self, columns: Sequence[str]) -> list[str]:
    sizes = lambda row: [str(len(row.scores.lags.clips)), str(row.frames)]
    body = [["chance", *(cell(name, self.rows[0].scores.chance[name]) for name in columns), "", ""]]
    body += [[row.name, *(_with_half_width(name, row.scores.estimates[name]) for name in columns), *sizes(row)]
             for row in self.rows]  # fmt: skip
    return markdown(["", *map(_heading, columns), "clips", "frames"], body)


def _lse_table(rows: Sequence[Row]) -> list[str]:
  names = list(dict.fromkeys(name for row in rows for name in row.lse))
  body = [[row.name, *(_plain(row.lse.get(name, Estimate(value=math.nan))) for name in names)] for row in rows]
  return markdown(["", *(name.upper().replace("_", "-") for name in names)], body)


def _heading(name: str) -> str:
  group, which = name.split("/")
  if group == "utterance":
    return f"{which.capitalize()[:3]} utt"
  return f"{group.removeprefix('r_precision_')} @{which[3:]}" if name in POOLS else heading(name)


def _with_half_width(name: str, estimate: Estimate) -> str:
  half = (estimate.high - estimate.low) / 2
  return cell(name, estimate.value) + ("" if math.isnan(half) else f" ±{cell(name, half)}")


def _plain(estimate: Estimate) -> str:
  if math.isnan(estimate.value):
    return "-"
  half = (estimate.high - estimate.low) / 2
  return f"{estimate.value:.3f}" + ("" if math.isnan(half) else f" ±{half:.3f}")
