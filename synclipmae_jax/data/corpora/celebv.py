"""What CelebV-HQ and CelebV-Text share: a JSON of clips cut out of YouTube videos, and files named by the clips.

Their scripts write <clip>.mp4 into `processed` (MARLIN's into `cropped`); it is found in any folder, and the whole
videos beside it (`raw/<YouTube id>.mp4`) are not read. Every clip of the JSON is an item, whether or not its file is
there: videos vanish from YouTube. The subject is not known; all clips of one YouTube video are one group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from synclipmae_jax.data.corpora import reading
from synclipmae_jax.types import InputError

# In the order of CelebV-HQ's JSON, as three public repositories have it.
ACTIONS = tuple(
  "blow chew close_eyes cough cry drink eat frown gaze glare head_wagging kiss laugh listen_to_music look_around"
  " make_a_face nod play_instrument read shake_head shout sigh sing sleep smile smoke sneer sneeze sniff talk turn weep"
  " whisper wink yawn".split()
)


def find_table(raw: Path, name: str) -> Path:
  """The JSON of a corpus. Raises InputError if there is none."""
  if (found := reading.find(raw, name)) is None:
    raise InputError(f"there is no {name} in {raw}")
  return found


def clips(table: Path, content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """Clip -> what the JSON says of it.

  The clips are in `clips`, in `clips_set1` and `clips_set2` (of a key in both, the first is taken), or at the top.
  """
  parts = [part for part in ("clips", "clips_set1", "clips_set2") if part in content]
  found: dict[str, dict[str, Any]] = {}
  for part in parts or [""]:
    entries = reading.mapping(content[part], table, part) if part else content
    for key, entry in entries.items():
      if Path(key).name != key or not key.isprintable():
        raise InputError(f"{table} is damaged (a clip is called {key!r})")
      if part or key != "meta_info":
        found.setdefault(reading.name(key), reading.mapping(entry, table, f"clip {key}"))
  return found


def youtube_id(key: str, entry: Mapping[str, Any]) -> str:
  """The video that a clip is from: stated, or the key without its number."""
  stated = entry.get("ytb_id")
  return stated if isinstance(stated, str) and stated and stated.isprintable() else key.rsplit("_", 1)[0]


def source(key: str, entry: Mapping[str, Any]) -> dict[str, str]:
  """The provenance of a clip: its video, its time there and the box of its face, in fractions or pixels.

  CelebV-Text's README calls its seconds `start_frame` once. A damaged value is named and does not cost the clip.
  """
  facts: dict[str, Any] = {"youtube": youtube_id(key, entry), "version": entry.get("version")}
  try:
    times = entry.get("duration") or {}
    for end in ("start", "end"):
      facts[f"{end}_s"] = reading.number(times.get(f"{end}_sec", times.get(f"{end}_frame")))
    edges = entry.get("bbox") or {}
    facts["box"] = reading.box(*(edges.get(edge) for edge in ("left", "top", "right", "bottom")))
  except (ValueError, AttributeError) as error:
    facts["damaged"] = error
  return reading.provenance(facts)


def files(
  raw: Path, table: Path, keys: Mapping[str, Any], *, suffixed: bool = False
) -> Iterator[tuple[str, str, Path]]:
  """(clip, name of the file, file) in order of the clips; missing files stand where the script would write them.

  `suffixed`: names may have one more number, `<clip>_<n>`.
  """
  chosen, _ = reading.by_stem(reading.videos(raw))
  of_clip: dict[str, list[str]] = {}
  for stem in chosen:
    shorter = stem.rpartition("_")[0]
    if stem in keys:
      of_clip.setdefault(stem, []).append(stem)
    elif suffixed and shorter in keys:
      of_clip.setdefault(shorter, []).append(stem)
  for key in sorted(keys):
    for stem in sorted(of_clip.get(key, [])):
      yield key, stem, chosen[stem]
    if key not in of_clip:
      yield key, key, table.parent / "processed" / f"{key}.mp4"
