"""GRID, the audiovisual sentence corpus (Cooke et al. 2006, CC BY 4.0), as distributed or packed.

As distributed, videos lie at any depth below a folder of their speaker, and the word times (`.align`: start, end, word
a line, 25,000 units a second) in one of the usual places:

  s1/bbaf2n.mpg  or  s1/video/mpg_6000/bbaf2n.mpg  or  video/s1/bbaf2n.mpg
  s1/align/bbaf2n.align  or  align/s1/bbaf2n.align  or  alignments/s1/bbaf2n.align (or in `align` there)  or beside it

Packed, two tables at the top name the files and their labels; other files are not read:

  clips.tsv  file, speaker, split, text       words.tsv  clip, start_s, end_s, word

GRID has no official split. As distributed, speakers are divided by `splits.assign`, so those of `val` and `test` are
never seen in training. Packed, the table says the split, which may divide the sentences of a speaker. The lag is 0.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from synclipmae_jax.data.corpora import SourceItem, file_key
from synclipmae_jax.data.corpora.reading import complete, walk
from synclipmae_jax.types import InputError, Segment

_VIDEOS = (".mpg", ".mpeg", ".mp4", ".mov", ".mkv", ".avi", ".webm")
_UNITS = 25_000  # of an alignment, a second
_SILENCE = ("sil", "sp")
_SPEAKER = re.compile(r"s\d+", re.IGNORECASE)
_SLOTS = (
  {"b": "bin", "l": "lay", "p": "place", "s": "set"},
  {"b": "blue", "g": "green", "r": "red", "w": "white"},
  {"a": "at", "b": "by", "i": "in", "w": "with"},
  {letter: letter for letter in "abcdefghijklmnopqrstuvxyz"},  # all but w
  {"z": "zero", "1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6": "six", "7": "seven",
   "8": "eight", "9": "nine"},
  {"a": "again", "n": "now", "p": "please", "s": "soon"},
)  # fmt: skip
_CLIPS = ("file", "speaker", "split", "text")
_WORDS = ("clip", "start_s", "end_s", "word")


def recognises(raw: Path) -> bool:
  """Whether the packed tables are there, or the first video in a speaker's folder has a sentence for a name."""
  if (raw / "clips.tsv").exists() and (raw / "words.tsv").exists():
    return True
  first = next((path for path in _videos(raw) if _speaker(path.relative_to(raw))), None)
  return first is not None and bool(sentence(first.stem))


def items(raw: Path) -> Iterator[SourceItem]:
  """Every file of the packed table, or every video below `raw`, in order of its path."""
  return _packed(raw) if (raw / "clips.tsv").exists() else _distributed(raw)


def sentence(stem: str) -> str:
  """What the name of a file says is said in it: "bbaf2n" -> "bin blue at f two now"; "" where it is no sentence."""
  if len(stem) != len(_SLOTS):
    return ""
  words = [slot.get(letter) for slot, letter in zip(_SLOTS, stem.lower(), strict=True)]
  return " ".join(words) if all(words) else ""


def read_align(path: Path) -> tuple[Segment, ...]:
  """The words of an alignment, without its silences. Raises InputError where it is none."""
  words = []
  try:
    for line in path.read_text("ascii").splitlines():
      if line.strip():
        start, end, word = line.split()
        words.append(Segment(int(start) / _UNITS, int(end) / _UNITS, word.lower()))
  except (OSError, ValueError) as error:
    raise InputError(f"{path} is no alignment of GRID ({error})") from error
  times = [0.0, *(time for word in words for time in (word.start, word.end))]
  if times != sorted(times):
    raise InputError(f"{path} is no alignment of GRID (its times do not ascend)")
  return tuple(word for word in words if word.label not in _SILENCE)


# -- as distributed --


