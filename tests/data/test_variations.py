"""data/variations.py: what a varied clip shows is what its text says."""

import itertools

import numpy as np
import pytest

from synclipmae_jax.data.variations import Variation, spliced, trimmed, vary, warped
from synclipmae_jax.types import FPS, InputError, Segment

# Every word has a number of its own, which stands in all of its frames; silence is 0.
SENTENCES = [(1, 2, 3), (4, 5, 6), (7, 8, 9)]


def clip(numbers, *, silence=6, frames=4):
  tokens, words = [0.0] * silence, []
  for number in numbers:
    words.append(Segment(len(tokens) / FPS, (len(tokens) + frames) / FPS, str(number)))
    tokens += [float(number)] * frames
  return np.array(tokens + [0.0] * silence, np.float32)[:, None], words


def encode(text):
  return [int(word) for word in text.split()]


def said(tokens):
  """The numbers in the order in which they are seen, each for more than one frame: between two of them lie others."""
  values = tokens[:, 0]
  whole = [round(float(x)) for x, next_x in itertools.pairwise(values) if abs(x - next_x) < 1e-3]
  return [number for number, _ in itertools.groupby(whole) if number]


def test_spliced_words_lie_where_they_are_seen():
  ours, theirs = clip(SENTENCES[0]), clip(SENTENCES[1], silence=3, frames=7)
  tokens, words = spliced(*ours, *theirs, first=1, last=2)
  assert said(tokens) == [1, 5, 3] and [word.label for word in words] == ["1", "5", "3"]
  for word in words:
    inside = tokens[round(word.start * FPS) : round(word.end * FPS), 0]
    assert (inside == float(word.label)).all()
  assert len(tokens) == len(ours[0]) + 3


@pytest.mark.parametrize("seed", range(40))
def test_a_varied_clip_says_its_text_and_fits(seed):
  rng = np.random.default_rng(seed)
  own, other = clip(SENTENCES[0]), clip(SENTENCES[1 + seed % 2], silence=8, frames=5)
  found = vary(*own, other, Variation(encode=encode, warp=1.2, splice=1.0), frames=26, rng=rng)
  assert found is not None
  tokens, words, ids = found
  assert len(tokens) <= 26
  for word in words:  # the middle of a word is seen when it is said
    assert abs(tokens[int((word.start + word.end) / 2 * FPS), 0] - float(word.label)) < 1e-3
  assert said(tokens) == (list(SENTENCES[0]) if ids is None else ids)


def test_without_times_of_words_only_the_speed_changes():
  tokens, _ = clip(SENTENCES[0])
  found, _, ids = vary(tokens, [], None, Variation(encode=encode, warp=1.3), frames=25, rng=np.random.default_rng(0))
  assert ids is None and len(found) <= 25 and said(found) == [1, 2, 3]
  other = clip((4, 5))  # another number of words
  assert vary(*clip(SENTENCES[0]), other, Variation(encode=encode, splice=1.0), frames=30,
              rng=np.random.default_rng(1))[2] is None  # fmt: skip


def test_what_does_not_fit_is_left_alone():
  tokens, words = clip(SENTENCES[0], silence=0, frames=10)
  assert trimmed(tokens, words, frames=20, rng=np.random.default_rng(0)) is None
  assert vary(tokens, words, None, Variation(encode=encode), frames=20, rng=np.random.default_rng(0)) is None
  np.testing.assert_array_equal(warped(tokens, 1.0), tokens)
  for wrong in (dict(warp=0.9), dict(splice=1.1)):
    with pytest.raises(InputError, match=r"data\.warp is at least 1"):
      Variation(encode=encode, **wrong)
