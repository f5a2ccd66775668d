"""decoding/: exact agreement with a slow search in plain Python, whose CTC enumerates every path."""

import collections
import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synclipmae_jax.decoding import ctc_prefix
from synclipmae_jax.decoding.beam_search import Scorer, beam_search
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.text_decoder import SIZES, TextDecoder

VOCABULARY, END, FRAMES, EXAMPLES, STATES = 5, 4, 5, 24, 13
LENGTHS = np.resize([5, 4, 3, 2, 1, 5], EXAMPLES)


def collapse(path):
  return tuple(label for label, _ in itertools.groupby(path) if label)


@functools.cache
def readings(frames):
  """All paths [n, frames] and what they read."""
  paths = list(itertools.product(range(VOCABULARY), repeat=frames))
  return np.array(paths), [collapse(path) for path in paths]


class EveryPath:
  """CTC of one example by enumeration."""

  def __init__(self, log_probs):
    paths, texts = readings(len(log_probs))
    self.texts = collections.Counter()
    for text, p in zip(texts, np.exp(log_probs[np.arange(len(log_probs)), paths].sum(1)), strict=True):
      self.texts[text] += p

  def whole(self, text):
    return self.texts[text]

  def prefix(self, text):
    return sum(p for other, p in self.texts.items() if other[: len(text)] == text)


@dataclasses.dataclass
class Remembered:
  """The state of a model whose prediction depends on every token before, in order."""

  code: Any  # int32 [B, K]

  def choose(self, hypotheses):
    return Remembered(jnp.take_along_axis(self.code, hypotheses, axis=1))


jax.tree_util.register_dataclass(Remembered, ["code"], [])


def following(code, token):
  return (code * 3 + token + 1) % STATES


def remembering(tables, weight, beam):
  def step(state, tokens, place):
    code = following(state.code, tokens)
    return jax.vmap(lambda table, code: table[code])(tables, code), Remembered(code)

  return Scorer(step=step, state=Remembered(jnp.zeros((len(tables), beam), jnp.int32)), weight=weight)


def log(p):
  return np.log(p) if p > 0 else -np.inf


def slow_search(ctc, models, limit, *, beam, ctc_weight, bonus, n_best, candidates):
  """`models`: (weight, function of a text -> log-probabilities). Returns [(score, text)], best first."""

  def predicted(text):  # of every token after the text
    return sum((weight * model(text) for weight, model in models if weight), np.zeros(VOCABULARY))

  def with_ctc(score, p):
    return score + ctc_weight * log(p) if ctc_weight else score

  running, sentences = [(0.0, ())], []  # scores without CTC
  for _ in range(limit + 1):
    sentences += [(with_ctc(base + predicted(text)[END], ctc.whole(text)), text) for base, text in running]
    extended = []
    for base, text in running:
      gained = predicted(text)
      labels = sorted(range(1, END), key=lambda c, gained=gained: -gained[c])[:candidates]
      for c in labels:
        new = base + gained[c] + bonus
        extended.append((with_ctc(new, ctc.prefix((*text, c)) if ctc_weight else 1), new, (*text, c)))
    extended = [each for each in sorted(extended, reverse=True)[:beam] if each[0] > -np.inf]
    running = [(new, text) for _, new, text in extended]
  return sorted(sentences, reverse=True)[:n_best]


def problems():
  draw = np.random.default_rng(0)
  log_softmax = lambda x: x - np.logaddexp.reduce(x, axis=-1, keepdims=True)
  ctc = log_softmax(2 * draw.normal(size=(EXAMPLES, FRAMES, VOCABULARY)))
  tables = [log_softmax(1.5 * draw.normal(size=(EXAMPLES, STATES, VOCABULARY))) for _ in range(2)]
  return ctc.astype(np.float32), [table.astype(np.float32) for table in tables]


WEIGHTS = (
  (0.0, 1.0, 0.0, 0.0),
  (0.1, 0.9, 0.0, 0.0),
  (0.5, 0.5, 0.3, 0.8),
  (0.3, 0.7, 0.2, -0.4),
  (1.0, 0.0, 0.0, 0.5),
)


@pytest.mark.parametrize("beam, n_best, candidates", [(1, 1, None), (2, 1, None), (5, 3, None), (3, 2, 2)])
def test_480_problems_agree_with_a_slow_search(beam, n_best, candidates):
  ctc, tables = problems()

  @jax.jit
  def search(ctc_weight, decoder, lm, bonus):
    scorers = [remembering(jnp.asarray(t), w, beam) for t, w in zip(tables, (decoder, lm), strict=True)]
    return beam_search(
      jnp.asarray(ctc), jnp.asarray(LENGTHS), scorers, end=END, beam=beam, max_tokens=4, ctc_weight=ctc_weight,
      bonus=bonus, n_best=n_best, candidates=candidates,
    )  # fmt: skip

  def model(table):
    return lambda text: table[functools.reduce(following, (END, *text), 0)].astype(np.float64)

  enumerated = [EveryPath(ctc[i, :length].astype(np.float64)) for i, length in enumerate(LENGTHS)]
  for ctc_weight, decoder, lm, bonus in WEIGHTS:
    if candidates and not decoder:
      continue
    found = jax.tree.map(np.asarray, search(ctc_weight, decoder, lm, bonus))
    for i, length in enumerate(LENGTHS):
      models = [(w, model(table[i])) for w, table in zip((decoder, lm), tables, strict=True)]
      expected = slow_search(
        enumerated[i], models, min(length, 4), beam=beam, ctc_weight=ctc_weight, bonus=bonus, n_best=n_best,
        candidates=candidates,
      )  # fmt: skip
      for rank, (score, text) in enumerate(expected):
        assert found.score[i, rank] == pytest.approx(score, abs=2e-4)
        if score > -np.inf:
          assert tuple(found.tokens[i, rank, : found.length[i, rank]]) == text
          assert not found.tokens[i, rank, found.length[i, rank] :].any()


