"""text/grammar.py: the sentences of a closed corpus, and what is none of them."""

import itertools

from synclipmae_jax.text.grammar import MOST, Grammar

SENTENCES = [" ".join(words) for words in itertools.product(["bin", "lay"], ["blue", "red"], ["now", "soon"])]


def test_a_closed_corpus_has_places():
  grammar = Grammar.of([*SENTENCES, *SENTENCES, ""])
  assert grammar is not None and len(grammar.words) == 6 and len(grammar.places) == 3
  assert Grammar.from_dict(grammar.to_dict()) == grammar
  assert grammar.complaint("Bin red soon!") == ""
  assert grammar.complaint("bin read soon") == "not among its words: read"
  assert grammar.complaint("bin red") == "not one of its sentences, which have 3 words"
  assert grammar.complaint("red bin soon") == "not one of its sentences"


def test_sentences_of_several_lengths_have_words_only():
  grammar = Grammar.of([*SENTENCES, *SENTENCES, "bin now"])
  assert grammar is not None and grammar.places == () and grammar.complaint("soon bin") == ""


def test_an_open_corpus_has_none():
  assert Grammar.of([]) is None and Grammar.of(["all words differ here"]) is None
  assert Grammar.of([f"w{number} w" for number in range(MOST + 1)] * 4) is None
