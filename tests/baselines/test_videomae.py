"""Masks, windows and features of VideoMAE and MARLIN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synclipmae_jax.baselines.tube_masking import BACKGROUND, SKIN, fasking_order, regions, tube_order
from synclipmae_jax.baselines.videomae import VideoEncoder, VideoFeatures, cut_tubes, window_rows
from synclipmae_jax.baselines.windows import square_pictures
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.types import InputError

SIZES = dict(image_size=32, frames=4, patch=8, width=16, depth=1, heads=2, mlp_width=32)
FACE = jnp.tile(jnp.array([0.2, 0.2, 0.8, 0.9]), (1, 4, 1))
UNKNOWN = jnp.full((1, 4, 4), -1.0)


@pytest.fixture(scope="module")
def module():
  return Functional(lambda rngs: VideoEncoder(**SIZES, rngs=rngs))


def random_frames(count, size=32, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_tubes_are_cut_by_time_row_and_column():
  frames = np.arange(4 * 16 * 16 * 3).reshape(1, 4, 16, 16, 3)
  tubes = np.asarray(cut_tubes(jnp.asarray(frames), 8))
  assert tubes.shape == (1, 8, 2 * 8 * 8 * 3)
  np.testing.assert_array_equal(tubes[0, 4 + 2 * 1 + 0].reshape(2, 8, 8, 3), frames[0, 2:4, 8:, :8])


def test_regions_of_a_face():
  found = np.asarray(regions(FACE, UNKNOWN, grid=20))[0].reshape(20, 20)
  assert (found[0] == BACKGROUND).all() and found[6, 4] == SKIN  # beside the face; the cheek beside the mouth below
  eyes, nose, mouth = found[4:9, 5:9], found[10:12, 9:11], found[14:17, 8:12]
  assert [set(np.unique(part)) for part in (eyes[:, 1:], nose, mouth)] == [{2}, {4}, {5}]


def test_fasking_masks_the_face_first():
  """Few tubes are of the background; when they do not suffice skin is seen too, and no part of the face yet."""
  keys = jax.random.split(jax.random.key(0), 64)
  boxes = jnp.repeat(FACE, 64, axis=0), jnp.repeat(UNKNOWN, 64, axis=0)
  region = np.asarray(regions(FACE, UNKNOWN, grid=12))[0]
  for visible, kept in ((15, {BACKGROUND}), ((region == BACKGROUND).sum() + 5, {BACKGROUND, SKIN})):
    order = np.asarray(fasking_order(keys, *boxes, grid=12, visible=int(visible)))
    assert (np.sort(order) == np.arange(144)).all()
    seen = order[:, :visible]
    assert set(region[seen].ravel()) == kept
    assert len(np.unique(seen)) == np.isin(region, list(kept)).sum()  # each of them in some of the clips
  beyond = (region <= SKIN).sum() + 1  # one tube of a part is needed: of another part in every clip
  seen = region[np.asarray(fasking_order(keys, *boxes, grid=12, visible=int(beyond)))[:, :beyond]]
  assert all(len(set(row) - {BACKGROUND, SKIN}) <= 1 for row in seen) and set(seen.ravel()) == {0, 1, 2, 3, 4, 5}


def test_masks_differ_between_clips():
  order = np.asarray(tube_order(jax.random.split(jax.random.key(0), 8), 144))
  assert (np.sort(order) == np.arange(144)).all() and len({tuple(row[:15]) for row in order}) == 8


@pytest.mark.parametrize(
  ("total", "stride", "wanted"),
  [
    (8, 1, [[0, 1, 2, 3], [4, 5, 6, 7]]),
    (6, 1, [[0, 1, 2, 3], [2, 3, 4, 5]]),
    (8, 2, [[0, 2, 4, 6]]),
    (7, 4, [[0, 1, 2, 3], [3, 4, 5, 6]]),
    (3, 2, [[0, 1, 2, 2]]),
  ],
)
def test_windows(total, stride, wanted):
  """Whole, overlapping at the end, with a stride, with a stride that does not fit, shorter than a window."""
  np.testing.assert_array_equal(window_rows(total, 4, stride), wanted)


def test_features_of_windows_and_of_pairs_of_frames(module):
  params = module.init(jax.random.key(0))
  frames = random_frames(10)
  clip, pair = (VideoFeatures(module, params, pool=pool, chunk=2) for pool in ("clip", "pair"))
  found = clip.embed(frames)
  assert found.shape == (3, 16) and pair.embed(frames).shape == (6, 16)
  np.testing.assert_allclose(found[1], clip.embed(frames[4:8])[0], atol=1e-5)  # a window sees no other
  changed = frames.copy()
  changed[2:4] = 0
  differs = np.abs(pair.embed(changed) - pair.embed(frames)).max(axis=1) > 1e-4
  assert differs.tolist() == [True, True, False, False, False, False]  # both pairs attend to each other
  with pytest.raises(InputError, match="pool is one of clip, pair"):
    VideoFeatures(module, params, pool="max")
  with pytest.raises(InputError, match="frames must be uint8"):
    clip.embed(frames[:0])


def test_features_of_the_face(module):
  """Nothing beyond the square around the face counts, and the square is black beyond the picture."""
  params = module.init(jax.random.key(0))
  frames = random_frames(4, size=64)
  box = np.tile(np.float32([0.25, 0.4, 0.5, 0.7]), (4, 1))
  model = VideoFeatures(module, params, face=True)
  outside = frames.copy()
  outside[:, :, 45:] = 0
  np.testing.assert_array_equal(model.embed(outside, box), model.embed(frames, box))
  assert np.abs(model.embed(frames, box + 0.1) - model.embed(frames, box)).max() > 1e-3
  pictures = square_pictures(frames, np.float32([[0, 0, 0.5, 0.5]]), size=32, margins=(0.5, 0.5))
  assert not pictures[:, :7].any() and not pictures[:, :, :7].any() and pictures[:, 9:, 9:].any(axis=(1, 2, 3)).all()
  with pytest.raises(InputError, match="boxes are needed"):
    model.embed(frames)
