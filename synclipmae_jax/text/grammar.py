"""What a recogniser of a closed corpus can say at all: its words and, of sentences of one length, the words of each
place. Whoever reads something else with it gets some of these words all the same; this is how they are told."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from synclipmae_jax.text.normaliser import normalise

MOST = 500  # words of a corpus that counts as closed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grammar:
  """All words of a closed corpus; `places` are those of each place, () where its sentences differ in length."""

  words: frozenset[str]
  places: tuple[frozenset[str], ...] = ()

  @classmethod
  def of(cls, texts: Iterable[str]) -> Grammar | None:
    """The grammar of the transcripts; None where they have more than `MOST` words, or fewer texts than words."""
    sentences = [sentence for sentence in (normalise(text).split() for text in texts) if sentence]
    words = frozenset(word for sentence in sentences for word in sentence)
    if not words or len(words) > MOST or len(sentences) < 2 * len(words):
      return None
    alike = len({len(sentence) for sentence in sentences}) == 1
    return cls(words=words, places=tuple(map(frozenset, zip(*sentences, strict=True))) if alike else ())

  def complaint(self, text: str) -> str:
    """Why a text is none of this grammar; "" if it is one."""
    sentence = normalise(text).split()
    if unknown := sorted({word for word in sentence if word not in self.words}):
      return f"not among its words: {', '.join(unknown)}"
    if self.places and len(sentence) != len(self.places):
      return f"not one of its sentences, which have {len(self.places)} words"
    if any(word not in place for word, place in zip(sentence, self.places, strict=False)):
      return "not one of its sentences"
    return ""

  def to_dict(self) -> dict[str, Any]:
    """JSON of this grammar."""
    return {"words": sorted(self.words), "places": [sorted(place) for place in self.places]}

  @classmethod
  def from_dict(cls, stored: Mapping[str, Sequence[Any]]) -> Grammar:
    """The grammar that `to_dict` wrote."""
    return cls(words=frozenset(stored["words"]), places=tuple(map(frozenset, stored["places"])))
