"""`synclipmae emotion VIDEO… --probe DIR`: the emotion or the actions of a face, of the file and over time.

DIR is a run of configs/probe.py. A probe knows the classes that it was fitted on and always names one of them (of one
emotion) or any number (of actions); it holds for faces like those it was fitted on: one of SynthTalk says nothing about
people. The sound is not read, so that a silent file will do. Of several faces, the one visible in most frames is
labelled. Each label over time is that of a window of --window seconds, fewer frames than the probe was fitted for, and
less certain.

--csv has a row for every label of the file (part: file) and for every stretch with one label (part: stretch). --plot
draws the probabilities over time.

Exit status: 0 if every file was labelled, 1 if some of several were not, 2 for wrong arguments or a single bad file.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from synclipmae_jax.apps.footage import (
  add_faces,
  complain,
  exit_status,
  find_videos,
  keep_compiled,
  outputs,
  refuse_inputs,
  remark,
  tell_fallback,
  with_ending,
)
from synclipmae_jax.data.output_file import writing
from synclipmae_jax.types import FPS, InputError

if TYPE_CHECKING:
  from synclipmae_jax.probing.over_time import FileLabels

HEAD = ("file", "part", "start", "end", "label", "probability")


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    "synclipmae emotion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("videos", nargs="+", metavar="VIDEO", help="a file, a folder or a pattern")
  add_faces(parser)
  parser.add_argument("--probe", metavar="DIR", required=True, help="a run of configs/probe.py, or its probe.npz")
  parser.add_argument("--checkpoint", metavar="DIR", help="the encoder of the probe (default: the embedded one)")
  parser.add_argument("--window", type=float, default=1.0, metavar="S", help="seconds of a label over time (default 1)")
  parser.add_argument("--json", action="store_true", help="print one object (folder, pattern, several files: an array)")
  parser.add_argument("--csv", metavar="FILE", help="write one row a label")
  parser.add_argument("--plot", metavar="PNG", help="draw the labels over time (of several: a folder)")
  args = parser.parse_args(argv)
  return exit_status("emotion", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
  from synclipmae_jax.inference.silent import embed_pictures
  from synclipmae_jax.pretrained import SyncLipMAE
  from synclipmae_jax.probing.over_time import label_file
  from synclipmae_jax.probing.saved import SavedProbe
  from synclipmae_jax.run.feature_encoders import SYNCLIPMAE, visual_hash

  videos, several = find_videos(args.videos)
  if not args.window > 0:
    raise InputError(f"the window must be longer than 0 s, not {args.window:g}")
  plot = args.plot if several or not args.plot else with_ending(args.plot, ".png")
  plots = outputs(plot, videos, several=several, suffix=".png") if plot else {}
  refuse_inputs([args.csv] if args.csv else [], videos)
  saved = SavedProbe.load(args.probe)
  if saved.encoder != SYNCLIPMAE:
    raise InputError(f"this probe reads the features of {saved.encoder}: the command reads those of SyncLipMAE only")
  keep_compiled()
  tell_fallback("emotion", args.faces)
  model = SyncLipMAE.load(args.checkpoint)
  saved.check_encoder(visual_hash(model))
  for note in saved.notes:
    print(f"synclipmae emotion: the probe: {note}", file=sys.stderr)
  found: dict[str, FileLabels] = {}
  errors: dict[str, str] = {}
  for video in tqdm(videos, unit="file", desc="emotion", disable=args.json or not sys.stderr.isatty()):
    try:
      embedding = embed_pictures(model.embedder, video, faces=args.faces)
      labels = label_file(saved, {name: getattr(embedding, name) for name in saved.tokens}, window=args.window)
      for note in (notes := (*embedding.notes, *labels.notes)):
        remark("emotion", video, note)
      found[video] = dataclasses.replace(labels, notes=notes)
      if video in plots:
        _plot(found[video], plots[video])
    except Exception as error:  # an unforeseen error affects one file only
      errors[video] = str(error)
      complain("emotion", video, error)
  entries = [
    found[video].to_json(video) if video in found else {"file": video, "error": errors[video]} for video in videos
  ]
  if args.json:
    print(json.dumps(entries if several else entries[0], allow_nan=False))
  else:
    print("\n".join(_lines(video, labels) for video, labels in found.items()))
  if args.csv:
    _write_csv(args.csv, found)
  return 0 if not errors else 1 if several else 2


def _lines(video: str, labels: FileLabels) -> str:
  """The file, its labels with their probabilities, and a line a stretch."""
  from synclipmae_jax.web_page import printable

  order = np.argsort(-labels.whole, kind="stable")[: max(3, len(labels.labels))]
  likely = ", ".join(f"{labels.classes[c]} {labels.whole[c]:.2f}" for c in order)
  lines = [f"{printable(video)}: {', '.join(labels.labels) or 'none'} ({likely})"]
  lines += [f"  {s.start:8.2f} {s.end:8.2f} s  {s.label} {value:.2f}" for s, value in labels.stretches()]
  return "\n".join(lines)


def _write_csv(path: str, found: dict[str, FileLabels]) -> None:
  with writing(path) as partial, open(partial, "w", newline="", encoding="utf-8", errors="backslashreplace") as out:
    rows = csv.writer(out)
    rows.writerow(HEAD)
    for video, labels in found.items():
      whole = dict(zip(labels.classes, labels.whole, strict=True))
      end = f"{len(labels.over_time) / FPS:.2f}"
      rows.writerows((video, "file", "0.00", end, name, f"{whole[name]:.4f}") for name in labels.labels)
      rows.writerows(
        (video, "stretch", f"{s.start:.2f}", f"{s.end:.2f}", s.label, f"{value:.4f}") for s, value in labels.stretches()
      )


def _plot(labels: FileLabels, path: Path) -> None:
  """Classes by time; frames without a face are white."""
  from synclipmae_jax.figures import new_figure, save

  figure = new_figure(8, 1.4 + 0.24 * len(labels.classes))
  axis = figure.subplots()
  extent = (0, len(labels.over_time) / FPS, len(labels.classes) - 0.5, -0.5)
  image = axis.imshow(
    labels.over_time.T, extent=extent, vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="nearest"
  )
  axis.set_yticks(range(len(labels.classes)), labels.classes, fontsize=8)
  axis.set_xlabel("time, s")
  axis.set_title(f"whole file: {', '.join(labels.labels) or 'none'}", fontsize=9)
  figure.colorbar(image, ax=axis, label="probability")
  with writing(path) as partial:
    save(figure, partial)


if __name__ == "__main__":
  sys.exit(main())
