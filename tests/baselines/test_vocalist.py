import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from synclipmae_jax.baselines import vocalist
from synclipmae_jax.baselines.vocalist import BatchNorm, Transformer, Vocalist, VocalistJudge
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.types import EvalClip

WIDTHS = (2, 2, 2, 2, 16)


def normal(*shape, seed=0):
  return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def test_a_position_whose_first_channel_is_zero_counts_as_padding():
  x = normal(1, 5, 8)
  x[0, 2, 0] = 0
  table = np.asarray(vocalist._placed(jnp.asarray(x))) - np.sqrt(8) * x
  frequency = 10_000.0 ** (-np.arange(4) / 3)
  for position in (1, 2, 4, 5):
    angle = position * frequency
    np.testing.assert_allclose(table[0, position - 1], np.concatenate([np.sin(angle), np.cos(angle)]), atol=1e-5)
  np.testing.assert_allclose(table[0, 2], 0, atol=1e-6)


@pytest.mark.parametrize(("queries", "keys"), [(5, 16), (16, 5), (6, 6)])
def test_the_causal_mask_has_an_offset_of_the_difference_of_lengths(queries, keys):
  transformer = Functional(lambda rngs: Transformer(16, 2, rngs=rngs))
  params = jax.tree.map(lambda leaf: 0.3 * normal(*leaf.shape), transformer.abstract)
  x, context = jnp.asarray(1 + normal(1, queries, 16)), 1 + normal(1, keys, 16, seed=1)
  run = jax.jit(lambda context: transformer.bind(params)(x, context))
  reference = run(context)
  for key in range(keys):
    changed = context.copy()
    changed[0, key] = normal(16, seed=2)
    moved = np.abs(run(changed) - reference).max(axis=(0, 2)) > 1e-6
    np.testing.assert_array_equal(moved, key <= np.arange(queries) + abs(keys - queries))


def test_batch_norm_uses_the_running_statistics():
  norm = BatchNorm(2)
  norm.mean[...], norm.var[...] = jnp.array([1.0, -1.0]), jnp.array([4.0, 0.25])
  norm.scale[...], norm.bias[...] = jnp.array([3.0, 1.0]), jnp.array([0.0, 5.0])
  np.testing.assert_allclose(norm(jnp.array([[3.0, 0.0]])), [[3.0, 7.0]], rtol=1e-5)


@pytest.fixture(scope="module")
def model():
  return Functional(lambda rngs: Vocalist(widths=WIDTHS, depth=1, rngs=rngs))


def test_the_shapes_of_the_prenets(model):
  shapes = jax.eval_shape(
    lambda params, mel, pictures: (model.bind(params).audio(mel), model.bind(params).video(pictures)),
    model.abstract, jax.ShapeDtypeStruct((3, 80, 16), np.float32), jax.ShapeDtypeStruct((3, 5, 48, 96, 3), np.float32),
  )  # fmt: skip
  assert [shape.shape for shape in shapes] == [(3, 16, 16), (3, 5, 16)]


def test_scores_of_pairs_do_not_depend_on_the_batch(model):
  params = jax.tree.map(lambda leaf: 0.3 * normal(*leaf.shape), model.abstract)
  judge = VocalistJudge(model, params, chunk=1)
  audio, video = normal(11, 16, 16), normal(11, 5, 16, seed=1)
  scores = judge.similarity(audio, video)
  assert scores.shape == (11,) and np.ptp(scores) > 1e-3
  np.testing.assert_allclose(judge.similarity(audio[3:5], video[3:5]), scores[3:5], atol=1e-5)


class Levels(nnx.Module):
  """Replaces the network: a pair scores minus the difference of loudness and redness."""

  def __init__(self):
    self.factor = nnx.Param(jnp.ones(()))

  def audio(self, mel):
    return self.factor * jnp.swapaxes(mel, 1, 2).mean(axis=-1, keepdims=True)

  def video(self, pictures):
    return self.factor * pictures[..., 2].mean(axis=(2, 3))[..., None]

  def pair(self, audio, video):
    return -jnp.abs((audio.mean(axis=(1, 2)) + 4) / 5 - video.mean(axis=(1, 2)))


def talking(lag=0, frames=60, seed=0):
  """A clip whose redness follows the loudness `lag` frames later."""
  level = np.random.RandomState(seed).uniform(size=frames + 2 * abs(lag))
  level = np.convolve(level, np.ones(3) / 3, mode="same")
  level = (level - level.min()) / np.ptp(level)
  heard, seen = level[abs(lag) :][:frames], level[abs(lag) - lag :][:frames]
  pictures = np.zeros((frames, 32, 32, 3), np.uint8)
  pictures[:, 16:, :, 0] = (255 * seen).astype(np.uint8)[:, None, None]
  noise = np.random.RandomState(1).standard_normal(640 * frames)
  return EvalClip(
    key="talking", corpus="test", identity="one", frames=pictures,
    waveform=(np.repeat(10 ** (1.5 * heard - 3), 640) * noise).astype(np.float32),
    face_box=np.tile(np.float32([0, 0, 1, 1]), (frames, 1)), mouth_box=np.full((frames, 4), -1, np.float32),
    lag=lag, truth=None,
  )  # fmt: skip


@pytest.fixture
def judge():
  model = Functional(lambda rngs: Levels())
  return VocalistJudge(model, model.init(jax.random.key(0)), chunk=16)


def test_pair_scores_equal_lag_scores(judge):
  clip, other = talking(), talking(seed=3)
  rows = judge.lag_scores(clip)
  assert rows.shape == (30, 31)
  heard, seen = np.array([15, 20, 20, 44]), np.array([0, 19, 27, 59])
  np.testing.assert_allclose(judge.pair_scores(clip, heard, clip, seen), rows[heard - 15, seen - heard + 15], atol=1e-6)
  audio, video = judge.embed(clip)[0], judge.embed(other)[1]
  np.testing.assert_allclose(
    judge.pair_scores(clip, heard, other, seen), judge.similarity(audio[heard], video[seen]), atol=1e-6
  )


@pytest.mark.parametrize("lag", [0, 4, -7])
def test_a_positive_lag_means_that_the_video_lags(judge, lag):
  best = judge.lag_scores(talking(lag)).mean(axis=0).argmax() - 15
  assert best == lag


def test_too_few_frames(judge):
  with pytest.raises(ValueError, match="too few"):
    judge.lag_scores(talking(frames=30))


def test_pictures_are_lower_halves_in_bgr():
  clip = talking()
  pictures = vocalist.lower_faces(clip)
  assert pictures.shape == (60, 48, 96, 3)
  np.testing.assert_allclose(pictures[:, 40, 7, 2], clip.frames[:, 20, 0, 0] / 255, atol=1e-6)
  assert not pictures[..., :2].any()
  assert vocalist.audio_windows(clip).shape == (60, 80, 16)
