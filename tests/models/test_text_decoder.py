"""models/text_decoder.py: whole sequences, and the same step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.sequence import Dropout
from synclipmae_jax.models.text_decoder import SIZES, TextDecoder

VOCABULARY = 11


@pytest.fixture(scope="module")
def decoder():
  model = Functional(lambda rngs: TextDecoder(VOCABULARY, **SIZES["tiny"], rngs=rngs))
  params = model.init(jax.random.key(0))
  # Sharper than at the start, so that tokens and frames make a difference.
  return model, jax.tree.map(lambda leaf: leaf * 2, params)


def memory(batch, frames):
  return jax.random.normal(jax.random.key(3), (batch, frames, SIZES["tiny"]["width"]))


def test_a_token_sees_those_before_it_and_the_frames_of_its_example(decoder):
  model, params = decoder
  call = jax.jit(lambda tokens, states: model.bind(params)(tokens, states, jnp.array([6, 4])))
  tokens, states = jnp.array([[10, 1, 2, 3], [10, 4, 5, 6]]), memory(2, 6)
  logits = call(tokens, states)
  later = call(tokens.at[0, 2].set(7), states)
  np.testing.assert_allclose(later[0, :2], logits[0, :2], atol=1e-5)
  assert np.abs(later[0, 2:] - logits[0, 2:]).max(-1).min() > 1e-2
  np.testing.assert_allclose(call(tokens, states.at[1, 4:].set(9.0)), logits, atol=1e-5)
  assert np.abs(call(tokens, states.at[1, 3].add(1.0)) - logits)[1].max() > 1e-3


def test_steps_with_chosen_hypotheses_equal_the_whole_sequences(decoder):
  model, params = decoder
  states, lengths, beam, steps = memory(2, 6), jnp.array([6, 4]), 3, 4
  bound = model.bind(params)
  draw = np.random.default_rng(0)
  state = jax.jit(lambda s: bound.start(s, lengths, beam=beam, steps=steps))(states)
  history = np.full((2, beam, 1), VOCABULARY - 1)
  step, whole = jax.jit(bound.step), jax.jit(bound)
  for place in range(steps):
    log_probs, state = step(state, jnp.asarray(history[:, :, -1]), jnp.int32(place))
    for k in range(beam):
      padded = np.pad(history[:, k], ((0, 0), (0, steps - 1 - place)))  # what follows does not matter
      logits = whole(jnp.asarray(padded), states, lengths)[:, place]
      np.testing.assert_allclose(log_probs[:, k], jax.nn.log_softmax(logits), atol=2e-5)
    parents = draw.integers(0, beam, (2, beam))
    state = state.choose(jnp.asarray(parents))
    chosen = np.take_along_axis(history, parents[..., None], axis=1)
    history = np.concatenate([chosen, draw.integers(1, VOCABULARY - 1, (2, beam, 1))], axis=2)


def test_all_ways_to_run_the_blocks_agree(decoder):
  model, params = decoder
  tokens, states, lengths = jnp.array([[10, 1, 2], [10, 4, 5]]), memory(2, 5), jnp.array([5, 2])
  expected = model.bind(params)(tokens, states, lengths)
  for options in (dict(unroll=True), dict(remat="full")):
    other = Functional(lambda rngs, o=options: TextDecoder(VOCABULARY, **SIZES["tiny"], **o, rngs=rngs))
    np.testing.assert_allclose(other.bind(params)(tokens, states, lengths), expected, atol=1e-5)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), jnp.arange(2))
  assert np.abs(model.bind(params)(tokens, states, lengths, Dropout(0.5, keys)) - expected).max() > 0.1


def test_the_size_of_auto_avsr():
  model = Functional(lambda rngs: TextDecoder(5_049, **SIZES["auto_avsr"], rngs=rngs))
  assert round(sum(leaf.size for leaf in jax.tree.leaves(model.abstract)) / 1e6, 2) == 64.47
