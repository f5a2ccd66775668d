import numpy as np
import pytest

from synclipmae_jax.probing.sampling import Sampling
from synclipmae_jax.types import InputError


def test_frames_are_the_middles_of_equal_parts():
  np.testing.assert_array_equal(Sampling(frames=4).rows(8), [1, 3, 5, 7])
  np.testing.assert_array_equal(Sampling(frames=3).rows(75), [12, 37, 62])
  assert len({*Sampling(frames=80).rows(80).tolist()}) == 80


@pytest.mark.parametrize("count", [1, 5, 15])
def test_a_clip_that_is_too_short_gives_its_frames_several_times_evenly(count):
  times = np.bincount(Sampling(frames=16).rows(count), minlength=count)
  assert times.sum() == 16 and times.max() - times.min() <= 1 and times.min() >= 1


def test_runs_of_neighbouring_frames_reach_from_the_first_to_the_last():
  rows = Sampling(protocol="clips", clips=3, clip_frames=4).rows(10).reshape(3, 4)
  np.testing.assert_array_equal(rows, [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]])
  short = Sampling(protocol="clips", clips=2, clip_frames=4).rows(2).reshape(2, 4)
  np.testing.assert_array_equal(short, [[0, 0, 1, 1]] * 2)
  np.testing.assert_array_equal(Sampling(protocol="all").rows(3), [0, 1, 2])


def test_rows_of_several_frames_are_taken_for_as_many_frames():
  np.testing.assert_array_equal(Sampling(frames=8, row_frames=2).rows(8), [1, 3, 5, 7])
  assert len(Sampling(frames=80, row_frames=16).rows(3)) == 5 and len(Sampling(frames=16, row_frames=64).rows(3)) == 1
  rows = Sampling(protocol="clips", clips=2, clip_frames=8, row_frames=2).rows(10)
  np.testing.assert_array_equal(rows, [0, 1, 2, 3, 6, 7, 8, 9])


@pytest.mark.parametrize("wrong", [dict(protocol="middle"), dict(frames=0), dict(clips=-1)])
def test_wrong_sizes_are_refused(wrong):
  with pytest.raises(InputError, match="probe"):
    Sampling(**wrong)
