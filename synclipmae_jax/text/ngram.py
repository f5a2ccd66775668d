"""An n-gram model in an ARPA file -> tables over the ids of a tokeniser, for fusion in a beam search.

The n-grams are of the recogniser's symbols, not of words: train the file on lines of `spell`. It is read by the library
`arpa`. The contexts become the states of an automaton, so that a search looks up one row for each hypothesis.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import os

import numpy as np

from synclipmae_jax.text.tokenisers import Tokeniser
from synclipmae_jax.types import InputError

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
MAX_ENTRIES = 50_000_000  # of a table: 200 MB


@dataclasses.dataclass(frozen=True, kw_only=True)
class NGram:
  """S contexts and V ids: `log_probs` [S, V] (natural) of an id after a context, and the context `following` it."""

  log_probs: np.ndarray  # float32
  following: np.ndarray  # int32
  start: int  # the context of an empty text


def spell(tokeniser: Tokeniser, text: str) -> str:
  """A text as symbols parted by spaces: a line to train an ARPA file on."""
  return " ".join(tokeniser.symbols[i - 1] for i in tokeniser.encode(text))


def load_arpa(path: str | os.PathLike, tokeniser: Tokeniser) -> NGram:
  """The model of a file. Symbols that it lacks have the probability of its <unk>; without one they are impossible.

  Raises InputError for a file that is damaged, of other symbols, or too large, and where the library is missing.
  """
  grams, order = _read(path)
  ids = {symbol: i + 1 for i, symbol in enumerate(tokeniser.symbols) if symbol} | {END: tokeniser.end}
  if not any((symbol,) in grams for symbol in tokeniser.symbols):
    raise InputError(
      f"the language model {path} holds no symbol of the recogniser: train it on texts that are spelled in symbols,"
      " not in words (text.ngram.spell)"
    )
  successors = collections.defaultdict(list)
  for gram, (log_p, _) in grams.items():
    if gram[-1] in ids:
      successors[gram[:-1]].append((gram[-1], log_p))
  contexts = [gram for gram in grams if len(gram) < order and gram[-1] != END]
  states = {context: number for number, context in enumerate([(), *sorted(contexts, key=len)])}
  if len(states) * tokeniser.size > MAX_ENTRIES:
    raise InputError(
      f"the language model {path} has {len(states)} contexts, too many for a table over {tokeniser.size} tokens:"
      f" prune it to {MAX_ENTRIES // tokeniser.size}"
    )
  log_probs = np.full((len(states), tokeniser.size), -np.inf)
  following = np.zeros(log_probs.shape, np.int32)
  log_probs[0, list(ids.values())] = grams.get((UNKNOWN,), (-np.inf, 0.0))[0]
  for context, number in states.items():  # in order of length: what is not listed is backed off to a shorter context
    if context:
      shorter = next(states[context[n:]] for n in range(1, len(context) + 1) if context[n:] in states)
      log_probs[number] = log_probs[shorter] + grams[context][1]
      following[number] = following[shorter]
    for symbol, log_p in successors[context]:
      log_probs[number, ids[symbol]] = log_p
      if (*context, symbol) in states:
        following[number, ids[symbol]] = states[*context, symbol]
  return NGram(
    log_probs=(log_probs * math.log(10)).astype(np.float32), following=following, start=states.get((START,), 0)
  )


def _read(path: str | os.PathLike) -> tuple[dict[tuple[str, ...], tuple[float, float]], int]:
  """{n-gram: (log10 probability, log10 back-off weight)} and the order of the model."""
  try:
    import arpa
  except ImportError as error:
    raise InputError("the library arpa is not installed: pip install 'synclipmae_jax[text]'") from error
  try:
    models = arpa.loadf(path, encoding="utf-8")
  except (OSError, EOFError, UnicodeDecodeError, ValueError, arpa.exceptions.ARPAException) as error:
    raise InputError(f"the language model {path} cannot be read as an ARPA file ({error or 'damaged'})") from error
  if len(models) != 1:
    raise InputError(f"the language model {path} is not an ARPA file with one model")
  (model,) = models
  grams: dict[tuple[str, ...], tuple[float, float]] = {}
  for order, count in model.counts():
    before = len(grams)
    for log_p, gram, *backoff in model._entries(order):  # what its `write` goes through; there is no public iterator
      grams[gram] = (min(float(log_p), 0.0), float(backoff[0]) if backoff else 0.0)
    if len(grams) - before != count:
      raise InputError(f"the language model {path} lists {count} {order}-grams, but holds {len(grams) - before}")
  return grams, model.order()
