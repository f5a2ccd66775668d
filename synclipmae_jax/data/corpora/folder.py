"""Any folder of videos. A sub-folder is one person, whose files stay together; a file at the top stands for itself.

Beside `name.mp4` may stand `name.faces.npz` (`data.faces.backends.precomputed`) and `name.txt`, the transcript.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from synclipmae_jax.data.corpora import SourceItem

TEST_SHARE = 0.1
_SIDECARS = (".faces.npz", ".txt")


def items(raw: Path) -> Iterator[SourceItem]:
  """Every file below `raw`, in order of its path; split by a hash of its group, so new files move no old one.

  Only where chance leaves a split empty (a handful of groups) does the group with the outermost hash fill it.
  """
  paths = sorted(
    Path(folder, name) for folder, _, names in os.walk(raw) for name in names
    if not any(part.startswith(".") for part in Path(folder, name).relative_to(raw).parts)
  )  # fmt: skip
  stems = {path.with_suffix("") for path in paths if not path.name.endswith(_SIDECARS)}
  paths = [path for path in paths if not any(_without(path, end) in stems for end in _SIDECARS)]
  groups = {path: _group(path.relative_to(raw)) for path in paths}
  draw = {group: int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) / 2**32 for group in groups.values()}
  test = {group for group, value in draw.items() if value < TEST_SHARE}
  if len(draw) > 1 and not test:
    test = {min(draw, key=draw.__getitem__)}
  elif len(draw) > 1 and len(test) == len(draw):
    test.remove(max(draw, key=draw.__getitem__))
  for path, group in groups.items():
    yield SourceItem(
      path=path,
      key=_name(path.relative_to(raw)),
      corpus="folder",
      split="test" if group in test else "train",
      identity=group,
      split_group=group,
      text=_text(path.with_suffix(".txt")),
      faces_path=path.with_suffix(".faces.npz"),
    )


def _without(path: Path, end: str) -> Path | None:
  return path.with_name(path.name.removesuffix(end)) if path.name.endswith(end) and path.name != end else None


def _name(relative: Path) -> str:
  return os.fsencode(relative.as_posix()).decode("utf-8", "backslashreplace")  # file names need not be text


def _group(relative: Path) -> str:
  return _name(relative.parent if relative.parent.name else relative)


def _text(path: Path) -> str:
  try:
    return path.read_text("utf-8").strip()
  except (OSError, UnicodeDecodeError):
    return ""
