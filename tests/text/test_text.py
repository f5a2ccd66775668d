"""text/: the normaliser and the tokenisers."""

import json
import subprocess
import sys

import pytest

from synclipmae_jax.text import normaliser
from synclipmae_jax.text.normaliser import normalise
from synclipmae_jax.text.tokenisers import Characters, Pieces, encode_all, from_dict
from synclipmae_jax.types import InputError

TEXTS = (
  "bin blue at f two now",
  "place red in a nine please",
  "set white with b zero again",
  "lay green by z one soon",
)


@pytest.fixture(scope="module")
def pieces():
  pytest.importorskip("sentencepiece")
  return Pieces.train(TEXTS * 5, size=60)


@pytest.mark.parametrize(
  "text, expected",
  [
    ("BIN  BLUE,\tat F2 now!", "bin blue at f2 now"),
    ("Don\u2019t \u2018quote\u2019 rock 'n' roll", "don't quote rock n roll"),
    ("well-known U.S. caf\u00e9 / cafe\u0301", "well known u s caf\u00e9 caf\u00e9"),
    ("\u041f\u0440\u0438\u0432\u0435\u0442, \u65e5\u672c\uff11!", "\u043f\u0440\u0438\u0432\u0435\u0442 \u65e5\u672c1"),
    ("... -- ''", ""),
  ],
)
def test_normalised_texts(text, expected):
  assert normalise(text) == expected == normalise(expected)


@pytest.mark.parametrize("kind", ["characters", "pieces"])
def test_texts_come_back(kind, request):
  tokeniser = Characters.of(TEXTS) if kind == "characters" else request.getfixturevalue("pieces")
  for text in (*TEXTS, "nine two at now", "Two, NOW!"):
    ids = tokeniser.encode(text)
    assert 0 < min(ids) and max(ids) < tokeniser.end == tokeniser.size - 1
    assert tokeniser.decode(ids) == normalise(text)
    words = [tokeniser.decode(ids[start:stop]) for start, stop in tokeniser.words(ids)]
    assert words == normalise(text).split()
  again = from_dict(json.loads(json.dumps(tokeniser.to_dict())))
  assert again.encode(TEXTS[0]) == tokeniser.encode(TEXTS[0]) and again.digest == tokeniser.digest
  assert tokeniser.digest != Characters("abc ").digest
  with pytest.raises(ValueError, match="not ids of text"):
    tokeniser.decode([1, tokeniser.end])


@pytest.mark.parametrize("kind", ["characters", "pieces"])
def test_texts_that_cannot_be_written_are_refused_in_one_sentence(kind, request):
  tokeniser = Characters.of(TEXTS) if kind == "characters" else request.getfixturevalue("pieces")
  for text, reason in (("blue \u00fc \u0436", "'\u00fc \u0436', which"), ("", "is empty"), ("?!", "has no letter")):
    with pytest.raises(InputError, match=reason):
      tokeniser.encode(text)
  assert encode_all(tokeniser, ["red", "", "\u00fc", "blue"])[1:3] == [None, None]
  with pytest.raises(InputError, match="2 of 3 transcripts .* another language"):
    encode_all(tokeniser, ["\u043a\u043e\u0442", "\u043f\u0451\u0441", "red", ""])


def test_pieces_are_words_and_parts_of_them_and_the_same_twice(pieces):
  assert len(pieces.encode(TEXTS[0])) < len(TEXTS[0])
  assert Pieces.train(TEXTS * 5, size=60).digest == pieces.digest
  assert len(pieces._model) < 20_000  # it goes into the metadata of every checkpoint


def test_units_of_a_recogniser_reorder_the_pieces(pieces, tmp_path):
  model, units = tmp_path / "a.model", tmp_path / "units.txt"
  model.write_bytes(pieces._model)
  listed = ["<unk>", *reversed([symbol for symbol in pieces.symbols[1:] if symbol])]
  units.write_text("".join(f"{symbol} {i + 1}\n" for i, symbol in enumerate(listed)), "utf-8")
  other = Pieces.load(model, units=units)
  with pytest.raises(InputError, match="more than the 20"):
    Pieces.load(model, size=20)
  assert other.size == len(listed) + 2 and other.decode(other.encode(TEXTS[1])) == TEXTS[1]
  assert other.encode(TEXTS[1]) != pieces.encode(TEXTS[1])
  assert other.encode(TEXTS[1]) == [listed.index(pieces.symbols[i - 1]) + 1 for i in pieces.encode(TEXTS[1])]
  assert from_dict(other.to_dict()).encode(TEXTS[1]) == other.encode(TEXTS[1])


def test_a_model_of_capitals_gets_capitals(monkeypatch):
  pytest.importorskip("sentencepiece")
  monkeypatch.setattr("synclipmae_jax.text.tokenisers.normalise", str.upper)
  capitals = Pieces.train(TEXTS * 5, size=60)
  monkeypatch.undo()
  assert any("BLUE" in symbol or "B" in symbol for symbol in capitals.symbols)
  assert capitals.decode(capitals.encode(TEXTS[0])) == TEXTS[0]


def test_files_that_are_no_models_are_refused(tmp_path):
  pytest.importorskip("sentencepiece")
  (tmp_path / "a.model").write_bytes(b"not a model")
  assert len(Pieces.train(TEXTS, size=200).symbols) == 200  # more than these texts have
  for path in (tmp_path / "a.model", tmp_path / "absent.model"):
    with pytest.raises(InputError, match=f"{path.name} cannot be used"):
      Pieces.load(path)
  with pytest.raises(InputError, match="sentencepiece cannot make 3 pieces"):
    Pieces.train(TEXTS, size=3)
  for make in (lambda: Pieces.train(["?"], size=30), lambda: Characters.of(["", "?"])):
    with pytest.raises(InputError, match="no transcript"):
      make()


def test_other_versions_and_kinds_are_refused():
  stored = Characters.of(TEXTS).to_dict()
  with pytest.raises(InputError, match=f"version 0; this package has version {normaliser.VERSION}"):
    from_dict({**stored, "normaliser": 0})
  with pytest.raises(InputError, match="'words': characters or pieces"):
    from_dict({**stored, "kind": "words"})


def test_a_missing_sentencepiece_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "sentencepiece", None)
  with pytest.raises(InputError, match=r"synclipmae_jax\[text\]"):
    Pieces.train(TEXTS, size=60)


def test_the_room_loads_no_jax():
  code = "import sys, synclipmae_jax.text.tokenisers; assert not {'jax', 'flax'} & set(sys.modules)"
  subprocess.run([sys.executable, "-c", code], check=True)
