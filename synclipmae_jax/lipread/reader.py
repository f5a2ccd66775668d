"""A trained recogniser reads the lips of a file: text, word times and confidence for every stretch with a face."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from synclipmae_jax import checkpoints
from synclipmae_jax.decoding.alignment import Word, align, word_times
from synclipmae_jax.decoding.confidence import measures
from synclipmae_jax.decoding.transcriber import Search, Transcriber, Transcript
from synclipmae_jax.inference.embedder import Embedder
from synclipmae_jax.inference.trained import refusing
from synclipmae_jax.models.recogniser import Recogniser, build_recogniser
from synclipmae_jax.text.grammar import Grammar
from synclipmae_jax.text.tokenisers import Tokeniser, from_dict
from synclipmae_jax.types import FPS, InputError, Params

SHORTEST = 10  # frames of a stretch that is read
EMBEDDED = Path(__file__).parents[1] / "demo_recogniser"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
  """What was read of a stretch of a file; seconds from its first picture.

  `confidence` is the mean of the words'. `doubts` are reasons to believe that the recogniser is out of its depth.
  `speaker` is the number of the face, from 1, those seen longest first.
  """

  start: float
  end: float
  text: str
  words: tuple[Word, ...]
  confidence: float
  speaker: int = 1
  doubts: tuple[str, ...] = ()


class LipReader:
  """A recogniser with its tokeniser, compiled for stretches of at most `longest` frames.

  `grammar`: all that it can say, where that is little; `expected`: measures of a reading (`decoding.confidence`) and
  the values below which few sentences of the corpus lie that it was trained on.
  """

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
    name: str = "",
    grammar: Grammar | None = None,
    expected: Mapping[str, float] | None = None,
  ):
    if tokeniser.size != recogniser.vocabulary:
      raise InputError(f"a tokeniser of {tokeniser.size} ids does not fit a recogniser of {recogniser.vocabulary}")
    self.tokeniser, self.params, self.longest, self.tokens = tokeniser, params, lengths[-1], tokens
    self.recogniser, self.search, self.max_tokens = recogniser, search, max_tokens
    self.name, self.grammar, self.expected = name, grammar, dict(expected or {})
    self._transcribe = Transcriber(recogniser, lengths=lengths, max_tokens=max_tokens, search=search, batch=1)

  @classmethod
  def load(cls, directory: str | os.PathLike | None = None, *, say: Callable[[str], None] = print) -> LipReader:
    """The recogniser of a run of configs/vsr.py: the averaged parameters where there are any, or a step. By default
    the small one that comes with the package.

    Raises InputError for a checkpoint of another task or version.
    """
    if directory is None and not EMBEDDED.exists():
      raise InputError("this installation contains no recogniser: give the directory of one")
    called = "the embedded recogniser" if directory is None else str(directory)
    directory = EMBEDDED if directory is None else directory
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
      grammar = Grammar.from_dict(made["grammar"]) if made.get("grammar") else None
      decoding = {name: value for name, value in config["decoding"].items() if name not in ("lm", "lm_weight")}
      search = Search(**decoding)
    params = {name: checkpoints.find_item(step, name).load_as(item) for name, item in abstract.items()}
    return cls(
      recogniser,
      jax.device_put(params),
      tokeniser,
      lengths=tuple(config["data"]["lengths"]),
      max_tokens=config["data"]["max_tokens"],
      search=search,
      tokens=made["tokens"],
      name=called,
      grammar=grammar,
      expected=meta.get("expected"),
    )

  @property
  def notes(self) -> list[str]:
    """What a user must know of the recogniser."""
    if self.grammar is None:
      return []
    told = f"{self.name} knows {len(self.grammar.words)} words only"
    if self.grammar.places:
      told += f", in sentences of {len(self.grammar.places)}"
    return [f"{told}, and reads some of them whatever is said"]

  def check_encoder(self, embedder: Embedder) -> None:
    """Raises InputError if the recogniser was trained on the tokens of another encoder."""
    digest = checkpoints.tree_hash(embedder.params["visual_encoder"])
    if self.tokens.get("kind") != "vocal" or self.tokens.get("sha256") != digest:
      origin = self.tokens.get("checkpoint") or f"{self.tokens.get('kind')} pixels"
      raise InputError(f"this recogniser reads the tokens of another encoder ({origin}): name it with --encoder DIR")

  def read(
    self, vocal: np.ndarray, *, speaker: int = 1, progress: Callable[[float], None] | None = None
  ) -> list[Reading]:
    """What is read of a face by its tokens [T, D], nan where it is not seen; one Reading a stretch, those without words
    left out. `progress` is called with the second that is reached.

    Raises InputError if the face is never seen for `SHORTEST` frames.
    """
    spans = stretches(vocal, longest=self.longest)
    if not spans:
      raise InputError(f"its face is never seen for {SHORTEST} frames ({SHORTEST / FPS:g} s), which reading needs")
    readings = []
    for start, stop in spans:
      (transcript,) = self._transcribe(self.params, [vocal[start:stop]])
      readings.append(self._reading(transcript, start, speaker))
      if progress is not None:
        progress(stop / FPS)
    return [reading for reading in readings if reading is not None]

  def read_all(self, faces: Sequence[np.ndarray], *, progress: Callable[[float], None] | None = None) -> list[Reading]:
    """What is read of all faces of a file (`inference.lips`), in order of time.

    Faces that are seen for less than a second are left out, unless there is no other.
    """
    readings = []
    for number, vocal in enumerate(faces, start=1):
      if number == 1 or np.isfinite(vocal[:, 0]).sum() >= FPS and stretches(vocal, longest=self.longest):
        readings += self.read(vocal, speaker=number, progress=progress)
    return sorted(readings, key=lambda reading: (reading.start, reading.speaker))

  def _reading(self, transcript: Transcript, first: int, speaker: int) -> Reading | None:
    spans = self.tokeniser.words(transcript.tokens)
    listed = [(self.tokeniser.decode(transcript.tokens[a:b]), a, b) for a, b in spans]
    if not listed:
      return None
    try:
      alignment = align(transcript.log_probs, transcript.tokens)
    except InputError:  # a decoder may write more than CTC can; it is then wrong
      return None
    words = word_times(alignment, listed, frames=len(transcript.log_probs))
    moved = tuple(
      dataclasses.replace(word, start=word.start + first / FPS, end=word.end + first / FPS) for word in words
    )
    text = self.tokeniser.decode(transcript.tokens)
    return Reading(
      start=moved[0].start,
      end=moved[-1].end,
      text=text,
      words=moved,
      confidence=float(np.mean([word.confidence for word in words])),
      speaker=speaker,
      doubts=tuple(self._doubts(transcript, text)),
    )

  def _doubts(self, transcript: Transcript, text: str) -> Iterator[str]:
    if self.grammar is not None and (complaint := self.grammar.complaint(text)):
      yield complaint
    found = measures(transcript)
    low = [name for name, least in self.expected.items() if found.get(name, math.inf) < least]
    if low:
      yield f"read with less certainty than the sentences that it was tried on ({', '.join(low)})"


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