def _distributed(raw: Path) -> Iterator[SourceItem]:
  videos = list(_videos(raw))
  folders = {path: _speaker(path.relative_to(raw)) for path in videos}
  speakers = {path: folder.lower() or path.stem for path, folder in folders.items()}  # no folder: a speaker of its own
  for path, speaker in speakers.items():
    words, aligned = _alignment(raw, path, folders[path])
    known: dict[str, Any] = dict(text=sentence(path.stem), words=words, provenance={"alignment": aligned})
    yield _item(raw, path, speaker=speaker, split_group=speaker, **known)


def _videos(raw: Path) -> Iterator[Path]:
  return (path for path in walk(raw) if path.name.lower().endswith(_VIDEOS) and complete(path))


def _speaker(relative: Path) -> str:
  """The folder of the speaker nearest to a file; "" where there is none."""
  return next((part for part in reversed(relative.parent.parts) if _SPEAKER.fullmatch(part)), "")


def _alignment(raw: Path, video: Path, folder: str) -> tuple[tuple[Segment, ...], str]:
  """The words of a video, and where they are from or why there are none."""
  name = f"{video.stem}.align"
  above = [parent for parent in video.parents if parent == raw or raw in parent.parents]
  own = [parent / "align" for parent in above if parent.name == folder]
  top = [parent / kind / folder for parent in above for kind in ("align", "alignments")] if folder else []
  places = [video.parent, *own, *top, *(place / "align" for place in top)]
  path = next((place / name for place in places if (place / name).is_file()), None)
  if path is None:
    return (), "missing"
  try:
    return read_align(path), file_key(path.relative_to(raw))
  except InputError as error:
    return (), str(error)


# -- packed --


def _packed(raw: Path) -> Iterator[SourceItem]:
  clips = list(_table(raw / "clips.tsv", _CLIPS))
  stems = Counter(Path(row["file"]).stem for row in clips)
  words: dict[str, list[Segment]] = {}
  for row in _table(raw / "words.tsv", _WORDS) if (raw / "words.tsv").exists() else ():
    try:
      word = Segment(float(row["start_s"]), float(row["end_s"]), row["word"])
    except ValueError as error:
      raise InputError(f"{raw / 'words.tsv'}: the times of {row['clip']} are no numbers ({error})") from error
    words.setdefault(row["clip"], []).append(word)
  if twice := [stem for stem in words if stems[stem] > 1]:
    raise InputError(f"{raw / 'words.tsv'} does not say which of the files called {twice[0]} it means")
  for row in clips:
    path = raw / row["file"]
    if raw not in Path(os.path.normpath(path)).parents:
      raise InputError(f"{raw / 'clips.tsv'} names a file outside its folder: {row['file']}")
    spoken = tuple(word for word in words.get(path.stem, ()) if word.label not in _SILENCE)
    known: dict[str, Any] = dict(text=row["text"] or sentence(path.stem), words=spoken,
                 provenance={"alignment": "words.tsv" if spoken else "missing"})  # fmt: skip
    yield _item(raw, path, speaker=row["speaker"], split=row["split"], split_group=row["file"], **known)


def _table(path: Path, columns: tuple[str, ...]) -> Iterator[Mapping[str, str]]:
  """The rows of a table with tabs and a heading. Raises InputError where it is damaged."""
  try:
    with path.open(encoding="utf-8", newline="") as file:
      rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise InputError(f"{path} cannot be read ({error})") from error
  for number, row in enumerate(rows, 2):
    if any(row.get(name) is None for name in columns):
      raise InputError(f"{path}, line {number}: the columns must be {', '.join(columns)}")
  return iter(rows)


def _item(raw: Path, path: Path, *, speaker: str, text: str, words: tuple[Segment, ...], **known: Any) -> SourceItem:
  return SourceItem.at(
    raw,
    path,
    corpus="grid",
    identity=speaker,
    speaker=speaker,
    text=" ".join(word.label for word in words) or text,
    text_source="human",  # a prompt, read aloud
    words=words,
    lag=0,
    **known,
  )
