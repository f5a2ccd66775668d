from __future__ import annotations

import collections
import os
import pickle
import unicodedata

import pytest
from trees import write

from synclipmae_jax.data.corpora import reading
from synclipmae_jax.types import InputError, Segment


class _Runs:
  """A pickle that runs a command when it is read."""

  def __init__(self, command):
    self.command = command

  def __reduce__(self):
    return os.system, (self.command,)


def test_a_pickle_of_plain_values_is_read(tmp_path):
  plain = {"act": {"a_0": [["talk", [0, 1.5, 1.5, 0]]]}, "set": {1, 2}, "pair": (None, True), "raw": b"x"}
  for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
    path = write(tmp_path / "a.pkl", pickle.dumps(plain, protocol))
    if protocol >= 4 or protocol < 0:  # older protocols call `set` and `codecs.encode`
      assert reading.read_pickle(path) == plain
  ordered = write(tmp_path / "o.pkl", pickle.dumps(collections.OrderedDict(plain)))
  assert reading.read_pickle(ordered) == plain
  old = {name: plain[name] for name in ("act", "pair")}
  for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
    assert reading.read_pickle(write(tmp_path / "a.pkl", pickle.dumps(old, protocol))) == old


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path, protocol):
  proof = tmp_path / "ran"
  path = write(tmp_path / "a.pkl", pickle.dumps({"act": _Runs(f"touch {proof}")}, protocol))
  with pytest.raises(InputError, match=r"a.pkl is not read: it holds \w+.system, and only plain values are taken"):
    reading.read_pickle(path)
  assert not proof.exists()
  pickle.loads(path.read_bytes())
  assert proof.exists(), "an ordinary reader runs it"


@pytest.mark.parametrize(
  ("content", "words"),
  [
    (b"", "is damaged"),
    (b"\x80\x04\x95\xff\xff", "is damaged"),
    (pickle.dumps({"act": 1})[:-3], "is damaged"),
    (pickle.dumps([1]), "it is a list, not a mapping"),
    (b"cbuiltins\neval\n(S'1'\ntR.", "it holds builtins.eval"),
    (b"Pelsewhere\n.", "refers to objects outside"),
    (pickle.dumps(reading.EMOTIONS.__class__.__mro__), "it holds builtins.tuple"),
  ],
)
def test_damaged_pickles_are_one_sentence(tmp_path, content, words):
  with pytest.raises(InputError, match=words):
    reading.read_pickle(write(tmp_path / "a.pkl", content))


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": NaN', "\udcff", "[" * 100_000], ids=lambda text: text[:9])
def test_damaged_json_is_one_sentence(tmp_path, content):
  with pytest.raises(InputError, match=r"a.json (is damaged|cannot be read)"):
    reading.read_json(write(tmp_path / "a.json", content.encode("utf-8", "surrogateescape")))


def test_marks_of_editors_are_removed(tmp_path):
  assert reading.read_json(write(tmp_path / "a.json", b'\xef\xbb\xbf{"a": 1}\r\n')) == {"a": 1}
  rows = reading.read_rows(write(tmp_path / "a.txt", b"\xef\xbb\xbfa  b \r\n\r\n\tc d e\n"), 2)
  assert rows == [["a", "b"], ["c", "d", "e"]]
  with pytest.raises(InputError, match=r"a.txt, line 2: 2 values are expected, not 'c'"):
    reading.read_rows(write(tmp_path / "a.txt", "a b\n c \n"), 2)


def test_boxes_are_in_pixels_or_fractions_and_others_are_none():
  assert reading.box(0.25, 0.1, 0.5, 1) == "0.25 0.1 0.5 1 fractions"
  assert reading.box(-0.02, 0.1, 1.02, 1) == "-0.02 0.1 1.02 1 fractions"
  assert reading.box("412", 0, 1011, 599.5) == "412 0 1011 599.5 pixels"
  for wrong in (
    (0.5, 0, 0.5, 1),
    (0, 1, 1, 0),
    (0, 0, None, 1),
    (0, 0, "x", 1),
    (0, 0, float("nan"), 1),
    (0, 0, 1e999, 1),
  ):
    with pytest.raises(ValueError, match=r"no box|no number"):
      reading.box(*wrong)
  for wrong in (True, 10**400, [1], "1_0x"):
    with pytest.raises(ValueError, match="is no number"):
      reading.number(wrong)


def test_times_that_cannot_be_are_no_segment():
  assert reading.segment("0.5", 1, "nod") == Segment(0.5, 1.0, "nod")
  for start, end in ((-1, 2), (2, 1), ("nan", 1), (0, "inf")):
    with pytest.raises(ValueError, match=r"nod from|no number"):
      reading.segment(start, end, "nod")


def test_emotions_have_one_name_in_all_corpora():
  stated = "neutral Angry contempt disgusted happiness fearful sad surprised".split()
  assert tuple(map(reading.emotion, stated)) == reading.EMOTIONS
  assert reading.emotion(" Bored ") == "bored" and reading.label("Shake-head ") == "shake_head"
  with pytest.raises(ValueError, match="no name"):
    reading.emotion(None)


def test_of_doubles_one_is_taken_and_whole_downloads_last(tmp_path):
  composed, decomposed = (unicodedata.normalize(form, "é_1") for form in ("NFC", "NFD"))
  for name in ("raw/a_1.mp4", "sub/a_1.mkv", "sub/a_1.mp4", f"raw/{decomposed}.mp4"):
    write(tmp_path / name)
  chosen, doubles = reading.by_stem(reading.videos(tmp_path))
  assert chosen == {"a_1": tmp_path / "sub/a_1.mkv", composed: tmp_path / f"raw/{decomposed}.mp4"}
  assert reading.doubles_note(tmp_path, doubles["a_1"]) == {"doubles": "sub/a_1.mp4, raw/a_1.mp4"}
  assert reading.doubles_note(tmp_path, []) == {}


def test_tables_are_found_in_any_case_and_a_little_deeper(tmp_path):
  assert reading.find(tmp_path, "info.json") is None
  deep = write(tmp_path / "x" / "y" / "INFO.json")
  write(tmp_path / "x" / "y" / "z" / "t.txt")
  write(tmp_path / ".hidden" / "t.txt")
  (tmp_path / "info.json").mkdir()
  assert reading.find(tmp_path, "info.json") == deep and reading.find(tmp_path, "t.txt") is None
