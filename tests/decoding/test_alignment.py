"""decoding/alignment.py against every path."""

import itertools

import numpy as np
import pytest

from synclipmae_jax.decoding.alignment import Alignment, align, word_times
from synclipmae_jax.types import InputError

VOCABULARY = 4


def log_probs(frames, seed):
  x = 2 * np.random.default_rng(seed).normal(size=(frames, VOCABULARY))
  return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


def runs(path):
  """(label, start, stop) of the stretches of one label."""
  found, start = [], 0
  for label, group in itertools.groupby(path):
    length = len(list(group))
    found.append((label, start, start + length))
    start += length
  return found


@pytest.mark.parametrize("text", [(), (1,), (1, 2), (2, 2), (1, 2, 1), (3, 3, 3), (1, 1, 2)])
@pytest.mark.parametrize("frames", [3, 5, 6])
def test_the_path_is_the_best_of_all(text, frames):
  emitted = log_probs(frames, seed=len(text) * 10 + frames)
  paths = [
    path for path in itertools.product(range(VOCABULARY), repeat=frames)
    if tuple(label for label, _ in itertools.groupby(path) if label) == text
  ]  # fmt: skip
  if not paths:
    with pytest.raises(InputError, match=f"needs .* frames, but there are {frames}"):
      align(emitted, text)
    return
  best = max(paths, key=lambda path: emitted[range(frames), path].sum())
  spans = [run for run in runs(best) if run[0]]
  got = align(emitted, text)
  assert got.score == pytest.approx(emitted[range(frames), best].sum())
  assert got.start.tolist() == [start for _, start, _ in spans]
  assert got.stop.tolist() == [stop for _, _, stop in spans]
  np.testing.assert_allclose(got.log_prob, [emitted[a:b, label].mean() for label, a, b in spans])


def test_no_frames_are_refused():
  with pytest.raises(InputError, match="needs 1 frames, but there are 0"):
    align(np.zeros((0, VOCABULARY)), [])


def test_words_take_up_to_the_margin_of_blanks_and_half_of_a_gap():
  alignment = Alignment(
    start=np.array([10, 12, 16, 50]), stop=np.array([11, 13, 17, 51]), log_prob=np.log([0.5, 0.5, 0.9, 0.2]), score=0.0
  )
  words = word_times(alignment, [("ab", 0, 2), ("c", 2, 3), ("d", 3, 4)], frames=53, margin=0.2)
  times = [(round(25 * word.start, 6), round(25 * word.end, 6)) for word in words]
  assert times == [(5, 14.5), (14.5, 22), (45, 53)]
  assert [word.text for word in words] == ["ab", "c", "d"]
  assert [word.confidence for word in words] == pytest.approx([0.5, 0.9, 0.2])
  assert word_times(alignment, [], frames=53) == []
