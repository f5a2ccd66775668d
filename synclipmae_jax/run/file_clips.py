"""The clips of one file, as evaluators take them: one face in one shot with sound, at most 10 s each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from synclipmae_jax.data import labels, pipeline
from synclipmae_jax.data.clips import Settings, cut_file
from synclipmae_jax.data.corpora import SourceItem
from synclipmae_jax.types import EvalClip


def clips_of(path: str, settings: Settings, folder: Path) -> Iterator[EvalClip]:
  """Writes the clips of a file into `folder` and reads them. Raises InputError if it yields none."""
  sidecar = Path(path).with_suffix(".faces.npz")
  faces_path = sidecar if os.path.exists(sidecar) else None
  item = SourceItem(
    key=Path(path).stem, path=Path(path), faces_path=faces_path, corpus="", split="", identity="", split_group=""
  )
  cut = cut_file(item, settings, folder, check=lambda: None)
  for number, entry in enumerate(cut.clips):
    stem = folder / f"{number:02d}"
    with np.load(stem.with_suffix(".npz")) as boxes:
      record = {name: boxes[name] for name in ("face_box", "mouth_box")}
    record |= {"mp4": stem.with_suffix(".mp4").read_bytes(), "flac": stem.with_suffix(".flac").read_bytes()}
    record |= {"key": entry["key"], "corpus": "", "identity": "", "n_frames": entry["frames"]}
    record |= labels.cut(vars(item), start=entry["start"], frames=entry["frames"], whole=entry["whole"])
    yield pipeline.eval_clip(record | {"has_lag": False, "truth_names": ()}, settings.size)
