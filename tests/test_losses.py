"""The losses against independent float64 NumPy, and their gradients against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synclipmae_jax import losses
from synclipmae_jax.types import KEYPOINTS


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def contrast_float64(audio, vocal, *, temperature, group, window=0, form="log_sum", features=None, similarity=None):
  """The formula, one anchor at a time."""
  clips, frames, _ = audio.shape
  total = []
  for first in range(0, clips, group):
    members = [(c, t) for c in range(first, first + group) for t in range(frames)]
    a = unit(np.array([audio[c, t] for c, t in members], np.float64))
    v = unit(np.array([vocal[c, t] for c, t in members], np.float64))
    for i, (clip, time) in enumerate(members):
      positives = []
      for j, (other, then) in enumerate(members):
        close = abs(time - then) <= window
        if similarity is not None and other == clip:
          centred = np.float64(features[clip]) - np.float64(features[clip]).mean(axis=0)
          close |= unit(centred[time]) @ unit(centred[then]) >= similarity
        if other == clip and close:
          positives.append(j)
      for scores in (a[i] @ v.T, v[i] @ a.T):
        p = np.exp(scores / temperature)
        p = p / p.sum()
        total.append(-np.log(p[positives].sum()) if form == "log_sum" else -np.log(p[positives]).mean())
  return np.mean(total)


@pytest.fixture
def tokens():
  random = np.random.default_rng(0)
  return [jnp.float32(random.normal(size=(6, 5, 8))) for _ in range(3)]


@pytest.mark.parametrize("form", ["log_sum", "mean_log"])
@pytest.mark.parametrize("group", [1, 2, 6])
@pytest.mark.parametrize("window", [0, 1])
@pytest.mark.parametrize("similarity", [None, 0.3])
def test_contrast_equals_the_formula(tokens, form, group, window, similarity):
  audio, vocal, features = tokens
  settings = dict(group=group, window=window, form=form, similarity=similarity)
  got = losses.contrast(audio, vocal, temperature=jnp.float32(0.1), audio_features=features, **settings)
  want = contrast_float64(audio, vocal, temperature=0.1, features=features, **settings)
  np.testing.assert_allclose(got.loss, want, rtol=2e-6)


def test_contrast_gradient_by_finite_differences(tokens):
  audio, vocal, features = tokens
  settings = dict(group=2, window=1, similarity=0.3)
  loss = lambda a, v, tau: losses.contrast(a, v, temperature=tau, audio_features=features, **settings).loss
  slope = jax.grad(loss, argnums=(0, 1, 2))(audio, vocal, jnp.float32(0.1))
  random = np.random.default_rng(1)
  step = 1e-6
  for argument, gradient in enumerate(slope):
    direction = random.normal(size=np.shape(gradient))
    ends = []
    for sign in (1, -1):
      moved = [np.float64(audio), np.float64(vocal), np.float64(0.1)]
      moved[argument] = moved[argument] + sign * step * direction
      ends.append(contrast_float64(moved[0], moved[1], temperature=moved[2], features=features, **settings))
    np.testing.assert_allclose(np.sum(gradient * direction), (ends[0] - ends[1]) / (2 * step), rtol=1e-4)


def test_one_frame_shift_of_the_audio_raises_the_contrast():
  """With the default window of 0 a constant one-frame error costs much; with 1 it costs almost nothing."""
  random = np.random.default_rng(2)
  tokens = jnp.float32(random.normal(size=(4, 16, 32)))
  shifted = jnp.roll(tokens, 1, axis=1)
  at = lambda audio, window: float(
    losses.contrast(audio, tokens, temperature=jnp.float32(0.07), group=4, window=window).loss
  )
  assert at(tokens, 0) < 0.1
  assert at(shifted, 0) > 5.0
  assert at(shifted, 1) < 1.5


def test_contrast_counts_hits_and_positives(tokens):
  audio, _, _ = tokens
  exact = losses.contrast(audio, audio, temperature=jnp.float32(0.07), group=6)
  assert exact.accuracy == 1.0 and exact.positives == 1.0
  wide = losses.contrast(audio, audio, temperature=jnp.float32(0.07), group=6, window=1)
  np.testing.assert_allclose(wide.positives, (2 + 3 + 3 + 3 + 2) / 5, rtol=1e-6)


def test_contrast_has_no_gradient_into_the_audio_features(tokens):
  audio, vocal, features = tokens
  loss = lambda f: (
    losses.contrast(audio, vocal, temperature=jnp.float32(0.1), group=6, audio_features=f, similarity=0.3).loss
  )
  assert not np.any(jax.grad(loss)(features))


def test_contrast_refuses_groups_that_do_not_divide(tokens):
  with pytest.raises(ValueError, match="groups of 4 clips do not divide 6"):
    losses.contrast(tokens[0], tokens[1], temperature=jnp.float32(0.1), group=4)


@pytest.mark.parametrize("patches", ["masked", "all"])
def test_reconstruction_equals_the_formula(patches):
  random = np.random.default_rng(3)
  predicted, target = random.normal(size=(2, 3, 2, 6, 12)), random.normal(size=(2, 3, 6, 12))
  masked = np.zeros((2, 3, 6))
  for b, f in np.ndindex(2, 3):
    masked[b, f, random.permutation(6)[:4]] = 1
  got = losses.reconstruction(jnp.float32(predicted), jnp.float32(target), jnp.float32(masked), patches=patches)
  for q in range(2):
    errors = [
      np.mean((predicted[b, f, q, n] - target[b, f, n]) ** 2)
      for b, f, n in np.ndindex(2, 3, 6)
      if patches == "all" or masked[b, f, n]
    ]
    np.testing.assert_allclose(got[q], np.mean(errors), rtol=1e-5)


def test_moving_patches_and_their_structure_weigh_more():
  random = np.random.default_rng(6)
  predicted, target = random.normal(size=(2, 3, 1, 6, 12)), random.normal(size=(2, 3, 6, 12))
  motion, masked = random.uniform(0, 2, (2, 6)), random.integers(0, 2, (2, 3, 6))
  got = losses.reconstruction(
    *map(jnp.float32, (predicted, target, masked)), motion=jnp.float32(motion), motion_weight=3.0, structure_weight=5.0
  )
  total = 0.0
  for b, f, n in np.argwhere(masked):
    error = (predicted[b, f, 0, n] - target[b, f, n]).reshape(4, 3)
    colour = np.mean(error.mean(axis=0) ** 2)
    total += (1 + 3 * motion[b, n]) / 4 * (colour + 5 * (np.mean(error**2) - colour))
  np.testing.assert_allclose(got[0], total / masked.sum(), rtol=1e-5)


def test_the_subject_contrast_equals_the_formula():
  random = np.random.default_rng(7)
  identity = random.normal(size=(12, 3, 8))
  subject = np.uint32([5, 5, 6, 6, 5, 5, 7, 7, 8, 8, 9, 9])  # pairs; 5 comes twice in the first group
  got, accuracy = losses.subject_contrast(jnp.float32(identity), jnp.array(subject), temperature=0.2, group=6)
  clips = unit(unit(identity).mean(axis=1))
  surprises, hits = [], []
  for group in (0, 6):
    for anchors, partners in ((0, 1), (1, 0)):
      for pair in range(group, group + 6, 2):
        others = [p for p in range(group, group + 6, 2) if p == pair or subject[p] != subject[pair]]
        logits = {p: clips[pair + anchors] @ clips[p + partners] / 0.2 for p in others}
        surprises.append(np.log(sum(np.exp(list(logits.values())))) - logits[pair])
        hits += [max(logits, key=logits.get) == pair] if anchors == 0 else []
  np.testing.assert_allclose(got, np.mean(surprises), rtol=1e-5)
  np.testing.assert_allclose(accuracy, np.mean(hits))
  gradient = jax.grad(lambda x: losses.subject_contrast(x, jnp.array(subject), temperature=0.2, group=6)[0])
  assert np.isfinite(gradient(jnp.float32(identity))).all()


def test_the_frame_contrast_equals_the_formula():
  random = np.random.default_rng(9)
  context, motion = random.normal(size=(4, 2, 8)), random.normal(size=(4, 5, 8))
  decoded = np.array([[0, 3], [2, 4], [1, 2], [0, 4]])
  got, accuracy = losses.frame_contrast(jnp.float32(context), jnp.float32(motion), jnp.array(decoded), temperature=0.2)
  surprises, hits = [], []
  for clip, chosen in np.ndindex(4, 2):
    candidates = [(c, t) for c in (clip // 2 * 2, clip // 2 * 2 + 1) for t in range(5)]
    p = np.exp([unit(context[clip, chosen]) @ unit(motion[c, t]) / 0.2 for c, t in candidates])
    own = np.array([c == clip and abs(t - decoded[clip, chosen]) <= 1 for c, t in candidates])
    surprises.append(-np.log(p[own].sum() / p.sum()))
    hits.append(own[p.argmax()])
  np.testing.assert_allclose(got, np.mean(surprises), rtol=1e-5)
  np.testing.assert_allclose(accuracy, np.mean(hits))


def test_what_is_beyond_the_vocal_tokens_does_not_follow_them():
  random = np.random.default_rng(10)
  vocal, other = random.normal(size=(2, 12, 16, 6))
  ambient = vocal @ random.normal(size=(6, 6)) + 0.1 * other + 3
  tokens = jnp.float32(vocal), jnp.float32(ambient)
  rest, again = losses.unexplained(tokens, tokens, ridge=1e-4)
  np.testing.assert_array_equal(rest, again)
  np.testing.assert_allclose(rest, 0.1 * (other - other.mean((0, 1))), atol=0.1)
  assert losses.cross_covariance(rest, tokens[0], normalised=True) < 1e-4
  of_vocal = jax.grad(lambda v: jnp.square(losses.unexplained((v, tokens[1]), tokens)[0]).sum())(tokens[0])
  np.testing.assert_array_equal(of_vocal, 0)


def test_the_spread_that_is_missing():
  x = np.random.default_rng(11).normal(size=(8, 6, 4)) * [0, 0.1, 0.2, 1]
  expected = np.maximum(0.3 - x.std((0, 1)), 0).mean()
  np.testing.assert_allclose(losses.missing_spread(jnp.float32(x), spread=0.3), expected, rtol=1e-3)
  assert np.isfinite(jax.grad(lambda x: losses.missing_spread(x, spread=0.3))(jnp.float32(x))).all()


def test_the_normalised_covariance_is_of_correlations():
  random = np.random.default_rng(8)
  x = random.normal(size=(20, 4, 6)) * np.logspace(0.5, 1.5, 6)
  y = 0.5 * x[..., ::-1] + random.normal(size=x.shape)
  flat = [z.reshape(-1, 6) for z in (x, y)]
  entries = [np.corrcoef(flat[0][:, i], flat[1][:, j])[0, 1] for i, j in np.ndindex(6, 6)]
  got = losses.cross_covariance(jnp.float32(x), jnp.float32(y), normalised=True)
  np.testing.assert_allclose(got, np.sum(np.square(entries)) / 6 * (80 / 79) ** 2, rtol=2e-2)


def cross_covariance_float64(x, y):
  """Entry by entry, with the covariance of NumPy (which divides by n - 1)."""
  x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
  entries = [np.cov(x[:, i], y[:, j])[0, 1] for i, j in np.ndindex(x.shape[1], y.shape[1])]
  return np.sum(np.square(entries)) / x.shape[1]


@pytest.mark.parametrize("clips", [2, 40], ids=["fewer tokens than width", "more tokens than width"])
def test_cross_covariance_equals_the_formula(clips):
  random = np.random.default_rng(4)
  x = random.normal(size=(clips, 3, 16)) + 5
  y = 0.5 * x[..., ::-1] + random.normal(size=(clips, 3, 16))
  got = losses.cross_covariance(jnp.float32(x), jnp.float32(y))
  np.testing.assert_allclose(got, cross_covariance_float64(x, y), rtol=1e-4)
  gradient = jax.grad(losses.cross_covariance)(jnp.float32(x), jnp.float32(y))
  direction = random.normal(size=x.shape)
  ends = [cross_covariance_float64(x + step * direction, y) for step in (1e-5, -1e-5)]
  np.testing.assert_allclose(np.sum(gradient * direction), (ends[0] - ends[1]) / 2e-5, rtol=1e-3)


def test_independent_factors_have_almost_no_cross_covariance():
  random = np.random.default_rng(5)
  x, y = (jnp.float32(random.normal(size=(64, 64, 8))) for _ in range(2))
  assert losses.cross_covariance(x, y) < 0.02 * losses.cross_covariance(x, x)


def faces(frames, seed=0):
  """Points of one face in `frames` postures: float32 [frames, P, 2]."""
  rng = np.random.default_rng(seed)
  upright = losses._UPRIGHT + rng.normal(size=losses._UPRIGHT.shape) * 0.01
  return np.float32([turned(upright, angle) for angle in rng.normal(size=frames) * 0.2])


def turned(points, angle, scale=1.0, shift=0.0):
  cos, sin = np.cos(angle), np.sin(angle)
  return (points - 0.5) @ np.array([[cos, sin], [-sin, cos]]) * scale + 0.5 + shift


def test_the_pose_is_roll_and_lengths_in_the_units_of_the_face():
  face = faces(1)[0]
  before = np.asarray(losses._pose(jnp.asarray(face[None, None])))[0, 0]
  after = np.asarray(losses._pose(jnp.float32(turned(face, 0.3, 0.7, 0.1))[None, None]))[0, 0]
  np.testing.assert_allclose(after[0] - before[0], 0.3, atol=1e-4)
  np.testing.assert_allclose(after[1:], before[1:], atol=1e-4)
  closed = face.copy()
  closed[KEYPOINTS.index("left_lid_upper")] = closed[KEYPOINTS.index("left_lid_lower")]
  shut = np.asarray(losses._pose(jnp.asarray(closed[None, None])))[0, 0]
  assert abs(shut[3]) < 1e-5 < abs(before[3])
  np.testing.assert_array_equal(np.delete(shut, 3), np.delete(before, 3))


def test_the_lips_are_lengths_in_the_units_of_the_face():
  face = faces(1)[0]
  before = np.asarray(losses._lips(jnp.asarray(face[None, None])))[0, 0]
  after = np.asarray(losses._lips(jnp.float32(turned(face, 0.3, 0.7, 0.1))[None, None]))[0, 0]
  np.testing.assert_allclose(after, before, atol=1e-4)
  shut = face.copy()
  shut[KEYPOINTS.index("lower_lip_inner")] = shut[KEYPOINTS.index("upper_lip_inner")]
  closed = np.asarray(losses._lips(jnp.asarray(shut[None, None])))[0, 0]
  assert abs(closed[1]) < 1e-5 < before[1]
  np.testing.assert_array_equal(np.delete(closed, 1), np.delete(before, 1))


@pytest.mark.parametrize("term", [losses.head_motion, losses.lip_motion])
def test_motion_of_head_and_lips_is_learned_from_the_token(term):
  keypoints = jnp.asarray(np.stack([faces(6, seed) for seed in range(4)]))
  tokens = jnp.zeros((4, 6, 16))
  error, explained = term(tokens, keypoints)
  np.testing.assert_allclose(error, 1, atol=0.35)  # a token that says nothing; some of the targets do not vary
  step = jax.jit(lambda x: x - 20 * jax.grad(lambda y: term(y, keypoints)[0])(x))
  for _ in range(300):
    tokens = step(tokens)
  error, explained = term(tokens, keypoints)
  assert error < 1e-3 and explained > 0.999


def test_frames_without_a_face_do_not_count():
  keypoints = np.stack([faces(6, seed) for seed in range(2)])
  keypoints[1, 2:] = -1
  rng = np.random.default_rng(0)
  tokens = np.float32(rng.normal(size=(2, 6, 16)))
  other = tokens.copy()
  other[1, 2:] = rng.normal(size=(4, 16))
  of = lambda x: losses.head_motion(jnp.asarray(x), jnp.asarray(keypoints))[0]
  np.testing.assert_allclose(of(tokens), of(other), rtol=1e-6)
  gradient = jax.grad(lambda x: losses.head_motion(x, jnp.full_like(keypoints, -1))[0])(jnp.asarray(tokens))
  np.testing.assert_array_equal(gradient, 0)
