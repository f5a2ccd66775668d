"""Planning of segments."""

import numpy as np
import pytest

from synclipmae_jax.dub.segments import SEGMENT, plan
from synclipmae_jax.types import InputError


@pytest.mark.parametrize("frames", [1, 16, 17, 18, 34, 1500])
def test_every_frame_is_generated_once_after_the_one_before(frames):
  segments = plan(np.ones(frames, bool))
  assert [frame for each in segments for frame in range(each.start, each.stop)] == list(range(frames))
  assert all(each.stop - each.start == SEGMENT for each in segments[:-1])
  assert [each.history for each in segments] == [None, *(each.stop - 1 for each in segments[:-1])]
  assert {each.first for each in segments} == {0}


def test_frames_without_a_face_and_cuts_begin_anew():
  rng = np.random.default_rng(0)
  for _ in range(50):
    face = rng.random(120) < 0.9
    face[40:45], face[0] = False, True
    cuts = sorted(rng.choice(120, 3, replace=False).tolist())
    segments = plan(face, cuts=cuts)
    covered = [frame for each in segments for frame in range(each.start, each.stop)]
    assert covered == np.flatnonzero(face).tolist()
    for each in segments:
      assert 0 < each.stop - each.start <= SEGMENT
      assert not set(cuts) & set(range(each.first + 1, each.stop))
      assert face[each.first : each.stop].all()
      fresh = each.start == 0 or not face[each.start - 1] or each.start in cuts
      assert (each.history is None) == fresh == (each.first == each.start)


def test_a_short_segment_is_filled_and_cut_back():
  rows = np.arange(40)[:, None]
  last = plan(np.ones(20, bool))[-1]
  assert last.take(rows)[:, 0].tolist() == [17, 18, *[19] * 15]
  assert last.give(last.take(rows))[:, 0].tolist() == [17, 18, 19]


def test_a_video_without_a_face_is_refused():
  with pytest.raises(InputError, match="no face"):
    plan(np.zeros(30, bool))
