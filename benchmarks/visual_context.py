"""Lag information in one picture and in five: SynthTalk's true lips with one and with five frames per token.

    python benchmarks/visual_context.py [--clips=1200] [--steps=2000]

No pixels are used. One small network gets the true geometry of the pictures, another gets the log-mel features, and
both are trained with the contrast loss of pretraining. `landmarks` are the 39 points of the face in the picture,
relative to their centre; they depend on articulation, lip shape of the person, smile and pose. `articulation` is the
mouth state of the generator, which pictures show only mixed with the other factors. Prints the columns of the paper's
table on held-out clips on stderr, and a JSON line of both kinds: R@1 from one frame over R@1 from five. Takes about
four minutes on two cores.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import side_by_side

arguments = side_by_side.parser(__doc__)
arguments.add_argument("--clips", type=int, default=1_200, help="number of training clips")
arguments.add_argument("--steps", type=int, default=2_000)
if __name__ == "__main__":
  flags = side_by_side.parse(arguments)

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from flax import nnx

from synclipmae_jax import losses
from synclipmae_jax.data.synthtalk import geometry, phones
from synclipmae_jax.data.synthtalk.clip import SCENE, make_clip
from synclipmae_jax.data.synthtalk.identity import IDENTITY
from synclipmae_jax.data.synthtalk.motion import AMBIENT
from synclipmae_jax.metrics.retrieval import RetrievalState
from synclipmae_jax.metrics.sync import ClipTokens, LagState
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.layers import Linear
from synclipmae_jax.models.logmel import LogMel
from synclipmae_jax.models.speech_encoder import audio_windows, centre_tokens
from synclipmae_jax.train.optim import make_optimizer

SECONDS, HELD_OUT, HEARD, FRAMES, BATCH = 6.0, 128, 64, 16, 16
COLUMNS = ("acc/k1", "acc/k5", "acc/k15", "r_precision/top1", "r_precision/top2", "r_precision/top3")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truth:
  """One clip: its lag, its sound [640 T], and the true values of its pictures, name -> [T, ...]."""

  lag: int
  waveform: np.ndarray
  seen: dict[str, np.ndarray]


def truth(job: tuple[str, int]) -> Truth:
  split, index = job
  clip = make_clip(index, seed=0, split=split, seconds=SECONDS)
  tracks = {"mouth": (phones.MOUTH, clip.mouth.T), "ambient": (AMBIENT, clip.ambient.T)}
  fixed = {"face": (IDENTITY, clip.face), "scene": (SCENE, clip.scene)}
  named = {name: dict(zip(names, values, strict=True)) for name, (names, values) in (tracks | fixed).items()}
  points = geometry.landmarks(**named, size=64)
  points = (points - points.mean(axis=1, keepdims=True)).reshape(len(points), -1)
  return Truth(lag=clip.lag, waveform=clip.waveform(), seen={"landmarks": points, "articulation": clip.mouth})


class Tower(nnx.Module):
  """Two hidden layers; the second is residual."""

  def __init__(self, width: int, *, hidden: int = 512, out: int = 128, rngs: nnx.Rngs):
    make = functools.partial(Linear, compute_dtype=jnp.float32, rngs=rngs)
    self.first, self.second, self.out = make(width, hidden), make(hidden, hidden), make(hidden, out)

  def __call__(self, x):
    x = jax.nn.gelu(self.first(x))
    return self.out(x + jax.nn.gelu(self.second(x)))


@jax.jit
def hear(waveform):
  """[640 T] -> features [T, C] of the log-mel front end, as in the model."""
  windows = audio_windows(waveform[None], audio_frames=HEARD, clip_frames=FRAMES)
  hidden = rearrange(LogMel()(windows[0]), "w t l c -> 1 w t l c")
  hidden = centre_tokens(hidden, clip_frames=FRAMES, total_frames=len(waveform) // 640)
  return rearrange(hidden[0], "t l c -> t (l c)")


def look(seen: np.ndarray, context: int) -> np.ndarray:
  """[clips, T, F] -> [clips, T, (2 context + 1) F]: every frame with its neighbours."""
  padded = np.pad(seen, ((0, 0), (context, context), (0, 0)), "edge")
  return np.concatenate([padded[:, i : i + seen.shape[1]] for i in range(2 * context + 1)], axis=-1)


def measure(train, test, lags, *, steps: int) -> dict[str, float]:
  """Trains both towers on (heard, seen) [clips, T, ...] and scores them on test clips with the given lags."""
  towers = [Functional(lambda rngs, width=x.shape[-1]: Tower(width, rngs=rngs)) for x in train]
  keys = jax.random.split(jax.random.key(0), 2)
  params = {"towers": [t.init(key) for t, key in zip(towers, keys, strict=True)], "log_temperature": jnp.log(0.07)}
  optimizer = make_optimizer(peak_lr=2e-3, warmup_steps=min(100, steps), total_steps=steps)
  state = optimizer.init(params)
  embed = jax.jit(lambda params, xs: [t.bind(p)(x) for t, p, x in zip(towers, params["towers"], xs, strict=True)])

  @jax.jit
  def step(params, state, xs):
    objective = lambda params: (
      losses.contrast(*embed(params, xs), temperature=jnp.exp(params["log_temperature"]), group=BATCH).loss
    )
    updates, state = optimizer.update(jax.grad(objective)(params), state, params)
    return optax.apply_updates(params, updates), state

  random = np.random.default_rng(0)
  for _ in range(steps):
    clips = random.choice(len(train[0]), BATCH, replace=False)
    first = random.integers(0, train[0].shape[1] - FRAMES + 1, BATCH)
    params, state = step(params, state, [
      np.stack([x[c, t : t + FRAMES] for c, t in zip(clips, first, strict=True)]) for x in train
    ])  # fmt: skip
  found, pairs = LagState(), RetrievalState()
  for number, lag in enumerate(lags):
    audio, vocal = embed(params, [x[number] for x in test])
    tokens = ClipTokens(key=f"{number:03d}", audio=audio, vocal=vocal, lag=lag)
    found, pairs = found.merge(LagState.from_clip(tokens)), pairs.merge(RetrievalState.from_clip(tokens))
  return {name: estimate.value for name, estimate in (found.compute() | pairs.compute()).items()}


def main(flags) -> None:
  jobs = [("train", i) for i in range(flags.clips)] + [("test", i) for i in range(HELD_OUT)]
  with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
    clips = list(pool.map(truth, jobs, chunksize=16))
  heard = np.stack([np.asarray(hear(clip.waveform)) for clip in clips])
  lags = [clip.lag for clip in clips[flags.clips :]]
  say = functools.partial(print, file=sys.stderr, flush=True)
  say(f"| seen | frames | {' | '.join(COLUMNS)} |\n|---|---|{'---|' * len(COLUMNS)}")
  for name in ("landmarks", "articulation"):
    seen = np.stack([clip.seen[name] for clip in clips]).astype(np.float32)
    mean, spread = (x(seen[: flags.clips], axis=(0, 1)) for x in (np.mean, np.std))
    found = {}
    for context in (0, 2):
      both = (heard, look((seen - mean) / spread, context))
      train, test = ([x[part] for x in both] for part in (slice(flags.clips), slice(flags.clips, None)))
      frames = 2 * context + 1
      found[frames] = scores = measure(train, test, lags, steps=flags.steps)
      say(f"| {name} | {frames} | {' | '.join(f'{100 * scores[c]:.1f}' for c in COLUMNS)} |")
    one, five = (found[frames]["r_precision/top1"] for frames in (1, 5))
    side_by_side.print_ratio("visual_context", name, one / five if five else 0.0, of="one frame / five", unit="R@1",
                             one=found[1], five=found[5])  # fmt: skip


if __name__ == "__main__":
  main(flags)
