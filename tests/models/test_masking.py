import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synclipmae_jax.models import masking

GRID, VISIBLE = 16, 64


def clip_keys(count, seed=0):
  return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(count))


def boxes(clips, frames, box):
  return jnp.broadcast_to(jnp.asarray(box, jnp.float32), (clips, frames, 4))


@pytest.fixture(scope="module")
def weights():
  face = boxes(64, 16, (0.25, 0.25, 0.75, 0.875))
  mouth = boxes(64, 16, (0.375, 0.625, 0.625, 0.75))
  return masking.keep_weights(face, mouth, grid=GRID, face=6.0, mouth=12.0)


def sample(weights=None, seed=0, clips=64):
  return masking.sample_visible(clip_keys(clips, seed), frames=16, patches=GRID**2, visible=VISIBLE, weights=weights)


def test_every_frame_keeps_exactly_k_distinct_patches(weights):
  for indices in (sample(), sample(weights)):
    assert indices.shape == (64, 16, VISIBLE)
    ordered = np.sort(indices, axis=-1)
    assert np.all(np.diff(ordered, axis=-1) > 0)
    assert ordered.min() >= 0 and ordered.max() < GRID**2


def test_uniform_bypass_keeps_every_patch_equally_often():
  kept = masking.visibility(sample(), GRID**2).mean(axis=(0, 1))
  expected, frames = VISIBLE / GRID**2, 64 * 16
  deviation = np.sqrt(expected * (1 - expected) / frames)
  assert np.abs(kept - expected).max() < 5 * deviation


def test_face_bypass_prefers_the_face_and_most_the_mouth(weights):
  kept = np.asarray(masking.visibility(sample(weights), GRID**2).mean(axis=(0, 1)))
  weight = np.asarray(weights[0, 0])
  outside, face, mouth = (kept[weight == w].mean() for w in (1.0, 6.0, 12.0))
  assert mouth > 1.4 * face > 1.4 * 2.5 * outside
  # The first draw of weighted sampling without replacement is in proportion to the weights.
  first = masking.sample_visible(clip_keys(512), frames=16, patches=GRID**2, visible=1, weights=weights[:1])
  share = np.bincount(np.ravel(first), minlength=GRID**2) / first.size
  expected = weight / weight.sum()
  np.testing.assert_allclose(share[weight == 12].sum(), expected[weight == 12].sum(), rtol=0.1)
  np.testing.assert_allclose(share[weight == 1].sum(), expected[weight == 1].sum(), rtol=0.1)


def test_masks_depend_on_key_and_clip_only(weights):
  again = sample(weights)
  np.testing.assert_array_equal(sample(weights), again)
  assert np.any(sample(weights, seed=1) != again)
  alone = masking.sample_visible(clip_keys(64)[5:6], frames=16, patches=GRID**2, visible=VISIBLE, weights=weights[5:6])
  np.testing.assert_array_equal(alone[0], again[5])
  assert np.any(again[5] != again[6]) and np.any(again[5, 0] != again[5, 1])


def test_mouth_prior_replaces_rows_without_landmarks():
  face = boxes(1, 2, (0.2, 0.2, 0.8, 1.0))
  mouth = jnp.array([[[-1.0, -1, -1, -1], [0.1, 0.2, 0.3, 0.4]]])
  got = np.asarray(masking.mouth_or_prior(face, mouth))
  np.testing.assert_allclose(got[0, 0], [0.35, 0.696, 0.65, 0.96], atol=1e-6)
  np.testing.assert_allclose(got[0, 1], [0.1, 0.2, 0.3, 0.4], atol=1e-6)


