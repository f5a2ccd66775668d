"""A trained recogniser reads the lips of a file: text, word times and confidence for every stretch with a face."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from synclipmae_jax import checkpoints
from synclipmae_jax.decoding.alignment import Word, align, word_times
from synclipmae_jax.decoding.transcriber import Search, Transcriber, Transcript
from synclipmae_jax.inference.embedder import Embedder, Embedding
from synclipmae_jax.inference.trained import refusing
from synclipmae_jax.models.recogniser import Recogniser, build_recogniser
from synclipmae_jax.text.tokenisers import Tokeniser, from_dict
from synclipmae_jax.types import FPS, InputError, Params

SHORTEST = 10  # frames of a stretch that is read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
  """What was read of a stretch of a file; seconds from its first picture. `confidence` is the mean of the words'."""

  start: float
  end: float
  text: str
  words: tuple[Word, ...]
  confidence: float


class LipReader:
  """A recogniser with its tokeniser, compiled for stretches of at most `longest` frames."""

  def __init__(
    self,
    recogniser: Recogniser,
    params: Params,
    tokeniser: Tokeniser,
    *,
    lengths: tuple[int, ...],
    max_tokens: int,
    search: Search,
    tokens: Mapping[str, Any],
  ):
    if tokeniser.size != recogniser.vocabulary:
      raise InputError(f"a tokeniser of {tokeniser.size} ids does not fit a recogniser of {recogniser.vocabulary}")
    self.tokeniser, self.params, self.longest, self.tokens = tokeniser, params, lengths[-1], tokens
    self._transcribe = Transcriber(recogniser, lengths=lengths, max_tokens=max_tokens, search=search, batch=1)

  @classmethod
  def load(cls, directory: str | os.PathLike, *, say: Callable[[str], None] = print) -> LipReader:
    """The recogniser of a run of configs/vsr.py: the averaged parameters where there are any, or a step.

    Raises InputError for a checkpoint of another task or version.
    """
    averaged = Path(directory) / "averaged"
    steps = sorted(int(path.name) for path in averaged.glob("*") if path.name.isdecimal())
    step = checkpoints.resolve_step(averaged / str(steps[-1]) if steps else directory, say=say)
    meta = checkpoints.load_meta(step)
    if meta.get("task") != "vsr":
      raise InputError(f"{directory} holds no recogniser: it is a checkpoint of the task {meta.get('task')!r}")
    with refusing(f"checkpoint {step} does not describe a recogniser of this version"):
      config, made = meta["config"], meta["preprocessing"]
      tokeniser = from_dict(made["tokeniser"])
      if config["model"]["visual"] is not None:
        raise InputError("its encoder was trained with it, which this command cannot read yet")
      recogniser = build_recogniser(
        config["model"], in_features=config["data"]["token_width"], vocabulary=tokeniser.size,
        compute_dtype="float32" if jax.default_backend() == "cpu" else None, unroll=False, remat="none",
      )  # fmt: skip
      abstract = jax.eval_shape(recogniser.init, jax.random.key(0))
      decoding = {name: value for name, value in config["decoding"].items() if name not in ("lm", "lm_weight")}
      search = Search(**decoding)
    params = {}
    for name, item in abstract.items():
      saved = checkpoints.find_item(step, name)
      saved.refuse_difference(saved.leaves, item)
      params[name] = saved.load(jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), item))
    return cls(
      recogniser,
      jax.device_put(params),
      tokeniser,
      lengths=tuple(config["data"]["lengths"]),
      max_tokens=config["data"]["max_tokens"],
      search=search,
      tokens=made["tokens"],
    )

  def check_encoder(self, embedder: Embedder) -> None:
    """Raises InputError if the recogniser was trained on the tokens of another encoder."""
    digest = checkpoints.tree_hash(embedder.params["visual_encoder"])
    if self.tokens.get("kind") != "vocal" or self.tokens.get("sha256") != digest:
      origin = self.tokens.get("checkpoint") or f"{self.tokens.get('kind')} pixels"
      raise InputError(f"this recogniser reads the tokens of another encoder ({origin}): name it with --encoder DIR")

  def read(self, embedding: Embedding) -> list[Reading]:
    """What is read of a face, one Reading a stretch without words left out.

    Raises InputError if the face is never seen for `SHORTEST` frames.
    """
    spans = stretches(embedding.vocal, longest=self.longest)
    if not spans:
      raise InputError(f"its face is never seen for {SHORTEST} frames ({SHORTEST / FPS:g} s), which reading needs")
    transcripts = self._transcribe(self.params, [embedding.vocal[start:stop] for start, stop in spans])
    readings = [self._reading(transcript, start) for transcript, (start, _) in zip(transcripts, spans, strict=True)]
    return [reading for reading in readings if reading is not None]

  def _reading(self, transcript: Transcript, first: int) -> Reading | None:
    spans = self.tokeniser.words(transcript.tokens)
    listed = [(self.tokeniser.decode(transcript.tokens[a:b]), a, b) for a, b in spans]
    if not listed:
      return None
    words = word_times(
      align(transcript.log_probs, transcript.tokens), listed, frames=len(transcript.log_probs)
    )  # fmt: skip
    moved = tuple(
      dataclasses.replace(word, start=word.start + first / FPS, end=word.end + first / FPS) for word in words
    )
    return Reading(
      start=moved[0].start,
      end=moved[-1].end,
      text=self.tokeniser.decode(transcript.tokens),
      words=moved,
      confidence=float(np.mean([word.confidence for word in words])),
    )


def stretches(vocal: np.ndarray, *, longest: int) -> list[tuple[int, int]]:
  """[start, stop) of what is read at once: frames with a face (rows of `vocal` [T, D] that are numbers).

  Where a face is seen for longer than `longest` frames, it is divided where the lips move least, which is in pauses.
  """
  seen = np.isfinite(vocal).all(axis=1)
  edges = np.flatnonzero(np.diff(np.concatenate([[0], seen, [0]]).astype(int)))
  found = []
  for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
    while stop - start > longest:
      movement = np.linalg.norm(np.diff(vocal[start : start + longest + 1], axis=0), axis=1)
      smooth = np.convolve(movement, np.ones(5) / 5, mode="same")
      cut = start + longest // 2 + int(smooth[longest // 2 : longest].argmin())
      found.append((start, cut))
      start = cut
    found.append((start, stop))
  return [(start, stop) for start, stop in found if stop - start >= SHORTEST]
