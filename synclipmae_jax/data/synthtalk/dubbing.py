"""Triples of videos to measure dubbing on: a person, who says what is to be said, and the person saying it in truth.

People are flat faces of the split `test`, which no training saw, without microphones.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np

from synclipmae_jax.data.synthtalk.clip import CLIPS_A_PERSON, Clip, make_clip
from synclipmae_jax.data.synthtalk.corpus import write_clip

FOLDERS = ("source", "drive", "truth")


def write_dubbing(out: str | os.PathLike, count: int, *, seconds: float = 4.0, size: int = 160, seed: int = 3) -> None:
  """Writes `count` videos of one name each into the folders `FOLDERS` of `out`; those that are there are kept.

  `source`: a person; `drive`: another one, with the mouth and the sound to take over; `truth`: the first person in the
  same pose, with the mouth and the sound of the second.
  """
  for number in range(count):
    # Clips of even number have no lag.
    first, second = (_still_free(CLIPS_A_PERSON * (number + step), seconds=seconds, seed=seed) for step in (0, count))
    person = {name: getattr(first, name) for name in ("face", "scene", "ambient", "crf", "identity")}
    clips = first, second, dataclasses.replace(second, **person)
    for folder, clip in zip(FOLDERS, clips, strict=True):
      place = Path(out, folder)
      place.mkdir(parents=True, exist_ok=True)
      key = f"pair_{number:03d}"
      if not (place / f"{key}.mp4").exists():
        write_clip(dataclasses.replace(clip, key=key), place, size=size)


def _still_free(index: int, *, seconds: float, seed: int) -> Clip:
  """A test clip without an occluder."""
  clip = make_clip(index, seed=seed, split="test", seconds=seconds)
  return dataclasses.replace(clip, occluder=np.tile([0.0, 3.0], (clip.frames, 1)))
