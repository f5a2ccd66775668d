"""How sure a recogniser is of a text: measures that fall where lips say something else than it was trained on.

None of them is a probability of being right. They are compared with their values on held-out sentences of the corpus
that was learned (`lower_ends`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from synclipmae_jax.decoding.alignment import align
from synclipmae_jax.decoding.transcriber import Transcript
from synclipmae_jax.types import InputError


def measures(transcript: Transcript) -> dict[str, float]:
  """Three measures of a transcript, higher where it is surer; -inf where CTC cannot write the text.

  `score`: the score of the search, for each token and the end. `letters`: the mean log-probability of the tokens under
  CTC, where they are written. `agreement`: the log-probability of the text's best path less that of the best path of
  all, for each frame: 0 where CTC alone would have written the text.
  """
  tokens = transcript.tokens
  score = float(transcript.scores[0]) / (len(tokens) + 1)
  try:
    alignment = align(transcript.log_probs, tokens)
  except InputError:
    return {"score": score, "letters": -np.inf, "agreement": -np.inf}
  best = float(transcript.log_probs.max(axis=-1).astype(np.float64).sum())
  letters = float(alignment.log_prob.mean()) if len(tokens) else -np.inf
  return {"score": score, "letters": letters, "agreement": (alignment.score - best) / len(transcript.log_probs)}


def lower_ends(found: Sequence[dict[str, float]], *, share: float) -> dict[str, float]:
  """Of every measure the value below which `share` of the transcripts lie; none for fewer than 20 transcripts."""
  if len(found) < 20:
    return {}
  columns = {name: [one[name] for one in found] for name in found[0]}
  ends = {name: float(np.quantile(values, share, method="lower")) for name, values in columns.items()}
  return {name: value for name, value in ends.items() if np.isfinite(value)}
