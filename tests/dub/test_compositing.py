"""Paste-back: what stays bit for bit, where edges are soft, and that colours are given back."""

import numpy as np
import pytest

from synclipmae_jax.dub.compositing import feathered, match_colour, mouth_weight, paste
from synclipmae_jax.types import InputError

REGION = np.array([0.1, 0.5, 0.9, 0.95], np.float32)


def picture(seed=0, height=90, width=120):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
  "crop", [(20.0, 10.0, 64.0, 64.0), (20.37, 10.81, 63.2, 63.2), (0.0, 0.0, 90.0, 90.0), (33.3, 5.5, 30.1, 41.7)]
)
@pytest.mark.parametrize("size", [16, 64, 200])
def test_every_pixel_outside_of_the_mask_keeps_every_bit(crop, size):
  shown = picture()
  weight = mouth_weight(REGION, crop=crop, height=90, width=120)
  generated = np.random.default_rng(1).uniform(0, 255, (size, size, 3))
  out = paste(shown, generated, weight, crop=crop)
  changed = (out != shown).any(axis=-1)
  assert changed.any() and not changed[weight == 0].any()
  assert out.dtype == np.uint8 and (shown == picture()).all()
  x, y, across, side = crop
  rows, columns = np.nonzero(weight)
  assert (rows + 0.5 >= y + 0.5 * side - 1e-6).all() and (rows + 0.5 <= y + 0.95 * side + 1e-6).all()
  assert (columns + 0.5 >= x + 0.1 * across - 1e-6).all() and (columns + 0.5 <= x + 0.9 * across + 1e-6).all()


def test_what_was_cut_out_is_put_back_as_it_was():
  shown, crop = picture(), (20.0, 10.0, 64.0, 64.0)
  weight = mouth_weight(REGION, crop=crop, height=90, width=120)
  own = shown[10:74, 20:84].astype(np.float32)
  np.testing.assert_array_equal(paste(shown, own, weight, crop=crop), shown)
  flat = paste(shown, np.full((64, 64, 3), 77.0), weight, crop=crop)
  assert (flat[weight == 1] == 77).all()
  assert (paste(shown, own, np.zeros((90, 120), np.float32), crop=crop) == shown).all()


def test_it_lands_where_it_belongs_at_any_scale():
  """A ramp across the crop is the same ramp across its place in the picture."""
  crop, size = (20.37, 10.81, 63.2, 63.2), 128
  ramp = (np.arange(size) + 0.5) / size * 200
  generated = np.stack([np.tile(ramp, (size, 1)), np.tile(ramp[:, None], (1, size)), np.zeros((size, size))], -1)
  weight = mouth_weight(REGION, crop=crop, height=90, width=120, feather=0.0)
  out = paste(np.zeros((90, 120, 3), np.uint8), generated, weight, crop=crop)
  rows, columns = np.nonzero(weight == 1)
  np.testing.assert_allclose(out[rows, columns, 0], (columns + 0.5 - crop[0]) / crop[2] * 200, atol=1.0)
  np.testing.assert_allclose(out[rows, columns, 1], (rows + 0.5 - crop[1]) / crop[2] * 200, atol=1.0)


def test_the_weight_rises_inwards_only():
  mask = np.zeros((40, 40), bool)
  mask[20:, 10:30] = True  # down to the edge of the picture
  weight = feathered(mask, width=4)
  assert not weight[~mask].any() and weight[mask].min() == pytest.approx(0.2) and weight.max() == 1
  assert (np.diff(weight[20:25, 20]) > 0).all() and (weight[25:, 20] == 1).all()
  np.testing.assert_array_equal(weight, weight[:, ::-1])


def test_a_drift_of_colour_is_undone_and_right_colours_stay():
  rng = np.random.default_rng(0)
  source = rng.uniform(40, 200, (17, 24, 24, 3))
  kept = np.ones((24, 24), bool)
  kept[12:, 4:20] = False
  drifted = (source - 100) * [1.1, 0.9, 1.0] + 100 + [6, -4, 9]
  drifted[:, ~kept] += 5 * rng.standard_normal(drifted[:, ~kept].shape)
  undone = match_colour(drifted, source, kept)
  np.testing.assert_allclose(undone[:, kept], source[:, kept], atol=1e-3)
  assert np.abs(undone.mean((0, 1, 2)) - source.mean((0, 1, 2))).max() < 1  # also where it was not compared
  np.testing.assert_allclose(match_colour(source, source, kept), source, atol=1e-3)
  flat = match_colour(np.full_like(source, 90), source, kept)
  assert np.isfinite(flat).all()


def test_what_does_not_fit_is_refused():
  crop, shown = (20.0, 10.0, 64.0, 64.0), picture()
  weight = mouth_weight(REGION, crop=crop, height=90, width=120)
  with pytest.raises(InputError, match="beyond its crop"):
    paste(shown, np.zeros((8, 8, 3)), weight, crop=(40.0, 10.0, 30.0, 30.0))
  with pytest.raises(InputError, match="leaves its crop"):
    mouth_weight(REGION + 0.2, crop=crop, height=90, width=120)
  with pytest.raises(InputError, match="no pixel"):
    mouth_weight(REGION, crop=(200.0, 10.0, 64.0, 64.0), height=90, width=120)
  video = np.zeros((2, 8, 8, 3))
  for kept in (np.zeros((8, 8), bool), np.ones((9, 9), bool)):
    with pytest.raises(InputError, match="colours are matched"):
      match_colour(video, video, kept)
