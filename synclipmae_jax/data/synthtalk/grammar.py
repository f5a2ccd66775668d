"""A closed grammar like that of GRID, and the score of a clip: its phones with their times."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from synclipmae_jax.data.synthtalk import phones
from synclipmae_jax.data.synthtalk.tracks import smooth
from synclipmae_jax.types import Segment

# Diphthongs are written as two vowels, because the mouth moves from one to the other.
SLOTS = (
  {"bin": "b ih n", "lay": "l eh iy", "place": "p l eh iy s", "set": "s eh t"},
  {"blue": "b l uw", "green": "g r iy n", "red": "r eh d", "white": "w aa iy t"},
  {"at": "ae t", "by": "b aa iy", "in": "ih n", "with": "w ih dh"},
  {"a": "eh iy", "b": "b iy", "f": "eh f", "l": "eh l", "m": "eh m", "o": "ao uw", "p": "p iy", "r": "aa r",
   "s": "eh s", "u": "y uw"},
  {"zero": "z ih r ao uw", "one": "w ah n", "two": "t uw", "three": "th r iy", "four": "f ao r", "five": "f aa iy v",
   "six": "s ih k s", "seven": "s eh v ah n", "eight": "eh iy t", "nine": "n aa iy n"},
  {"again": "ah g eh n", "now": "n aa uw", "please": "p l iy z", "soon": "s uw n"},
)  # fmt: skip
PRONUNCIATION = {word: spelled.split() for slot in SLOTS for word, spelled in slot.items()}
SENTENCE_WORDS = len(SLOTS)
_SHORTEST_PAUSE = 0.1  # seconds
_FASTEST, _SLOWEST = 0.8, 1.25  # factors on the duration of a phone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
  """Phone `phones[k]` lasts from `starts[k]` to `starts[k + 1]` seconds. There is silence around every sentence."""

  text: str
  phones: np.ndarray  # int [k]
  starts: np.ndarray  # float [k], starts[0] = -inf

  def at(self, times: np.ndarray) -> np.ndarray:
    """Index into `phones` for each time."""
    return np.searchsorted(self.starts, times, side="right") - 1

  @property
  def words(self) -> list[Segment]:
    """The words of the text with their start and end in seconds."""
    spoken = iter(np.flatnonzero(self.phones != phones.SILENCE))
    found = []
    for word in self.text.split():
      sounds = [next(spoken) for _ in PRONUNCIATION[word]]
      start, end = self.starts[[sounds[0], sounds[-1] + 1]]  # a pause follows every sentence
      found.append(Segment(round(float(start), 4), round(float(end), 4), word))
    return found


def held_out(sentence: str) -> bool:
  """Whether a sentence belongs to the test split. One sentence in five does; these are never used in training."""
  return hashlib.sha256(sentence.encode()).digest()[0] % 5 == 0


def sentence(rng: np.random.Generator, *, test: bool) -> list[str]:
  """The words of a random sentence of the test split (`test`) or of the training split."""
  while True:
    words = [list(slot)[rng.integers(len(slot))] for slot in SLOTS]
    if held_out(" ".join(words)) == test:
      return words


def compose(rng: np.random.Generator, *, seconds: float, test: bool) -> Score:
  """As many whole sentences as fit into `seconds` at natural speed. Pauses of random length fill the remaining time."""
  speaking = seconds * rng.uniform(0.72, 0.86)
  spoken: list[tuple[list[str], np.ndarray, np.ndarray]] = []
  total = 0.0
  while True:
    words = sentence(rng, test=test)
    ids = np.array([phones.NAMES.index(name) for word in words for name in PRONUNCIATION[word]])
    lengths = phones.column("duration")[ids] * np.exp(rng.normal(0, 0.18, len(ids)))
    if spoken and total + lengths.sum() * _FASTEST > speaking:
      break
    total += lengths.sum()
    spoken.append((words, ids, lengths))

  pace = min(_SLOWEST, speaking / total)
  free = seconds - total * pace - _SHORTEST_PAUSE * (len(spoken) + 1)
  pauses = _SHORTEST_PAUSE + max(free, 0) * rng.dirichlet(np.full(len(spoken) + 1, 2.0))
  sequence, durations = [phones.SILENCE], [pauses[0]]
  for pause, (_, ids, lengths) in zip(pauses[1:], spoken, strict=True):
    sequence += [*ids, phones.SILENCE]
    durations += [*lengths * pace, pause]
  starts = np.concatenate([[-np.inf], np.cumsum(durations)[:-1]])
  text = " ".join(word for words, _, _ in spoken for word in words)
  return Score(text=text, phones=np.array(sequence), starts=starts)


def trajectory(score: Score, columns: tuple[str, ...], times: np.ndarray, *, blur: float) -> np.ndarray:
  """[len(times), columns]: the phone table along the score, coarticulated by a Gaussian of `blur` seconds.

  `times` must be evenly spaced and extend about three `blur` beyond the used interval, because the blur at the ends has
  fewer neighbours.
  """
  where = score.at(times)
  steps = phones.TABLE[score.phones[where]][:, [phones.COLUMNS.index(name) for name in columns]]
  return smooth(steps, blur / (times[1] - times[0]))
