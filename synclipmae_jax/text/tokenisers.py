"""Text <-> token ids: single characters, or the pieces of a sentencepiece model.

Ids are those of Auto-AVSR: 0 is the blank of CTC, then the symbols, and the last id is both start and end of a
sentence. A tokeniser goes through JSON (`to_dict`, `from_dict`) into the metadata of checkpoints.
"""

from __future__ import annotations

import abc
import base64
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from synclipmae_jax.text import normaliser
from synclipmae_jax.text.normaliser import normalise
from synclipmae_jax.types import InputError

BLANK = 0
SPACE = "\u2581"  # the mark of a word's beginning in sentencepiece
UNUSED = ""  # a symbol that no text has
KINDS = ("characters", "pieces")


class Tokeniser(abc.ABC):
  """Base class. `symbols[i]` is the text of id i + 1, with `SPACE` for a space."""

  symbols: Sequence[str]

  @property
  def size(self) -> int:
    """Number of ids, blank and end included."""
    return len(self.symbols) + 2

  @property
  def end(self) -> int:
    """The start and the end of a sentence."""
    return self.size - 1

  def encode(self, text: str) -> list[int]:
    """Ids of a text, normalised first. Raises InputError for an empty text and for letters that have no symbol."""
    plain = normalise(text)
    if not plain:
      raise InputError(f"the transcript {text!r} has no letter" if text.strip() else "the transcript is empty")
    ids = self._ids(plain)
    if lacking := sorted({c for symbol, i in ids if i is None for c in symbol if c != SPACE}):
      raise InputError(f"the transcript {text!r} has {' '.join(lacking)!r}, which the recogniser's vocabulary lacks")
    return [i for _, i in ids]

  def decode(self, ids: Iterable[int]) -> str:
    """The text of ids without blank and end. Raises ValueError for those."""
    ids = list(map(int, ids))
    if wrong := [i for i in ids if not 0 < i < self.end]:
      raise ValueError(f"{wrong} are not ids of text")
    return "".join(self.symbols[i - 1] for i in ids).replace(SPACE, " ").lower().strip()

  def words(self, ids: Sequence[int]) -> list[tuple[int, int]]:
    """The tokens [start, stop) of every word of `decode`; a token that is only a space belongs to no word."""
    spans: list[list[int]] = []
    within = False
    for place, i in enumerate(ids):
      symbol = self.symbols[i - 1]
      if symbol == SPACE:
        within = False
        continue
      if symbol.startswith(SPACE) or not within:
        spans.append([place, place + 1])
      spans[-1][1], within = place + 1, True
    return [(start, stop) for start, stop in spans]

  @abc.abstractmethod
  def to_dict(self) -> dict[str, Any]:
    """JSON of this tokeniser."""

  @property
  def digest(self) -> str:
    """Equal for tokenisers that give every text the same ids."""
    return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]

  @abc.abstractmethod
  def _ids(self, plain: str) -> list[tuple[str, int | None]]:
    """(symbol, id or None) of a normalised text."""


class Characters(Tokeniser):
  """One id for each character."""

  def __init__(self, characters: Iterable[str]):
    self.symbols = tuple(SPACE if c == " " else c for c in characters)
    self._index = {c: i + 1 for i, c in enumerate(self.symbols)}

  @classmethod
  def of(cls, texts: Iterable[str]) -> Characters:
    """All characters of the texts, in order. Raises InputError if there is none."""
    found = sorted({c for text in texts for c in normalise(text)} | {" "})
    if found == [" "]:
      raise InputError("there is no transcript to take characters from")
    return cls(found)

  def to_dict(self) -> dict[str, Any]:
    characters = "".join(self.symbols).replace(SPACE, " ")
    return {"kind": "characters", "normaliser": normaliser.VERSION, "characters": characters}

  def _ids(self, plain: str) -> list[tuple[str, int | None]]:
    return [(c, self._index.get(c)) for c in plain.replace(" ", SPACE)]


