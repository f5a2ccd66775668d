"""Rendered swaps: framed as prepared clips are, and changed only where something is swapped."""

import numpy as np
import pytest

from synclipmae_jax.data.pipeline import eval_clips
from synclipmae_jax.data.prepare import prepare
from synclipmae_jax.data.synthtalk import swaps
from synclipmae_jax.data.synthtalk.clip import make_clip
from synclipmae_jax.data.synthtalk.corpus import write_corpus

SEED, FRAMES = 0, 5


@pytest.fixture(scope="module")
def made():
  return next(iter(swaps.render_swaps(1, frames=FRAMES, image_size=64, seed=SEED)))


def test_the_framing_is_that_of_a_prepared_clip(made, tmp_path):
  raw, out = tmp_path / "raw", tmp_path / "out"
  write_corpus(raw, clips={"test": 1}, seconds=swaps.SECONDS, size=swaps.SIZE, seed=SEED, workers=1, progress=False)
  prepare(raw, out, corpus="synthtalk", faces="precomputed", size=64, progress=False, workers=1)
  (clip,) = eval_clips(out, split="test", image_size=64)
  rows = np.linspace(0, len(clip.frames) - 1, FRAMES).round().astype(int)
  np.testing.assert_allclose(made.identity_of.face_box, clip.face_box[rows], atol=1e-3)
  np.testing.assert_allclose(made.identity_of.mouth_box, clip.mouth_box[rows], atol=1e-3)
  hidden = (make_clip(0, seed=SEED, split="test", seconds=swaps.SECONDS).occluder[:, 1] < 2).any()
  error = np.abs(made.identity_of.frames.astype(float) - clip.frames[rows])
  assert not hidden and error.mean() < 4  # of 255: it was compressed twice


def test_a_swap_changes_its_part_and_leaves_the_rest(made):
  own, true = made.identity_of, made.true
  assert own.frames.shape == (FRAMES, 64, 64, 3) and own.frames.dtype == np.uint8
  # The joint clip has the boxes of its own face: with the mouth alone swapped the upper edge and the sides stay.
  corner = lambda shot: shot.face_box[:, :2] / (shot.face_box[:, 2:3] - shot.face_box[:, :1])
  turned = np.abs(corner(true["ambient"]) - corner(own)).max()
  assert turned > 3 * np.abs(corner(true["mouth"]) - corner(own)).max()
  for name in ("mouth", "ambient", "both"):
    assert np.abs(true[name].frames.astype(int) - own.frames).mean() > 1
  skin = lambda shot: np.stack([
    frame[int(64 * (y0 + y1) / 2), int(64 * (x0 + x1) / 2)]
    for frame, (x0, y0, x1, y1) in zip(shot.frames, shot.face_box, strict=True)
  ]).astype(float).mean(0)  # fmt: skip
  ratio = lambda colour: colour / colour.sum()
  away = lambda shot: np.abs(ratio(skin(shot)) - ratio(skin(own))).max()
  assert away(true["both"]) < 0.03  # it is the face of the first person
