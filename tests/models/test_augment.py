import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synclipmae_jax.models.augment import (
  apply_affine,
  blur_and_light,
  box_jitter,
  crop_jitter,
  jitter_affine,
  mean_luma,
  mirrored,
  noise,
  zoomed,
)
from synclipmae_jax.types import KEYPOINTS

POINTS = jnp.zeros((2, 0, 2))
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
  same, there, _ = crop_jitter(jax.random.key(0), noise, boxes, POINTS, zoom=1.0, shift=0.0)
  np.testing.assert_array_equal(same, noise)
  np.testing.assert_allclose(there, boxes, atol=1e-6)


@pytest.mark.parametrize("mirror", [0.0, 0.5])
def test_boxes_follow_the_picture(mirror):
  frames, boxes = square_clip()
  moved = []
  for key in range(12):
    seen, there, _ = crop_jitter(jax.random.key(key), frames, boxes, POINTS, zoom=1.3, shift=0.1, mirror=mirror)
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
  strengths = dict(zoom=1.0, shift=0.0, mirror=0.5)
  seen = [crop_jitter(jax.random.key(key), frames, boxes, POINTS, **strengths)[:2] for key in range(24)]
  mirrored = [clip for clip, _ in seen if not np.array_equal(clip, frames)]
  assert 4 <= len(mirrored) <= 20
  for clip, there in seen:
    left = 8 if np.array_equal(clip, frames) else 12
    np.testing.assert_array_equal(clip, frames if left == 8 else frames[:, :, ::-1])
    np.testing.assert_allclose(there[0, 0] * 32, [left, 12, left + 12, 20], atol=1e-5)
    np.testing.assert_array_equal(there[1], boxes[1])


def test_boxes_follow_a_rotated_and_stretched_picture():
  frames, boxes = square_clip()
  centres, shapes, filled = [], [], []
  for key in range(16):
    options = dict(zoom=1.1, shift=0.05, mirror=0.5, stretch=1.3, rotation=25.0)
    points = (
      jnp.full((2, len(KEYPOINTS), 2), 16 / 32).at[1].set(-1).at[0, :2].set([[8 / 32, 12 / 32], [20 / 32, 20 / 32]])
    )
    seen, there, moved = crop_jitter(jax.random.key(key), frames, boxes, points, **options)
    weight = np.asarray(seen[0, :, :, 0], np.float32) / 255
    at = np.arange(32) + 0.5
    found = np.array([weight.sum(0) @ at, weight.sum(1) @ at]) / weight.sum()
    box = 32 * np.asarray(there[0, 0])
    np.testing.assert_allclose(found, (box[:2] + box[2:]) / 2, atol=0.3)
    np.testing.assert_allclose(weight.sum(), np.prod(box[2:] - box[:2]), rtol=0.06)  # the area is that of the box
    np.testing.assert_array_equal(moved[1], -1)
    np.testing.assert_allclose(32 * np.asarray(moved[0, :2]).mean(axis=0), found, atol=0.3)  # two corners of the square
    rows, columns = np.flatnonzero((weight > 0.5).any(1)), np.flatnonzero((weight > 0.5).any(0))
    filled.append(weight.sum() / (np.ptp(rows) + 1) / (np.ptp(columns) + 1))
    centres.append(found)
    shapes.append(np.divide(*(box[2:] - box[:2])))
  assert min(filled) < 0.85 < max(filled)  # some lean, so that their corners leave room
  assert np.ptp(centres, axis=0).min() >= 2 and min(shapes) < 1.4 and max(shapes) > 1.6


def test_grey_leaves_no_colour(pixels):
  out = jittered(pixels, saturation=0.2, grey=1.0).reshape(-1, 3)
  np.testing.assert_allclose(np.ptp(out, axis=1), 0, atol=1e-5)
  assert np.ptp(jittered(pixels, saturation=0.2, grey=0.0).reshape(-1, 3), axis=1).min() > 0.001


def test_camera_without_strength_changes_nothing():
  frames, _ = square_clip()
  np.testing.assert_allclose(blur_and_light(jax.random.key(0), frames, blur=0.0, light=0.0), frames / 255, atol=1e-6)
  pixels = jnp.full((2, 3, 12), 0.4)
  np.testing.assert_array_equal(noise(jax.random.key(0), pixels, amount=0.0), pixels)


