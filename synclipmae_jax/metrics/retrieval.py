"""R-precision@k: the video token of an audio token must be among the k best of a pool of 32 (paper section 5).

The paper does not specify the sampler ("a minibatch or a pre-defined sampler"). Here the name of the metric states it:

  r_precision         31 tokens, each from a different other clip, at random frames
  r_precision_within  31 tokens of the same clip, at least 3 frames away; harder, since identity and room do not help
  r_precision_mixed   16 tokens of the first kind and 15 of the second

The queries are all audio tokens of all clips whose true partner lies inside the clip, with equal weight. For models
that score pairs a query takes 63 runs of a network, so about PAIR_QUERIES in total are drawn with a fixed seed, the
same number from each clip if it has as many. Chance is k / 32 for each sampler.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from synclipmae_jax.metrics.bootstrap import SEED, Estimate, clip_bootstrap
from synclipmae_jax.metrics.sync import ClipTokens, PairScores, unit

POOL = 32
TOPS = (1, 2, 3)
MIXED_CROSS = 16
MIN_DISTANCE = 3  # frames between the partner and a distractor of the same clip
TIE = 1e-6  # scores closer than this are tied (precision of float32 cosines)
PAIR_QUERIES = 1_000  # approximate number of queries for models that score pairs

SAMPLERS = ("r_precision", "r_precision_within", "r_precision_mixed")
COLUMNS = tuple(f"{sampler}/top{k}" for sampler in SAMPLERS for k in TOPS)
CHANCE = {f"{sampler}/top{k}": k / POOL for sampler in SAMPLERS for k in TOPS}


def expected_hits(own: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Probability that `own` is among the k best, with ties in random order: [n], [n, m] -> [n, 3].

  With g better and e tied candidates the rank is uniform on g+1 .. g+e+1. For example, one tie at rank k gives 1/2.
  """
  better = (others > own[:, None] + TIE).sum(axis=1)
  equal = (np.abs(others - own[:, None]) <= TIE).sum(axis=1)
  return np.stack([np.clip((k - better) / (equal + 1), 0, 1) for k in TOPS], axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrievalState:
  """The tokens of all clips. A pool spans clips, so scores are computed after all clips are merged.

  `compute` sorts the clips by key before it draws, so the pools do not depend on the split or on the order of merging.
  """

  clips: tuple[ClipTokens, ...] = ()

  @classmethod
  def from_clip(cls, clip: ClipTokens) -> RetrievalState:
    return cls(clips=(clip,))

  def merge(self, other: RetrievalState) -> RetrievalState:
    return RetrievalState(clips=self.clips + other.clips)

  @property
  def pool_note(self) -> str | None:
    """A note on pools that differ from the definition because there are fewer than 32 clips, else None."""
    if len(self.clips) >= POOL:
      return None
    if len(self.clips) < 2:
      return f"{len(self.clips)} clip: pools across clips are not defined"
    return f"only {len(self.clips)} clips: each pool of {POOL} draws the other clips with replacement"

  def compute(self, pair_scores: PairScores | None = None, *, seed: int = SEED) -> dict[str, Estimate]:
    """One estimate for every name of COLUMNS, as a fraction; NaN if a sampler is not defined (for example, one clip).

    `pair_scores` compares tokens of similarity "pairs".
    """
    clips = sorted(self.clips, key=lambda clip: clip.key)
    rng = np.random.default_rng(seed)
    lengths = np.array([clip.frames for clip in clips])
    starts = np.cumsum(lengths) - lengths
    in_pairs = any(clip.similarity == "pairs" for clip in clips)
    score = _score_pairs(clips, pair_scores) if in_pairs else _score_vectors(clips)
    values = np.full((len(clips), len(SAMPLERS), len(TOPS)), np.nan)
    queries = np.zeros_like(values)
    for c, clip in enumerate(clips):
      times = np.arange(max(0, -clip.true_lag), clip.frames - max(0, clip.true_lag))
      if in_pairs:
        times = rng.permutation(times)[: -(-PAIR_QUERIES // len(clips))]
      if not len(times):
        continue
      heard, partners = starts[c] + times, times + clip.true_lag
      own = score(heard, starts[c] + partners[:, None])[:, 0]
      pools = {}
      if len(clips) > 1:
        pools["r_precision"] = score(heard, _other_clips(rng, len(times), c, lengths, starts))
      if clip.frames >= POOL - 1 + 2 * MIN_DISTANCE - 1:
        pools["r_precision_within"] = score(heard, starts[c] + _other_frames(rng, partners, clip.frames))
      if len(pools) == 2:
        cross, within = pools.values()
        pools["r_precision_mixed"] = np.concatenate([cross[:, :MIXED_CROSS], within[:, MIXED_CROSS:]], axis=1)
      for sampler, others in pools.items():
        s = SAMPLERS.index(sampler)
        values[c, s], queries[c, s] = expected_hits(own, others).mean(axis=0), len(times)
    shape = (len(clips), len(COLUMNS))
    return dict(zip(COLUMNS, clip_bootstrap(values.reshape(shape), queries.reshape(shape)), strict=True))


# (rows of n audio tokens [n], rows of their m candidates [n, m]) -> scores [n, m]; rows of the concatenated tokens.
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _score_vectors(clips: Sequence[ClipTokens]) -> Score:
  """Scores by inner products, which rank the candidates of a query as their similarity does."""
  if not clips:
    return lambda heard, seen: np.zeros(seen.shape)
  audio, vocal = (np.concatenate([getattr(clip, name) for clip in clips]) for name in ("audio", "vocal"))
  if clips[0].similarity == "cosine":
    audio, vocal = unit(audio, np.float32), unit(vocal, np.float32)
  else:  # 2 a v - |v|^2 = |a|^2 - |a - v|^2, and |a| is constant for a query
    audio, vocal = np.asarray(audio, np.float64), np.asarray(vocal, np.float64)
    audio = np.pad(2 * audio, ((0, 0), (0, 1)), constant_values=-1)
    vocal = np.concatenate([vocal, np.square(vocal).sum(axis=1, keepdims=True)], axis=1)
  return lambda heard, seen: (vocal[seen] @ audio[heard][:, :, None])[..., 0]


def _score_pairs(clips: Sequence[ClipTokens], pair_scores: PairScores) -> Score:
  ends = np.cumsum([clip.frames for clip in clips])

  def tokens(name: str, rows: np.ndarray) -> np.ndarray:
    owners = np.searchsorted(ends, rows, side="right")
    return np.stack([getattr(clips[c], name)[row - ends[c]] for c, row in zip(owners, rows, strict=True)])

  def score(heard: np.ndarray, seen: np.ndarray) -> np.ndarray:
    audio = tokens("audio", heard).repeat(seen.shape[1], axis=0)
    return np.asarray(pair_scores(audio, tokens("vocal", seen.ravel()))).reshape(seen.shape)

  return score


def _other_clips(rng, n: int, own: int, lengths: np.ndarray, starts: np.ndarray) -> np.ndarray:
  """Rows of the concatenated tokens [n, 31]: random frames of 31 different other clips per row.

  With fewer than 31 other clips, the clips are drawn with replacement.
  """
  others = np.delete(np.arange(len(lengths)), own)
  if len(others) >= POOL - 1:
    drawn = others[_smallest(rng.random((n, len(others)), np.float32))]
  else:
    drawn = rng.choice(others, size=(n, POOL - 1))
  return starts[drawn] + (rng.random(drawn.shape) * lengths[drawn]).astype(np.int64)


def _other_frames(rng, partners: np.ndarray, frames: int) -> np.ndarray:
  """[n, 31] different frames of the same clip, each at least MIN_DISTANCE from the partner of its row."""
  order = rng.random((len(partners), frames), np.float32)
  order[np.abs(np.arange(frames) - partners[:, None]) < MIN_DISTANCE] = np.inf
  return _smallest(order)


def _smallest(order: np.ndarray) -> np.ndarray:
  """Columns of the 31 smallest entries of each row, smallest first, so that any slice of them is a random sample."""
  columns = np.argpartition(order, POOL - 2, axis=1)[:, : POOL - 1]
  return np.take_along_axis(columns, np.take_along_axis(order, columns, axis=1).argsort(axis=1), axis=1)
