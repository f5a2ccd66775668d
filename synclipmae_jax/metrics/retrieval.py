"""R-precision@k: the video token of an audio token must be among the k best of a pool of 32 (paper section 5).

The paper leaves the sampler open ("a minibatch or a pre-defined sampler"); here it is part of the metric's name:

  r_precision         31 tokens, each from a different other clip, at random frames
  r_precision_within  31 tokens of the same clip, more than 2 frames away: the hard one, no identity or room helps
  r_precision_mixed   16 of the former and 15 of the latter

Every audio token of every clip whose true partner lies inside the clip is a query, and all queries count alike.
Chance is k / 32 for each sampler.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from synclipmae_jax.metrics.bootstrap import SEED, Estimate, clip_bootstrap
from synclipmae_jax.metrics.sync import ClipTokens, unit

POOL = 32
TOPS = (1, 2, 3)
MIXED_CROSS = 16
MIN_DISTANCE = 3  # frames between the partner and a distractor of the same clip
TIE = 1e-6  # of float32 cosines

SAMPLERS = ("r_precision", "r_precision_within", "r_precision_mixed")
COLUMNS = tuple(f"{sampler}/top{k}" for sampler in SAMPLERS for k in TOPS)
CHANCE = {f"{sampler}/top{k}": k / POOL for sampler in SAMPLERS for k in TOPS}


def expected_hits(own: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Probability, over the order in which ties are broken, that `own` is among the k best: [n], [n, m] -> [n, 3].

  With g better candidates and e equal ones the rank is uniform on g+1 .. g+e+1; one tie at the border counts half.
  """
  better = (others > own[:, None] + TIE).sum(axis=1)
  equal = (np.abs(others - own[:, None]) <= TIE).sum(axis=1)
  return np.stack([np.clip((k - better) / (equal + 1), 0, 1) for k in TOPS], axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrievalState:
  """The tokens of all clips: a pool spans clips, so nothing can be scored before all are merged.

  `compute` sorts the clips by key before it draws, so that any split and any order of merging gives the same pools.
  """

  clips: tuple[ClipTokens, ...] = ()

  @classmethod
  def from_clip(cls, clip: ClipTokens) -> RetrievalState:
    return cls(clips=(clip,))

  def merge(self, other: RetrievalState) -> RetrievalState:
    return RetrievalState(clips=self.clips + other.clips)

  @property
  def pool_note(self) -> str | None:
    """What a reader must know about the pools where they are not the standard ones."""
    if len(self.clips) >= POOL:
      return None
    if len(self.clips) < 2:
      return f"{len(self.clips)} clip: pools across clips are not defined"
    return f"only {len(self.clips)} clips: each pool of {POOL} draws the other clips with replacement"

  def compute(self, *, seed: int = SEED) -> dict[str, Estimate]:
    """One estimate for every name of COLUMNS, as a fraction; NaN where a sampler is not defined (a single clip)."""
    clips = sorted(self.clips, key=lambda clip: clip.key)
    rng = np.random.default_rng(seed)
    lengths = np.array([clip.frames for clip in clips])
    starts = np.cumsum(lengths) - lengths
    vocal = unit(np.concatenate([clip.vocal for clip in clips]), np.float32) if clips else None
    values = np.full((len(clips), len(SAMPLERS), len(TOPS)), np.nan)
    queries = np.zeros_like(values)
    for c, clip in enumerate(clips):
      times = np.arange(max(0, -clip.true_lag), clip.frames - max(0, clip.true_lag))
      audio, partners = unit(clip.audio[times], np.float32), times + clip.true_lag
      if not len(times):
        continue
      same = audio @ vocal[starts[c] : starts[c] + clip.frames].T  # [n, T]
      own = np.take_along_axis(same, partners[:, None], axis=1)[:, 0]
      pools = {}
      if len(clips) > 1:
        candidates = _other_clips(rng, len(times), c, lengths, starts)
        pools["r_precision"] = (vocal[candidates] @ audio[:, :, None])[..., 0]
      if clip.frames >= POOL - 1 + 2 * MIN_DISTANCE - 1:
        pools["r_precision_within"] = np.take_along_axis(same, _other_frames(rng, partners, clip.frames), axis=1)
      if len(pools) == 2:
        cross, within = pools.values()
        pools["r_precision_mixed"] = np.concatenate([cross[:, :MIXED_CROSS], within[:, MIXED_CROSS:]], axis=1)
      for sampler, others in pools.items():
        s = SAMPLERS.index(sampler)
        values[c, s], queries[c, s] = expected_hits(own, others).mean(axis=0), len(times)
    shape = (len(clips), len(COLUMNS))
    return dict(zip(COLUMNS, clip_bootstrap(values.reshape(shape), queries.reshape(shape)), strict=True))


def _other_clips(rng, n: int, own: int, lengths: np.ndarray, starts: np.ndarray) -> np.ndarray:
  """Rows of the concatenated tokens: n x 31 frames, each row's from 31 different other clips while there are enough."""
  others = np.delete(np.arange(len(lengths)), own)
  if len(others) >= POOL - 1:
    drawn = others[_smallest(rng.random((n, len(others)), np.float32))]
  else:
    drawn = rng.choice(others, size=(n, POOL - 1))
  return starts[drawn] + (rng.random(drawn.shape) * lengths[drawn]).astype(np.int64)


def _other_frames(rng, partners: np.ndarray, frames: int) -> np.ndarray:
  """n x 31 different frames of the same clip, none nearer than MIN_DISTANCE to the partner of its row."""
  order = rng.random((len(partners), frames), np.float32)
  order[np.abs(np.arange(frames) - partners[:, None]) < MIN_DISTANCE] = np.inf
  return _smallest(order)


def _smallest(order: np.ndarray) -> np.ndarray:
  """Columns of the 31 smallest entries of each row, smallest first: any slice of them is a fair sample too."""
  columns = np.argpartition(order, POOL - 2, axis=1)[:, : POOL - 1]
  return np.take_along_axis(columns, np.take_along_axis(order, columns, axis=1).argsort(axis=1), axis=1)
