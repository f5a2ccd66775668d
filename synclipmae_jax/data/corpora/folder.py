"""Any folder of videos. A sub-folder is one person, whose files stay together; a file at the top stands for itself.

Beside `name.mp4` may stand `name.faces.npz` (`data.faces.sidecars.read_sidecar`) and `name.txt`, the transcript.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from synclipmae_jax.data.corpora import SourceItem, file_key
from synclipmae_jax.data.corpora.splits import by_hash

_SIDECARS = (".faces.npz", ".txt")


def recognises(raw: Path) -> bool:
  return True


def items(raw: Path) -> Iterator[SourceItem]:
  """Every file below `raw`, in order of its path; see `splits.by_hash`."""
  paths = sorted(
    Path(folder, name) for folder, _, names in os.walk(raw) for name in names
    if not any(part.startswith(".") for part in Path(folder, name).relative_to(raw).parts)
  )  # fmt: skip
  stems = {path.with_suffix("") for path in paths if not path.name.endswith(_SIDECARS)}
  paths = [path for path in paths if not any(_without(path, end) in stems for end in _SIDECARS)]
  groups = {path: _group(path.relative_to(raw)) for path in paths}
  splits = by_hash(groups.values(), test=0.1, val=0.1)
  for path, group in groups.items():
    yield SourceItem(
      path=path,
      key=file_key(path.relative_to(raw)),
      corpus="folder",
      split=splits[group],
      identity=group,
      split_group=group,
      text=_text(path.with_suffix(".txt")),
      faces_path=path.with_suffix(".faces.npz"),
    )


def _without(path: Path, end: str) -> Path | None:
  return path.with_name(path.name.removesuffix(end)) if path.name.endswith(end) and path.name != end else None


def _group(relative: Path) -> str:
  return file_key(relative.parent if relative.parent.name else relative)


def _text(path: Path) -> str:
  try:
    return path.read_text("utf-8").strip()
  except (OSError, UnicodeDecodeError):
    return ""