def test_coverage_is_the_overlapped_area():
  box = jnp.array([0.1, 0.2, 0.6, 0.7])
  coverage = masking.box_coverage(box, 4)
  np.testing.assert_allclose(coverage.sum() / 16, 0.25, rtol=1e-6)
  assert coverage[5] == 1.0 and coverage[15] == 0.0  # patch (1, 1) is inside, patch (3, 3) outside


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("patch", [6, 8])  # bytes of patches of 8 are moved by fours
def test_patchify_round_trip_and_layout(patch, dtype):
  side = 4 * patch
  frames = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 3, side, side, 3)), dtype)
  patches = masking.patchify(frames, patch)
  assert patches.dtype == dtype
  np.testing.assert_array_equal(
    patches[1, 2, 6].reshape(patch, patch, 3), frames[1, 2, patch : 2 * patch, 2 * patch : 3 * patch]
  )
  np.testing.assert_array_equal(masking.unpatchify(patches, patch), frames)


@pytest.mark.parametrize("frames", [1, 16, 514])
def test_motion_is_the_standard_deviation_over_time(frames):
  patches = np.random.default_rng(0).integers(0, 2, (1, frames, 3, 12), np.uint8) * 255  # the largest there is
  patches[:, :, 1] //= 40
  patches[:, :, 2] = 77
  change = patches.astype(np.float64).std(axis=1).mean(axis=-1)
  np.testing.assert_allclose(masking.motion_of(jnp.asarray(patches)), change / (change.mean() + 1e-6), rtol=1e-5)


def test_motion_of_more_frames_than_the_sums_hold_is_refused():
  with pytest.raises(ValueError, match="at most 514 frames, got 515"):
    masking.motion_of(jnp.zeros((1, 515, 1, 3), jnp.uint8))


@pytest.mark.parametrize("grid, visible", [(4, 4), (4, 15), (16, 26), (16, 64)])
def test_evenly_spread_patches_are_distinct_and_in_every_quarter(grid, visible):
  indices = masking.spread_evenly(grid, visible)
  assert len(set(indices.tolist())) == visible and 0 <= indices.min() and indices.max() < grid**2
  quarters = 2 * (indices // grid >= grid // 2) + (indices % grid >= grid // 2)
  counts = np.bincount(quarters, minlength=4)
  assert counts.max() <= 2 * counts.min()
  np.testing.assert_array_equal(masking.spread_evenly(grid, visible), indices)


def test_a_faceless_context_has_no_patch_that_the_face_touches():
  indices = jnp.tile(jnp.arange(16), (2, 3, 1))
  chosen = jnp.array([[True, False, True], [False, False, True]])
  left = masking.leave_out_face(indices, jnp.asarray(boxes(2, 3, [0.3, 0.3, 0.7, 0.7])), frames=chosen, grid=4)
  inside = [5, 6, 9, 10]
  expected = [index if index not in inside else 16 for index in range(16)]
  for clip, frame in np.ndindex(2, 3):
    np.testing.assert_array_equal(left[clip, frame], expected if chosen[clip, frame] else range(16))
  assert masking.visibility(left, 16)[0, 0, np.array(inside)].sum() == 0


@pytest.mark.parametrize("grid, visible", [(16, 64), (16, 26), (12, 36)])
def test_equal_weights_leave_out_no_part_of_the_face(grid, visible):
  """At 256 pixels the crop's face box covers half of the patches; those that are wholly on it weigh the same."""
  face = jnp.asarray(masking.FACE_PRIOR)
  weights = masking.keep_weights(face, jnp.full(4, -1.0), grid=grid, face=6.0, mouth=6.0)
  chosen = np.asarray(masking.top_weighted(weights, visible))
  assert len(set(chosen.tolist())) == visible and np.asarray(weights)[chosen].min() == 6
  rows = np.flatnonzero(np.asarray(weights) == 6) // grid
  seen = np.bincount(chosen // grid, minlength=grid)
  for part in np.array_split(np.unique(rows), 3):  # brows, nose, jaw
    there = np.isin(rows, part).sum()
    assert 0.7 < seen[part].sum() / (visible * there / len(rows)) < 1.4


def test_larger_weights_precede_and_every_frame_has_its_own_choice():
  weights = jnp.asarray(np.random.default_rng(0).permutation(2 * 3 * 64).reshape(2, 3, 64).astype(np.float32))
  chosen = np.asarray(masking.top_weighted(weights, 10))
  np.testing.assert_array_equal(chosen, np.argsort(-np.asarray(weights), axis=-1)[..., :10])
