"""Lengths that differ, and tokens at the times of the pictures."""

from fractions import Fraction

import numpy as np
import pytest

from synclipmae_jax.dub.script import at_pictures, schedule
from synclipmae_jax.types import InputError

TICKS, STEP, BASE = np.arange(10) * 400 + 7, 400, Fraction(1, 10_000)  # ten pictures, 25 a second


def fitted(speech, fit):
  return schedule(TICKS, STEP, BASE, speech=speech, fit=fit)


def test_equal_lengths_need_nothing():
  for fit in ("pad", "trim", "loop"):
    plan = fitted(0.4, fit)
    assert plan.order.tolist() == list(range(10)) and (plan.ticks == TICKS).all() and plan.note == ""


def test_pad_keeps_the_video():
  for speech, word in ((0.2, "silence"), (0.8, "left out")):
    plan = fitted(speech, "pad")
    assert len(plan.order) == 10 and plan.seconds == pytest.approx(0.4) and word in plan.note


def test_trim_and_loop_end_with_the_speech():
  for fit in ("trim", "loop"):
    plan = fitted(0.2, fit)
    assert plan.order.tolist() == [0, 1, 2, 3, 4] and plan.seconds == 0.2 and "5 of 10 pictures" in plan.note
  assert len(fitted(0.8, "trim").order) == 10
  plan = fitted(0.8, "loop")
  assert plan.order.tolist() == [*range(10), *range(8, -1, -1), 1] and (np.diff(plan.ticks) == STEP).all()
  with pytest.raises(InputError, match="unknown fit"):
    fitted(0.8, "stretch")


def test_a_video_to_and_fro_keeps_its_uneven_gaps():
  uneven = schedule(np.array([0, 100, 400]), 100, Fraction(1, 1000), speech=1.3, fit="loop")
  assert uneven.order.tolist() == [0, 1, 2, 1, 0, 1, 2]
  assert np.diff(uneven.ticks).tolist() == [100, 300, 300, 100, 100, 300]


def test_tokens_are_those_of_the_moment():
  tokens = np.arange(5, dtype=np.float32)[:, None]
  np.testing.assert_array_equal(at_pictures(tokens, np.arange(5) / 25)[:, 0], np.arange(5))
  np.testing.assert_allclose(at_pictures(tokens, np.array([0.02, 0.0601, 9.0]))[:, 0], [0.5, 1.5025, 4], atol=1e-4)
