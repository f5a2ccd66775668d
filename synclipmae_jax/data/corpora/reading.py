"""Reading what others wrote about the files of a corpus: tables, JSON, pickles, boxes, names of labels, and the files.

Encodings and file systems leave marks on all of it (a byte order mark, decomposed letters, an extra folder level, the
same clip twice); they are removed here, so that the corpora only say what stands where.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import pickle
import re
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from synclipmae_jax.data.corpora import file_key
from synclipmae_jax.data.media.containers import SUFFIXES
from synclipmae_jax.types import InputError, Segment

# In the order of CelebV-HQ. All corpora use these names, so that their mixture has one meaning for each.
EMOTIONS = ("neutral", "anger", "contempt", "disgust", "happy", "fear", "sadness", "surprise")
_SYNONYMS = {
  "angry": "anger", "disgusted": "disgust", "fearful": "fear", "happiness": "happy", "joy": "happy", "sad": "sadness",
  "surprised": "surprise",
}  # fmt: skip
_MANY = 10_000  # entries of a folder of clips, which holds no tables
_LOOK = 200  # videos by which a corpus is recognised
_DEPTH = 2  # folders below the given one in which tables are looked for
# What downloaders leave of a file that is not complete: "a.temp.mp4", "a.f137.mp4" (a stream to be merged), "a.part".
_PARTIAL = re.compile(r"\.(part|temp|tmp|f\d+)(-\w+)?$", re.IGNORECASE)
_ARCHIVE = re.compile(
  r"\.(tar|tgz|zip|7z|rar)([.-][\w-]{1,8})?$", re.IGNORECASE
)  # "a.tgz", "a.tar.gz", "a.tgz.part-aa"
_DOWNLOADED = ("raw", "downloaded", "original", "originals")  # folders of whole videos, before they were cut


# -- files --


def walk(raw: Path) -> Iterator[Path]:
  """Every file below `raw` in order of its path, but hidden ones and those in hidden folders."""
  for folder, below, names in os.walk(raw):
    below[:] = sorted(name for name in below if not name.startswith("."))
    for name in sorted(names):
      if not name.startswith("."):
        yield Path(folder, name)


def complete(path: Path) -> bool:
  """False for what a downloader leaves of a video that it has not finished."""
  return not _PARTIAL.search(path.stem)


def videos(raw: Path) -> list[Path]:
  """Every complete video below `raw` in order. Raises InputError if there are only archives."""
  found, archives = [], []
  for path in walk(raw):
    if path.suffix.lower() in SUFFIXES and complete(path):
      found.append(path)
    elif _ARCHIVE.search(path.name):
      archives.append(path)
  if archives and not found:
    raise InputError(f"{raw} holds archives and no videos: unpack {archives[0].name} first")
  return found


def mostly(raw: Path, matches: Callable[[Path], Any]) -> bool:
  """Whether at least half of the first videos below `raw` match, by which a corpus is recognised."""
  found = itertools.islice((path for path in walk(raw) if path.suffix.lower() in SUFFIXES), _LOOK)
  matched = [bool(matches(path)) for path in found]
  return sum(matched) * 2 >= len(matched) > 0


def name(text: str) -> str:
  """A name as it is compared: as text, and its letters composed, since some file systems decompose them."""
  return unicodedata.normalize("NFC", file_key(Path(text)))


def by_stem(paths: Iterable[Path]) -> tuple[dict[str, Path], dict[str, list[Path]]]:
  """Name without suffix -> the file, and -> its doubles, which are left out.

  Of several files with one name the first in order is taken, those in folders of whole downloads last.
  """
  order = sorted(paths, key=lambda path: (path.parent.name.lower() in _DOWNLOADED, path))
  chosen: dict[str, Path] = {}
  doubles: dict[str, list[Path]] = {}
  for path in order:
    if chosen.setdefault(name(path.stem), path) != path:
      doubles.setdefault(name(path.stem), []).append(path)
  return chosen, doubles


def doubles_note(raw: Path, doubles: Sequence[Path]) -> dict[str, str]:
  """An entry of the provenance that names files left out because another has the same name."""
  return {"doubles": ", ".join(file_key(path.relative_to(raw)) for path in doubles)} if doubles else {}


def find(raw: Path, *names: str) -> Path | None:
  """The file with one of these names (of any case) in `raw` or the next folders below, the uppermost first."""
  wanted, level = {each.lower() for each in names}, [raw]
  for _ in range(_DEPTH + 1):
    below: list[Path] = []
    for folder in level:
      try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
      except OSError:
        continue
      for entry in entries:
        if entry.name.lower() in wanted and os.path.isfile(entry):  # unlike is_file, False for a circle of links
          return Path(entry.path)
      if len(entries) < _MANY:
        below += [Path(entry.path) for entry in entries if not entry.name.startswith(".") and os.path.isdir(entry)]
    level = below
  return None


# -- their content --


def read_text(path: Path) -> str:
  """A text without its byte order mark. Raises InputError if it cannot be read."""
  try:
    return path.read_text("utf-8-sig")
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"{path} cannot be read ({error})") from error


def read_rows(path: Path, least: int) -> list[list[str]]:
  """The words of every line that has some. Raises InputError for a line with fewer than `least`."""
  rows = []
  for number, line in enumerate(read_text(path).splitlines(), 1):
    if words := line.split():
      if len(words) < least:
        raise InputError(f"{path}, line {number}: {least} values are expected, not {line.strip()!r}")
      rows.append(words)
  return rows


def read_json(path: Path) -> dict[str, Any]:
  """A JSON object. Raises InputError if it is damaged."""
  try:
    content = json.loads(read_text(path))
  except (ValueError, RecursionError) as error:
    raise InputError(f"{path} is damaged ({error})") from error
  return mapping(content, path, "it")


def mapping(value: Any, path: Path, what: str) -> dict[str, Any]:
  """`value`, which must be a mapping. Raises InputError otherwise."""
  if not isinstance(value, dict):
    raise InputError(f"{path} is damaged ({what} is a {type(value).__name__}, not a mapping)")
  return value


def read_pickle(path: Path) -> dict[str, Any]:
  """A pickled mapping of plain values. Raises InputError for a damaged file and for one that would run any code.

  A pickle can call every function of Python. This reader builds dicts, lists, tuples, sets, texts and numbers only.
  """
  try:
    with path.open("rb") as file:
      content = _PlainUnpickler(file).load()
  except InputError as error:
    raise InputError(f"{path} {error}") from None
  except Exception as error:  # a damaged pickle raises nearly any exception
    raise InputError(f"{path} is damaged ({type(error).__name__}: {error})") from error
  return mapping(content, path, "it")


class _PlainUnpickler(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> Any:
    if (module, name) == ("collections", "OrderedDict"):
      return OrderedDict
    raise InputError(f"is not read: it holds {module}.{name}, and only plain values are taken from a pickle")

  def persistent_load(self, pid: Any) -> Any:
    raise InputError("is not read: it refers to objects outside of it")


def number(value: Any) -> float:
  """A finite number. Raises ValueError otherwise."""
  if isinstance(value, (int, float, str)) and not isinstance(value, bool):
    with contextlib.suppress(ValueError, OverflowError):
      if math.isfinite(found := float(value)):
        return found
  raise ValueError(f"{str(value)[:40]!r} is no number")


def segment(start: Any, end: Any, name: str) -> Segment:
  """A segment with times in seconds. Raises ValueError for times that cannot be right."""
  first, last = number(start), number(end)
  if not 0 <= first <= last:
    raise ValueError(f"{name} from {first:g} to {last:g} s")
  return Segment(first, last, name)


def box(x0: Any, y0: Any, x1: Any, y1: Any) -> str:
  """A box for the provenance, and its unit: "x0 y0 x1 y1 pixels", or "fractions" if none is above 1.

  Raises ValueError for a box that is none.
  """
  corners = [number(value) for value in (x0, y0, x1, y1)]
  if not (corners[0] < corners[2] and corners[1] < corners[3]):
    raise ValueError(f"{corners} is no box")
  # Boxes that are expanded or predicted may reach slightly outside of the picture.
  unit = "fractions" if max(corners) <= 1.5 else "pixels"
  return " ".join(f"{value:g}" for value in corners) + f" {unit}"


def label(text: Any) -> str:
  """The name of a label as it is compared: "Shake head " -> "shake_head". Raises ValueError if it is no text."""
  if not isinstance(text, str):
    raise ValueError(f"{text!r} is no name of a label")
  return re.sub(r"[\s-]+", "_", text.strip().lower())


def emotion(text: Any) -> str:
  """The name in `EMOTIONS` of an emotion; another name remains as it is."""
  found = label(text)
  return _SYNONYMS.get(found, found)


def provenance(known: Mapping[str, Any]) -> dict[str, str]:
  """What is known, as texts."""
  return {key: str(value) for key, value in known.items() if value not in (None, "")}
