"""Properties of the resizing of positional tables. The comparison with torch is in tests/parity."""

import numpy as np
import pytest

from synclipmae_jax.models.position import bicubic_weights, resize_position, sincos_position


def test_the_same_grid_keeps_the_table():
  table = sincos_position(5, 8, rows_first=True)
  np.testing.assert_array_equal(resize_position(table, 5), table)


def test_weights_by_hand():
  """Doubling: centres are a quarter off the samples; Keys' cubic with a = -0.75 at 1.25, 0.25, 0.75, 1.75."""
  weights = bicubic_weights(4, 8)
  near, nearer, far, farther = 0.26171875, 0.87890625, -0.10546875, -0.03515625
  np.testing.assert_allclose(weights[3], [far, nearer, near, farther], atol=1e-15)
  np.testing.assert_allclose(weights[4], [farther, near, nearer, far], atol=1e-15)
  np.testing.assert_allclose(weights[0], [farther + near + nearer, far, 0, 0], atol=1e-15)  # the border is repeated
  # Halving: centres are midpoints; each has four samples, and the others have no weight.
  np.testing.assert_allclose(bicubic_weights(8, 4)[1], [0, -0.09375, 0.59375, 0.59375, -0.09375, 0, 0, 0], atol=1e-15)


@pytest.mark.parametrize(("old", "new"), [(64, 14), (14, 16), (7, 3), (2, 9)])
def test_a_constant_stays_constant_and_ramps_stay_monotonic(old, new):
  np.testing.assert_allclose(bicubic_weights(old, new).sum(axis=1), 1, atol=1e-13)
  rows, columns = np.divmod(np.arange(old * old), old)
  table = np.stack([np.full(old * old, 3.0), rows, columns], axis=1).astype(np.float32)
  square = resize_position(table, new).reshape(new, new, 3)
  assert square.dtype == np.float32
  np.testing.assert_allclose(square[..., 0], 3, atol=1e-6)
  np.testing.assert_allclose(square[..., 1], square[:, :1, 1].repeat(new, axis=1), atol=1e-5)
  np.testing.assert_allclose(square[..., 2], square[..., 1].T, atol=1e-5)
  assert np.all(np.diff(square[:, 0, 1]) > 0)


def test_a_table_that_is_not_square_is_refused():
  with pytest.raises(ValueError, match="12 rows"):
    resize_position(np.zeros((12, 4), np.float32), 2)