def test_blur_softens_edges_and_keeps_the_sum():
  frames, _ = square_clip()
  widths = []
  for key in range(12):
    seen = np.asarray(blur_and_light(jax.random.key(key), frames, blur=2.0, light=0.0))
    np.testing.assert_allclose(seen.sum(), frames.sum() / 255, rtol=1e-4)
    np.testing.assert_array_equal(seen[0], seen[1])
    widths.append(np.abs(np.diff(seen[0, 16, :, 0])).max())  # the steepest step: 1 for a sharp edge
  assert min(widths) < 0.3 and max(widths) > 0.8


def test_light_falls_from_one_side():
  frames = jnp.full((1, 32, 32, 3), 100, jnp.uint8)
  slopes = []
  for key in range(12):
    seen = np.asarray(blur_and_light(jax.random.key(key), frames, blur=0.0, light=0.3))[0, :, :, 0] / (100 / 255)
    np.testing.assert_allclose(np.diff(seen, 2, axis=0), 0, atol=1e-4)  # linear
    np.testing.assert_allclose(seen.mean(), 1, atol=1e-4)
    slopes.append([seen[16, -1] - seen[16, 0], seen[-1, 16] - seen[0, 16]])
  assert np.abs(slopes).max() <= 0.6 and np.ptp(slopes, axis=0).min() > 0.5


def test_noise_has_the_drawn_strength_and_differs_between_frames():
  pixels = jnp.full((2, 50, 192), 0.5)
  strengths = []
  for key in range(12):
    seen = np.asarray(noise(jax.random.key(key), pixels, amount=0.1)) - 0.5
    assert abs(seen.mean()) < 0.01 and not np.array_equal(seen[0], seen[1])
    strengths.append(seen.std())
  assert max(strengths) <= 0.101 and min(strengths) < 0.04 and max(strengths) > 0.06


def test_every_box_of_a_clip_is_moved_on_its_own():
  boxes = jnp.tile(jnp.array([0.3, 0.4, 0.5, 0.5]), (400, 1)).at[0].set(-1)
  seen = np.asarray(box_jitter(jax.random.key(0), boxes, amount=0.1))
  np.testing.assert_array_equal(seen[0], -1)
  corners = seen[1:].reshape(-1, 2, 2)
  np.testing.assert_allclose(corners.mean(axis=1).std(axis=0), [0.02, 0.01], rtol=0.15)
  np.testing.assert_allclose(np.log((corners[:, 1] - corners[:, 0]) / [0.2, 0.1]).std(axis=0), 0.1, rtol=0.15)
  np.testing.assert_allclose(box_jitter(jax.random.key(0), boxes, amount=0.0), boxes, atol=1e-6)


def test_left_and_right_change_places_in_a_mirrored_view():
  frames, boxes = square_clip()
  points = jnp.tile(jnp.linspace(0.1, 0.9, len(KEYPOINTS))[:, None], (2, 1, 2))
  seen = [crop_jitter(jax.random.key(k), frames, boxes, points, zoom=1.0, shift=0.0, mirror=0.5) for k in range(8)]
  mirrored = [at for clip, _, at in seen if not np.array_equal(clip, frames)]
  assert 1 <= len(mirrored) <= 7
  of = lambda points, name: points[0, KEYPOINTS.index(name)]
  for at in mirrored:
    for left, right in (("left_brow", "right_brow"), ("right_lid_upper", "left_lid_upper")):
      x, y = of(points, right)
      np.testing.assert_allclose(of(at, left), [1 - x, y], atol=1e-6)


def test_a_closer_look_and_its_mirror_image():
  frames, boxes = square_clip()
  closer = zoomed(frames, boxes, factor=1.25)
  for (seen, there), left in ((closer, True), (mirrored(*closer), False)):
    white = np.asarray(seen[0, :, :, 0]) > 127
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    np.testing.assert_allclose(found, 32 * np.asarray(there[0, 0]), atol=1.0)
    assert (found[0] < 10) == left
    np.testing.assert_array_equal(there[1], boxes[1])
  same, there = zoomed(frames, boxes, factor=1.0)
  np.testing.assert_array_equal(same, frames)
  np.testing.assert_allclose(there, boxes, atol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_mean_luma(dtype):
  frames = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 24, 3)).astype(dtype)
  expected = frames.astype(np.float64).mean(axis=(1, 2, 3)) @ [0.299, 0.587, 0.114]
  np.testing.assert_allclose(mean_luma(jnp.asarray(frames)), expected, rtol=1e-6)