class Pieces(Tokeniser):
  """The pieces of a sentencepiece model.

  `units` are the symbols in the order of their ids, where a recogniser orders them otherwise than the model
  (`unigram5000_units.txt` of Auto-AVSR). `size` is the number of symbols that there shall be: where the model has
  fewer, the others are never used. A model that knows no small letters gets capitals. Raises InputError for bytes that
  are no model, and for more than `size` symbols.
  """

  def __init__(self, model: bytes, *, units: Sequence[str] | None = None, size: int | None = None):
    self._model, self._units, self._size = model, units, size
    try:
      self._processor = _sentencepiece().SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
      raise InputError(f"it is not a sentencepiece model ({error})") from error
    pieces = [self._processor.id_to_piece(i) for i in range(self._processor.get_piece_size())]
    listed = units or pieces
    if size is not None and len(listed) > size:
      raise InputError(f"it has {len(listed)} symbols, more than the {size} that were asked for")
    self.symbols = tuple([*listed, *[UNUSED] * ((size or 0) - len(listed))])
    own = {piece for i, piece in enumerate(pieces) if not self._processor.is_unknown(i)}
    self._index = {piece: i + 1 for i, piece in enumerate(self.symbols) if piece in own}
    letters = "".join(piece for piece in own if not piece.startswith("<"))
    self._capitals = letters.upper() == letters and letters.lower() != letters

  @classmethod
  def train(cls, texts: Iterable[str], *, size: int) -> Pieces:
    """A unigram model of the texts, of `size` pieces, some of them unused where the corpus is small.

    Raises InputError without texts, and for a size below the number of characters.
    """
    lines = [plain for plain in map(normalise, texts) if plain]
    if not lines:
      raise InputError("there is no transcript to train sentencepiece on")
    model = io.BytesIO()
    try:
      _sentencepiece().SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=size, model_type="unigram", unk_id=0, bos_id=-1,
        eos_id=-1, pad_id=-1, character_coverage=1.0, normalization_rule_name="identity", hard_vocab_limit=False,
        num_threads=1, minloglevel=2,
      )  # fmt: skip
    except RuntimeError as error:
      raise InputError(f"sentencepiece cannot make {size} pieces of these transcripts ({error})") from error
    return cls(model.getvalue(), size=size)

  @classmethod
  def load(cls, path: str | Path, *, units: str | Path | None = None, size: int | None = None) -> Pieces:
    """The model in a file, and its units (a symbol and a number a line, or a symbol a line). Raises InputError."""
    try:
      listed = None
      if units is not None:
        listed = [line.split()[0] for line in Path(units).read_text("utf-8").splitlines() if line.strip()]
      return cls(Path(path).read_bytes(), units=listed, size=size)
    except (OSError, UnicodeDecodeError, InputError) as error:
      raise InputError(f"the sentencepiece model {path} cannot be used: {error}") from error

  def to_dict(self) -> dict[str, Any]:
    model = base64.b64encode(self._model).decode()
    units = list(self._units) if self._units else None
    return {
      "kind": "pieces", "normaliser": normaliser.VERSION, "model": model, "units": units, "size": self._size
    }  # fmt: skip

  def _ids(self, plain: str) -> list[tuple[str, int | None]]:
    pieces = self._processor.encode(plain.upper() if self._capitals else plain, out_type=str)
    return [(piece.lower(), self._index.get(piece)) for piece in pieces]


def from_dict(stored: Mapping[str, Any]) -> Tokeniser:
  """The tokeniser that `to_dict` wrote. Raises InputError for one of another version of the normaliser."""
  if stored.get("normaliser") != normaliser.VERSION:
    raise InputError(
      f"this recogniser reads texts of normaliser version {stored.get('normaliser')}; this package has version"
      f" {normaliser.VERSION}"
    )
  match stored.get("kind"):
    case "characters":
      return Characters(stored["characters"])
    case "pieces":
      return Pieces(base64.b64decode(stored["model"]), units=stored["units"], size=stored["size"])
  raise InputError(f"unknown kind of tokeniser {stored.get('kind')!r}: {' or '.join(KINDS)}")


def encode_all(tokeniser: Tokeniser, texts: Sequence[str]) -> list[list[int] | None]:
  """The ids of many texts; None where a text is empty or has letters without symbol.

  Raises InputError if that is so for more than half of those that are not empty: a vocabulary of another language.
  """
  found: list[list[int] | None] = []
  reasons: list[str] = []
  written = 0
  for text in texts:
    written += bool(normalise(text))
    try:
      found.append(tokeniser.encode(text))
    except InputError as error:
      found.append(None)
      if normalise(text):
        reasons.append(str(error))
  if 2 * len(reasons) > written:
    raise InputError(
      f"{len(reasons)} of {written} transcripts have letters that the vocabulary lacks; is it of another language? "
      f"One of them: {reasons[0]}"
    )
  return found


def _sentencepiece():
  try:
    import sentencepiece
  except ImportError as error:
    raise InputError("sentencepiece is not installed: pip install 'synclipmae_jax[text]'") from error
  return sentencepiece
