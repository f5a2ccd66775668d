import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synclipmae_jax.models.augment import apply_affine, crop_jitter, jitter_affine

OFF = dict(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, probability=1.0)
FULL = dict(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, probability=0.8)


def jittered(pixels, key=0, mean=0.4, **strengths):
  matrix, offset = jitter_affine(jax.random.key(key), jnp.float32(mean), **{**OFF, **strengths})
  return np.asarray(apply_affine(jnp.asarray(pixels)[None, None, None], matrix[None], offset[None])[0, 0, 0])


@pytest.fixture
def pixels():
  return np.random.default_rng(0).uniform(0.3, 0.6, 12).astype(np.float32)


def test_zero_strength_or_probability_changes_nothing(pixels):
  np.testing.assert_allclose(jittered(pixels), pixels, atol=1e-5)
  np.testing.assert_allclose(jittered(pixels, **{**FULL, "probability": 0.0}), pixels, atol=1e-5)


def test_brightness_scales_within_its_range(pixels):
  ratios = [jittered(pixels, key, brightness=0.4) / pixels for key in range(30)]
  assert np.ptp(ratios, axis=1).max() < 1e-4
  assert 0.6 <= np.min(ratios) < 0.8 and 1.2 < np.max(ratios) <= 1.4


def test_contrast_pivots_on_the_mean(pixels):
  out = jittered(pixels, 3, mean=0.45, contrast=0.4)
  factor = (out - 0.45) / (pixels - 0.45)
  assert np.ptp(factor) < 1e-3 and abs(factor[0] - 1) > 0.01


def test_saturation_and_hue_keep_luma_and_grey(pixels):
  luma = lambda x: x.reshape(-1, 3) @ [0.299, 0.587, 0.114]
  for strengths in (dict(saturation=0.5), dict(hue=0.1)):
    out = jittered(pixels, 5, **strengths)
    assert np.abs(out - pixels).max() > 0.005
    np.testing.assert_allclose(luma(out), luma(pixels), atol=3e-3)
    np.testing.assert_allclose(jittered(np.full(3, 0.5, np.float32), 5, **strengths), 0.5, atol=3e-3)


def test_hue_rotates_by_the_drawn_angle():
  red = np.array([0.6, 0.35, 0.35], np.float32)
  turns = []
  for key in range(20):
    before, after = colorsys.rgb_to_hsv(*red)[0], colorsys.rgb_to_hsv(*jittered(red, key, hue=0.1))[0]
    turns.append((after - before + 0.5) % 1 - 0.5)
  assert 0.03 < np.max(np.abs(turns)) < 0.15 and min(turns) < 0 < max(turns)


def test_result_stays_in_range_and_is_one_draw_per_clip(pixels):
  matrix, offset = jitter_affine(jax.random.key(1), jnp.float32(0.4), **FULL)
  clip = jnp.float32(np.random.default_rng(1).uniform(0, 1, (1, 2, 5, 12)))
  out = np.asarray(apply_affine(clip, matrix[None], offset[None]))
  assert 0 <= out.min() and out.max() <= 1
  alone = np.asarray(apply_affine(clip[:, 1:, 3:4], matrix[None], offset[None]))
  np.testing.assert_allclose(out[:, 1:, 3:4], alone, atol=1e-6)


def square_clip(size=32):
  """Black frames with a white square at [8, 20) x [12, 20); boxes: that of the square, and an unknown one."""
  frames = jnp.zeros((2, size, size, 3), jnp.uint8).at[:, 12:20, 8:20].set(255)
  known = np.tile(np.float32([8, 12, 20, 20]) / size, (2, 1))
  return frames, jnp.stack([known, np.full((2, 4), -1, np.float32)])


def test_no_crop_jitter_changes_nothing():
  frames, boxes = square_clip()
  noise = jnp.uint8(np.random.default_rng(0).integers(0, 256, frames.shape))
  same, there = crop_jitter(jax.random.key(0), noise, boxes, zoom=1.0, shift=0.0)
  np.testing.assert_array_equal(same, noise)
  np.testing.assert_allclose(there, boxes, atol=1e-6)


@pytest.mark.parametrize("mirror", [0.0, 0.5])
def test_boxes_follow_the_picture(mirror):
  frames, boxes = square_clip()
  moved = []
  for key in range(12):
    seen, there = crop_jitter(jax.random.key(key), frames, boxes, zoom=1.3, shift=0.1, mirror=mirror)
    white = np.asarray(seen[0, :, :, 0]) > 127
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    np.testing.assert_allclose(found, 32 * np.asarray(there[0, 0]), atol=1.0)
    np.testing.assert_array_equal(there[1], boxes[1])  # an unknown box stays unknown
    np.testing.assert_array_equal(seen[0], seen[1])  # one draw per clip
    moved.append(found)
  assert np.ptp(moved, axis=0).min() >= 2


def test_half_of_the_clips_are_mirrored_with_their_boxes():
  frames, boxes = square_clip()
  seen = [crop_jitter(jax.random.key(key), frames, boxes, zoom=1.0, shift=0.0, mirror=0.5) for key in range(24)]
  mirrored = [clip for clip, _ in seen if not np.array_equal(clip, frames)]
  assert 4 <= len(mirrored) <= 20
  for clip, there in seen:
    left = 8 if np.array_equal(clip, frames) else 12
    np.testing.assert_array_equal(clip, frames if left == 8 else frames[:, :, ::-1])
    np.testing.assert_allclose(there[0, 0] * 32, [left, 12, left + 12, 20], atol=1e-5)
    np.testing.assert_array_equal(there[1], boxes[1])
