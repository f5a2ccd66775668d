"""Any folder of videos. A sub-folder is one person, whose files stay together; a file at the top stands for itself.

A person is the uppermost folder that distinguishes files: folders that hold everything, and leading ones that name a
split or a kind of file (`train`, `videos`), are none. Of files at the top, clips of one YouTube video (`<id>_<n>`, with
an id of 11 characters) stay together. Beside `name.mp4` may stand `name.faces.npz` (`data.faces.sidecars.read_sidecar`)
and `name.txt`, the transcript.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from synclipmae_jax.data.corpora import SourceItem, file_key
from synclipmae_jax.data.corpora.reading import walk
from synclipmae_jax.data.media.containers import SUFFIXES

_SIDECARS = (".faces.npz", ".txt")
_NO_PERSON = frozenset(
  "train training val valid validation dev test testing trainval pretrain eval"
  " video videos clips mp4 raw processed cropped downloaded data audio audios".split()
)
_YOUTUBE = re.compile(r"([\w-]{11})(?:_\d+){1,2}", re.ASCII)


def recognises(raw: Path) -> bool:
  return True


def items(raw: Path) -> Iterator[SourceItem]:
  """Every file below `raw`, in order of its path."""
  paths = sorted(walk(raw))
  stems = {path.with_suffix("") for path in paths if not path.name.endswith(_SIDECARS)}
  paths = [path for path in paths if not any(_without(path, end) in stems for end in _SIDECARS)]
  groups = _groups([path.relative_to(raw) for path in paths])
  for path, group in zip(paths, groups, strict=True):
    yield SourceItem.at(
      raw,
      path,
      corpus="folder",
      identity=group,
      split_group=group,
      text=_text(path.with_suffix(".txt")),
    )


def _without(path: Path, end: str) -> Path | None:
  return path.with_name(path.name.removesuffix(end)) if path.name.endswith(end) and path.name != end else None


def _groups(files: Sequence[Path]) -> list[str]:
  """The person, or else the source, of every file, given by its path below the raw folder."""
  footage = [file for file in files if file.suffix.lower() in SUFFIXES] or files
  shared = Path(os.path.commonpath([file.parent for file in footage])).parts if footage else ()
  persons = [_person(file, len(shared)) for file in files]
  if not any(persons):  # one folder with all files, which may be a person's
    persons = [_person(file, max(0, len(shared) - 1)) for file in files]
  sources = [person or _source(file) for person, file in zip(persons, files, strict=True)]
  if len(set(sources)) > 1:
    return sources
  return [person or file_key(file) for person, file in zip(persons, files, strict=True)]  # "recording_7_1", ...


def _person(file: Path, shared: int) -> str:
  """The uppermost folder below the `shared` ones that may be a person's; "" if there is none."""
  folders = itertools.dropwhile(lambda folder: folder.lower() in _NO_PERSON, file.parent.parts[shared:])
  return next((file_key(Path(folder)) for folder in folders), "")


def _source(file: Path) -> str:
  """The YouTube id that the name of a clip begins with, or the file itself."""
  found = _YOUTUBE.fullmatch(file.stem)
  return found[1] if found else file_key(file)


def _text(path: Path) -> str:
  try:
    return path.read_text("utf-8").strip()
  except (OSError, UnicodeDecodeError):
    return ""
