"""Words of the grammar that look alike, and the word error rate that they leave to the best reader of lips.

Phones look alike where no visible column of their table differs by more than `ALIKE`, or through others that do so
(p, b and m; f and v; s and z; ...). Words look alike where their phones do, one by one. Of words that look alike in one
place of a sentence, all equally likely, a reader can do no better than always to write one: with g groups among n words
it is wrong in 1 - g / n of the cases. The floor is the mean over the places. The lengths of phones, which differ a
little between p and b but vary by a fifth, are not counted as visible; nor are the limits of pixels and frames.
"""

from __future__ import annotations

import numpy as np

from synclipmae_jax.data.synthtalk import grammar, phones

ALIKE = 0.1  # of the columns of `phones.MOUTH`, most of which go from 0 to 1


def visemes() -> np.ndarray:
  """int [phones]: the number of the class of each phone."""
  seen = np.stack([phones.column(name) for name in phones.MOUTH], axis=1)
  alike = np.abs(seen[:, None] - seen).max(axis=-1) <= ALIKE + 1e-9
  for _ in range(len(alike).bit_length()):  # phones that look alike through others
    alike = alike @ alike
  return alike.argmax(axis=1)


def groups() -> list[list[list[str]]]:
  """For every place of a sentence its words, in groups that look alike."""
  classes = visemes()

  def look(word: str) -> tuple[int, ...]:
    return tuple(int(classes[phones.NAMES.index(name)]) for name in grammar.PRONUNCIATION[word])

  found = []
  for slot in grammar.SLOTS:
    of_look: dict[tuple[int, ...], list[str]] = {}
    for word in slot:
      of_look.setdefault(look(word), []).append(word)
    found.append(list(of_look.values()))
  return found


def floor() -> float:
  """The word error rate that homophenes leave, a fraction."""
  return float(np.mean([1 - len(place) / sum(map(len, place)) for place in groups()]))
