"""The references of the factor matrix: components of the bare picture, and a network that is told the truth."""

import numpy as np

from synclipmae_jax.baselines.bare_picture import SIZE, fit_components, shrink
from synclipmae_jax.baselines.factor_network import fit_factor_network


def squares(count, *, size=32, seed=0):
  """Pictures of a bright square on grey, and where it is: [n, 2] in 0..1."""
  rng = np.random.default_rng(seed)
  at = rng.uniform(0, 1, (count, 2))
  frames = np.full((count, size, size, 3), 90, np.uint8)
  for frame, (x, y) in zip(frames, at, strict=True):
    left, top = int(x * 0.75 * size), int(y * 0.75 * size)
    frame[top : top + size // 4, left : left + size // 4] = 220
  return frames, at


def test_shrinking_keeps_the_mean_and_the_place():
  frames = np.zeros((1, 64, 64, 3), np.uint8)
  frames[0, 10:12, 20:22, 1] = 255
  small = shrink(frames)
  assert small.shape == (1, SIZE, SIZE, 3) and np.isclose(small[0, 5, 10, 1], 1) and np.isclose(small.sum(), 1)


def test_components_are_those_of_the_covariance():
  frames = squares(50)[0]
  components = fit_components(frames, 6)
  pictures = shrink(frames).reshape(50, -1).astype(np.float64)
  values = np.linalg.svd(pictures - pictures.mean(0), compute_uv=False)[:6] ** 2 / 50
  found = components(frames)
  np.testing.assert_allclose(np.cov(found.T, bias=True), np.diag(values), atol=1e-3 * values[0])
  assert fit_components(frames[:4], 6).directions.shape == (SIZE * SIZE * 3, 3)  # four pictures span no more


def test_the_network_reads_what_it_was_told():
  """Moving a picture in training blurs where a square is by a pixel or two of the 32."""
  (frames, at), (others, where) = squares(300), squares(40, seed=1)
  predict = fit_factor_network(frames, at, ("x", "y"), steps=30)
  assert np.square(predict(others) - where).mean() < 0.5 * where.var()
