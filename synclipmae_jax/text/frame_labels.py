"""Where the times of words are known: the token that each frame shows, as a path of CTC.

The letters of a word share its frames evenly. That is cruder than any alignment, but a network that is told when a word
is said need not find out by itself, as CTC must.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from synclipmae_jax.text.tokenisers import BLANK, SPACE, Tokeniser
from synclipmae_jax.types import FPS, InputError, Segment

UNKNOWN = -1  # of a frame of which nothing is known


def frame_labels(tokeniser: Tokeniser, words: Sequence[Segment], frames: int) -> np.ndarray:
  """int32 [frames]: a token for every frame, blank where nobody speaks, UNKNOWN without times of words.

  Between equal letters lies a blank. A space, where the tokeniser has one, is shown in the last frame of a word. The
  frames of a word that has fewer of them than it needs are UNKNOWN.
  """
  if not words:
    return np.full(frames, UNKNOWN, np.int32)
  labels = np.full(frames, BLANK, np.int32)
  space = tokeniser.symbols.index(SPACE) + 1 if SPACE in tokeniser.symbols else None
  for number, word in enumerate(words):
    start, stop = (min(max(round(time * FPS), 0), frames) for time in (word.start, word.end))
    shown = _parted(_ids(tokeniser, word.label))
    last = space is not None and number + 1 < len(words)
    room = stop - start - last
    if not shown or room < len(shown):
      labels[start:stop] = UNKNOWN
      continue
    labels[start : start + room] = np.array(shown)[np.arange(room) * len(shown) // room]
    if last:
      labels[stop - 1] = space
  return labels


def _ids(tokeniser: Tokeniser, text: str) -> list[int]:
  try:
    return tokeniser.encode(text)
  except InputError:
    return []


def _parted(ids: Sequence[int]) -> list[int]:
  """The ids with a blank between equal ones."""
  found: list[int] = []
  for i in ids:
    found += [BLANK, i] if found and found[-1] == i else [i]
  return found
