"""text/ngram.py against the library's own back-off, and fused in a search."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synclipmae_jax.decoding.beam_search import beam_search
from synclipmae_jax.decoding.language_model import ngram_scorer
from synclipmae_jax.text.ngram import load_arpa, spell
from synclipmae_jax.text.tokenisers import Characters
from synclipmae_jax.types import InputError

arpa = pytest.importorskip("arpa")

ARPA = """
\\data\\
ngram 1=6
ngram 2=5
ngram 3=2

\\1-grams:
-1.2\t<unk>
-99\t<s>\t-0.3
-0.9\t</s>
-0.5\ta\t-0.2
-0.7\tb\t-0.4
-1.1\t\u2581

\\2-grams:
-0.2\t<s> a\t-0.1
-0.4\ta b\t-0.15
-0.3\tb </s>
-0.6\tb a
-0.8\ta \u2581

\\3-grams:
-0.1\t<s> a b
-0.25\ta b a

\\end\\
"""


@pytest.fixture
def tokeniser():
  return Characters(" abc")  # c is unknown to the model


@pytest.fixture
def model(tmp_path, tokeniser):
  (tmp_path / "a.arpa").write_text(ARPA, "utf-8")
  return load_arpa(tmp_path / "a.arpa", tokeniser)


def walk(model, ids):
  state, found = model.start, []
  for i in ids:
    found.append(model.log_probs[state, i])
    state = model.following[state, i]
  return found


def test_every_text_has_the_probability_of_the_library(model, tokeniser):
  (reference,) = arpa.loads(ARPA)
  symbols = [*tokeniser.symbols, "</s>"]
  for length in range(1, 5):
    for ids in itertools.product(range(1, tokeniser.end + 1), repeat=length):
      words = ["<s>", *(symbols[i - 1] for i in ids)]
      if "</s>" in words[:-1]:
        continue
      words = [word if word in reference else "<unk>" for word in words]
      expected = [reference.log_p_raw(tuple(words[: n + 1])) * math.log(10) for n in range(1, len(words))]
      np.testing.assert_allclose(walk(model, ids), expected, rtol=1e-5)


def test_texts_are_spelled_in_symbols(tokeniser):
  assert spell(tokeniser, "Ab a") == "a b \u2581 a"


def test_a_search_with_the_model_finds_the_most_probable_text(model, tokeniser):
  frames, limit = 9, 3
  scorer = ngram_scorer(model.log_probs, model.following, model.start, batch=1, beam=30, weight=1.0)
  found = jax.jit(lambda: beam_search(
    None, jnp.array([frames]), [scorer], end=tokeniser.end, beam=30, max_tokens=limit, n_best=3
  ))()  # fmt: skip
  scores = {
    ids: sum(walk(model, (*ids, tokeniser.end)))
    for length in range(limit + 1) for ids in itertools.product(range(1, tokeniser.end), repeat=length)
  }  # fmt: skip
  best = sorted(scores, key=scores.get, reverse=True)[:3]
  assert [tuple(tokens[:n].tolist()) for tokens, n in zip(found.tokens[0], found.length[0], strict=True)] == best
  np.testing.assert_allclose(found.score[0], [scores[ids] for ids in best], rtol=1e-5)


def test_damaged_and_foreign_files_are_refused_in_one_sentence(tmp_path, tokeniser, monkeypatch):
  cases = {
    "cut.arpa": (ARPA[: ARPA.index("-0.3\tb </s>")], "ARPA file"),
    "wrong.arpa": (ARPA.replace("ngram 2=5", "ngram 2=6"), "lists 6 2-grams, but holds 5"),
    "no.arpa": ("nothing", "not an ARPA file"),
    "garbled.arpa": (ARPA.replace("-0.4\ta b", "x\ta b"), "cannot be read"),
    "words.arpa": (ARPA.replace("\ta", "\tapple").replace("\tb", "\tbee").replace("\u2581", "cat"), "no symbol"),
  }
  for name, (text, reason) in cases.items():
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(InputError, match=reason):
      load_arpa(tmp_path / name, tokeniser)
  with pytest.raises(InputError, match=r"absent.arpa cannot be read"):
    load_arpa(tmp_path / "absent.arpa", tokeniser)
  monkeypatch.setattr("synclipmae_jax.text.ngram.MAX_ENTRIES", 10)
  (tmp_path / "a.arpa").write_text(ARPA, "utf-8")
  with pytest.raises(InputError, match="prune it to 1"):
    load_arpa(tmp_path / "a.arpa", tokeniser)
  monkeypatch.setitem(__import__("sys").modules, "arpa", None)
  with pytest.raises(InputError, match=r"synclipmae_jax\[text\]"):
    load_arpa(tmp_path / "a.arpa", tokeniser)
