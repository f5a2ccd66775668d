"""VFHQ (Xie et al. 2022): more than 16,000 clips of interviews, described by their names.

  meta_info/Clip+<YouTube id>+P<person>+C<clip>+F<first>-<last>.txt   <anywhere>/<the same name>.mp4

The text of a clip says the height, width and frame rate of the video and the box of the face, in pixels; it becomes
provenance. Clips without a file are listed as missing, and so are folders of pictures: they have no sound. There are no
labels and no official split: YouTube videos are divided by `splits.assign`.

Uncertain: the licence (research only) and whether the official package of cropped pictures lacks sound, which then has
to come from YouTube; the lines of the texts are read as a public downloader does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from synclipmae_jax.data.corpora import SourceItem, reading
from synclipmae_jax.types import InputError

# A YouTube id may hold - and _, but no +.
_CLIP = re.compile(r"Clip\+(?P<id>[^+]+)\+P(?P<person>\d+)\+C(?P<clip>\d+)\+F(?P<first>\d+)-(?P<last>\d+)")
_FIELDS = {"H": "height", "W": "width", "FPS": "fps"}


def recognises(raw: Path) -> bool:
  """Whether a file is named like a clip."""
  return any(_CLIP.fullmatch(path.stem) for path in reading.walk(raw))


def items(raw: Path) -> Iterator[SourceItem]:
  """Every clip with a file or a text, in order of its name."""
  texts, _ = reading.by_stem(path for path in reading.walk(raw) if path.suffix.lower() == ".txt")
  chosen, doubles = reading.by_stem(reading.videos(raw))
  for stem in sorted(texts.keys() | chosen.keys()):
    if (found := _CLIP.fullmatch(stem)) is None:
      continue
    path = chosen.get(stem, raw / "clips" / f"{stem}.mp4")
    facts = {"youtube": found["id"], "first_frame": found["first"], "last_frame": found["last"]}
    facts |= _described(texts[stem]) if stem in texts else {}
    yield SourceItem.at(
      raw,
      path,
      corpus="vfhq",
      identity=f"{found['id']}+P{found['person']}",
      split_group=found["id"],
      provenance=reading.provenance(facts | reading.doubles_note(raw, doubles.get(stem, []))),
    )


def _described(path: Path) -> dict[str, Any]:
  """What the text of a clip says; a damaged one is named and does not cost the clip."""
  facts: dict[str, Any] = {}
  try:
    for first, *values in reading.read_rows(path, 1):
      kind = first.rstrip(":").upper()
      if kind in _FIELDS:
        facts[_FIELDS[kind]] = f"{reading.number(values[-1]):g}"
      elif kind == "CROP":
        facts["box"] = reading.box(*values[-4:])
  except (InputError, ValueError, IndexError, TypeError) as error:
    return {"damaged": error}
  return facts
