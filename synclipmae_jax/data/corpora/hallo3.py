"""The training data of Hallo3 (Cui et al. 2024): more than 70 h of talking heads and 50 scenes in the wild, English.

  videos/0001.mp4   caption/0001.txt

Folders that its own preprocessing adds beside them (`images`, `audios`, `face_mask`, ...) are not read. A caption
describes the picture and is no transcript, so it stays where it is, and the provenance names it. Scenes in the wild may
have no face or no speech: the gates of `prepare` refuse them. Nothing says who speaks: every number is a group of its
own, divided by `splits.assign`. Licence: CC BY-NC-ND 4.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from synclipmae_jax.data.corpora import SourceItem, file_key, reading


def recognises(raw: Path) -> bool:
  """Whether a folder `videos` with files has a folder `caption` beside it."""
  folders = {path.parent for path in reading.walk(raw) if path.parent.name == "videos"}
  return any((folder.parent / "caption").is_dir() for folder in folders)


def items(raw: Path) -> Iterator[SourceItem]:
  """Every video in a folder `videos`, in order of its path."""
  for path in reading.videos(raw):
    if path.parent.name == "videos":
      number = reading.name(path.stem)
      caption = path.parent.parent / "caption" / f"{path.stem}.txt"
      yield SourceItem.at(
        raw,
        path,
        corpus="hallo3",
        identity=number,
        split_group=number,
        provenance={"caption": file_key(caption.relative_to(raw)) if caption.is_file() else "missing"},
      )