def test_the_states_of_a_decoder_follow_their_hypotheses():
  decoder = Functional(lambda rngs: TextDecoder(VOCABULARY, **SIZES["tiny"], rngs=rngs))
  params = jax.tree.map(lambda leaf: leaf * 3, decoder.init(jax.random.key(0)))
  bound, beam, steps, examples = decoder.bind(params), 3, 4, 4
  ctc, _ = problems()
  memory = jax.random.normal(jax.random.key(1), (examples, FRAMES, SIZES["tiny"]["width"]))
  frames = jnp.asarray(LENGTHS[:examples])

  @jax.jit
  def search():
    state = bound.start(memory, frames, beam=beam, steps=steps + 1)
    scorer = Scorer(step=bound.step, state=state, weight=0.6)
    return beam_search(
      jnp.asarray(ctc[:examples]), frames, [scorer], end=END, beam=beam, max_tokens=steps, ctc_weight=0.4, n_best=2
    )

  whole = jax.jit(lambda tokens, i: jax.nn.log_softmax(bound(tokens, memory[i][None], frames[i][None])))
  found = search()
  for i in range(examples):

    def model(text, i=i):
      tokens = np.full((1, steps + 1), END)
      tokens[0, 1 : 1 + len(text)] = text
      return np.asarray(whole(jnp.asarray(tokens), i)[0, len(text)], np.float64)

    ctc_of = EveryPath(ctc[i, : LENGTHS[i]].astype(np.float64))
    expected = slow_search(
      ctc_of, [(0.6, model)], min(LENGTHS[i], steps), beam=beam, ctc_weight=0.4, bonus=0, n_best=2, candidates=None
    )
    for rank, (score, text) in enumerate(expected):
      assert found.score[i, rank] == pytest.approx(score, abs=2e-4)
      assert tuple(found.tokens[i, rank, : found.length[i, rank]]) == text


def test_prefix_and_whole_probabilities_are_sums_over_paths():
  ctc, _ = problems()
  ctc, lengths = jnp.asarray(ctc[:6]), LENGTHS[:6]
  log_probs = ctc_prefix.within(ctc, jnp.asarray(lengths))
  state = ctc_prefix.start(log_probs, beam=2)
  texts = [(), (2,), (2, 2), (2, 2, 1)]
  for before, text in itertools.pairwise(texts):
    prefixes = ctc_prefix.extensions(log_probs, state)
    chosen = jnp.full((6, 2), text[-1])
    some = ctc_prefix.extensions(log_probs, state, jnp.full((6, 2, 1), text[-1]))
    np.testing.assert_allclose(some[..., 0], prefixes[..., text[-1]], atol=1e-5)
    state = ctc_prefix.extend(log_probs, state, jnp.array([[1, 0]] * 6), chosen)
    for i, length in enumerate(lengths):
      enumerated = EveryPath(np.asarray(ctc[i, :length], np.float64))
      for label in range(1, END):
        expected = enumerated.prefix((*before, label))
        assert np.exp(prefixes[i, 0, label]) == pytest.approx(expected, rel=1e-4, abs=1e-9)
      assert np.exp(ctc_prefix.whole(state)[i, 1]) == pytest.approx(enumerated.whole(text), rel=1e-4, abs=1e-9)


def test_greedy_reads_the_best_path():
  ctc, _ = problems()
  tokens, count, score = jax.jit(ctc_prefix.greedy)(jnp.asarray(ctc), jnp.asarray(LENGTHS))
  for i, length in enumerate(LENGTHS):
    best = ctc[i, :length].argmax(-1)
    assert tuple(tokens[i, : count[i]]) == collapse(best) and not tokens[i, count[i] :].any()
    assert score[i] == pytest.approx(ctc[i, :length].max(-1).sum(), rel=1e-5)


def test_sizes_that_cannot_be_are_refused():
  ctc, tables = problems()
  frames = jnp.asarray(LENGTHS)
  options = dict(end=END, beam=2, max_tokens=3)
  with pytest.raises(ValueError, match="a decoder, or both"):
    beam_search(None, frames, [], **options)
  with pytest.raises(ValueError, match="n_best <= beam"):
    beam_search(jnp.asarray(ctc), frames, [], **options, n_best=3)
  with pytest.raises(ValueError, match="of which there is none"):
    beam_search(jnp.asarray(ctc), frames, [], **options, candidates=2)
