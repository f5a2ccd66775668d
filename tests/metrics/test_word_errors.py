"""metrics/word_errors.py against enumeration and jiwer."""

import functools

import numpy as np
import pytest

from synclipmae_jax.metrics.word_errors import Edits, ErrorState, edits, merged

WORDS = ("a", "b", "c")


def random_texts(count, longest, seed=0):
  draw = np.random.default_rng(seed)
  text = lambda shortest: " ".join(draw.choice(WORDS, draw.integers(shortest, longest + 1)))
  return [(text(1), text(0)) for _ in range(count)]


def all_edits(reference, hypothesis):
  """The counts (hits, S, D, I) of every alignment."""

  @functools.cache
  def walk(i, j):
    if i == len(reference) and j == len(hypothesis):
      return {(0, 0, 0, 0)}
    found = set()
    if i < len(reference) and j < len(hypothesis):
      step = (1, 0, 0, 0) if reference[i] == hypothesis[j] else (0, 1, 0, 0)
      found |= {tuple(np.add(step, rest)) for rest in walk(i + 1, j + 1)}
    if i < len(reference):
      found |= {tuple(np.add((0, 0, 1, 0), rest)) for rest in walk(i + 1, j)}
    if j < len(hypothesis):
      found |= {tuple(np.add((0, 0, 0, 1), rest)) for rest in walk(i, j + 1)}
    return found

  return walk(0, 0)


def test_edits_are_the_fewest_and_of_these_have_the_most_hits():
  for reference, hypothesis in random_texts(60, 4):
    r, h = reference.split(), hypothesis.split()
    best = min(all_edits(tuple(r), tuple(h)), key=lambda e: (sum(e[1:]), -e[0]))
    got = edits(r, h)
    assert (got.hits, got.substitutions, got.deletions, got.insertions) == best
    assert got.length == len(r)


def test_rates_are_those_of_jiwer():
  jiwer = pytest.importorskip("jiwer")
  pairs = random_texts(80, 12, seed=1)
  state = merged(ErrorState.of(str(i), *pair) for i, pair in enumerate(pairs))
  references, hypotheses = zip(*pairs, strict=True)
  theirs, rates = jiwer.process_words(list(references), list(hypotheses)), state.compute()
  assert rates.wer.value == pytest.approx(theirs.wer, abs=1e-12)
  assert rates.cer.value == pytest.approx(jiwer.cer(list(references), list(hypotheses)), abs=1e-12)
  assert rates.words.errors == theirs.substitutions + theirs.deletions + theirs.insertions
  assert rates.words.insertions - rates.words.deletions == theirs.insertions - theirs.deletions
  for utterance, pair in zip(state.utterances, pairs, strict=True):
    assert utterance.words.errors == round(jiwer.wer(*pair) * utterance.words.length)


def test_states_merge_exactly_in_any_order_and_are_grouped():
  states = [
    ErrorState.of(str(i), *pair, corpus="xy"[i % 2], label_source="human" if i % 4 else "asr")
    for i, pair in enumerate(random_texts(20, 6))
  ]
  assert merged(states).compute() == merged(states[::-1]).compute()
  assert merged(states[:7]).merge(merged(states[7:])).compute() == merged(states).compute()
  groups = merged(states).by_corpus()
  assert list(groups) == [("x", "asr"), ("x", "human"), ("y", "human")]
  assert sum((group.compute().words for group in groups.values()), Edits()) == merged(states).compute().words


def test_intervals_cover_the_rate_of_the_population():
  draw = np.random.default_rng(0)
  covered = []
  for _ in range(60):
    pairs = []
    for _ in range(40):
      reference = ["a"] * int(draw.integers(1, 8))
      pairs.append((" ".join(reference), " ".join("b" if draw.random() < 0.3 else "a" for _ in reference)))
    wer = merged(ErrorState.of(str(i), *pair) for i, pair in enumerate(pairs)).compute().wer
    covered.append(wer.low <= 0.3 <= wer.high)
  assert np.mean(covered) > 0.85


def test_edges():
  silent = ErrorState.of("a", "", "some words").merge(ErrorState.of("b", "two words", "two words"))
  rates = silent.compute()
  assert rates.wer.value == pytest.approx(1.0) and rates.words.insertions == 2 and rates.correct == 0.5
  assert np.isnan(ErrorState.of("a", "", "word").compute().wer.value)
  empty = ErrorState().compute()
  assert empty.utterances == 0 and np.isnan(empty.wer.value) and np.isnan(empty.correct)
  one = ErrorState.of("a", "a b", "a c").compute()
  assert one.wer.value == 0.5 and np.isnan(one.wer.low) and one.cer.value == pytest.approx(1 / 3)
