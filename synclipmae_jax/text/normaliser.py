"""The spelling in which texts are learned, read and compared. Its version stands beside every word error rate."""

from __future__ import annotations

import unicodedata

# Raised with every change of `normalise`: tokenisers and tables of other versions do not compare.
VERSION = 1
_APOSTROPHES = dict.fromkeys(map(ord, "\u2018\u2019\u02bc\u2032`\u00b4"), "'")


def normalise(text: str) -> str:
  """Lower case, words of letters, digits and inner apostrophes, single spaces (version 1).

  Unicode is composed (NFKC). Any other character, a hyphen as well as a full stop, parts words; an apostrophe at an end
  of a word is a quotation mark and is dropped. Digits stay as they are written: how a number is spoken depends on the
  speaker, so corpora that spell numbers out and systems that write digits do not compare.
  """
  text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).lower()
  kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
  return " ".join(word for word in (word.strip("'") for word in kept.split()) if word)
