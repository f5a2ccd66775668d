"""`synclipmae prepare --raw DIR --out DIR`: a folder of videos -> clean clips, a manifest, and records to train from.

Footage of any frame rate, size, sample rate and number of channels is converted to 25 frames/s and 16 kHz mono on one
clock, cropped to the face that is visible longest and largest; of several faces to the one whose lips move with the
sound. OUT/manifest.jsonl names every file with its outcome, the reason, and the quality of its clips; OUT/report.html
shows it in a browser. A repeated run continues, and processes added files; finished files stay, with other thresholds
too. With --probe nothing is converted: it says what is found by the names and headers of the files.

Exit status: 0 if at least one clip was made (with --probe: could be), 1 if none was, 2 for wrong arguments, 130 after
Ctrl-C.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Sequence

from synclipmae_jax.apps import prepare_probe, prepare_report
from synclipmae_jax.apps.footage import add_audio_track, add_faces, keep_compiled, sentence
from synclipmae_jax.data import corpora, engines, storage
from synclipmae_jax.data.clips import Settings
from synclipmae_jax.data.corpora.splits import RULES
from synclipmae_jax.data.offsets import OffsetModel
from synclipmae_jax.data.prepare import Manifest, prepare
from synclipmae_jax.data.probe import probe
from synclipmae_jax.data.quality import Gates, option
from synclipmae_jax.types import InputError
from synclipmae_jax.web_page import printable

_SHOWN = 20  # refusals that are printed; the manifest has all
_GATES = {
  "min_face": "pixels of the longer side of a face in the source",
  "min_coverage": "share of the frames in which the face is found",
  "max_yaw": "degrees by which a face is turned, where the face mesh is the tracker",
  "min_speech": "score of the sound: 0 for silence and steady sound, 0.06 to 0.14 for sentences of 3 s",
  "min_sharpness": "variance of the Laplacian of the crop at 128 pixels",
  "max_offset": "frames by which picture and sound may be apart; smaller offsets are corrected",
  "min_sync": "probability that lips and sound belong together, by the sync model",
}


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser("synclipmae prepare", description=__doc__.split("\n\n")[0])
  parser.add_argument("--raw", required=True, help="folder or URL (gs://, s3://) of video files, searched to any depth")
  parser.add_argument("--out", help="folder or URL for clips, manifest and records; not needed with --probe")
  parser.add_argument("--corpus", default="auto", choices=("auto", *corpora.NAMES), help="how the files are arranged")
  parser.add_argument(
    "--split", default="hash", choices=RULES,
    help="splits of a corpus that has none: a tenth each, or the paper's 100 files each; groups are never divided",
  )  # fmt: skip
  add_faces(parser)
  add_audio_track(parser)
  parser.add_argument("--size", type=int, default=256, help="pixels of a side of the square clips (default 256)")
  parser.add_argument("--min-seconds", type=float, default=1.6, help="shortest clip (default 1.6)")
  parser.add_argument("--max-seconds", type=float, default=10.0, help="longest clip (default and most 10)")
  group = parser.add_argument_group("quality", "a clip beyond a threshold is refused, with its reason in the manifest")
  for name, words in _GATES.items():
    default = getattr(Gates, name)
    group.add_argument(option(name), type=type(default), default=default, help=f"{words} (default {default:g})")
  group.add_argument(
    "--sync-model", metavar="PATH", help="checkpoint that measures offsets, a workdir or a step (default: the model of "
    "the package); lips: the face mesh against the sound, without a checkpoint; none: nothing is measured or corrected"
  )  # fmt: skip
  parser.add_argument("--workers", type=int, help="processes at once (default: one a core, of the cluster with ray)")
  parser.add_argument(
    "--engine", default="local", choices=engines.NAMES,
    help="where the processes are: on this machine (default), or on Ray, by default one started here for the run",
  )  # fmt: skip
  parser.add_argument("--ray-address", metavar="ADDR", help="a Ray cluster: auto, HOST:6379 or ray://HOST:10001")
  parser.add_argument("--probe", action="store_true", help="only say what is found, by names and headers")
  parser.add_argument("--json", action="store_true", help="print the summary as one JSON object, and no progress bar")
  args = parser.parse_args(argv)
  if args.out is None and not args.probe:
    parser.error("name a folder with --out, or look first with --probe")
  try:
    if args.probe:
      return _probe(args)
    if not storage.is_url(args.out) and os.path.lexists(args.out) and not os.path.isdir(args.out):
      raise InputError(f"{args.out} is not a folder: clips, manifest and records go into one")
    gates = Gates(**{name: getattr(args, name) for name in _GATES})
    remarks: list[str] = []
    offset_model = None if args.sync_model == "none" else functools.partial(_offset_model, args.sync_model, remarks)

    def report(manifest: Manifest, read: prepare_report.Read) -> bytes:
      return prepare_report.page(dataclasses.replace(manifest, notes=(*manifest.notes, *remarks)), read)

    manifest = prepare(
      args.raw, args.out, corpus=args.corpus, faces=args.faces, size=args.size, min_seconds=args.min_seconds,
      max_seconds=args.max_seconds, audio_track=args.audio_track, split=args.split, engine=args.engine,
      ray_address=args.ray_address, progress=not args.json, gates=gates, offset_model=offset_model, report=report,
      workers=os.cpu_count() if args.workers is None and args.engine == "local" else args.workers,
    )  # fmt: skip
  except (InputError, OSError) as error:  # OSError: a full disk, a folder that may not be written
    print(f"synclipmae prepare: {sentence(error)}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("\ninterrupted: the finished files are kept, the same command continues", file=sys.stderr)
    return 130
  summary = {**manifest.summary(), "report": f"{args.out.rstrip('/')}/report.html"}
  summary["notes"] += remarks
  if args.json:
    print(json.dumps(summary))
  else:
    _print(summary, args.out)
  return 0 if summary["clips"] else 1


def _offset_model(checkpoint: str | None, remarks: list[str]) -> OffsetModel:
  """The model that measures offsets; what must be known of it is added to `remarks`. Raises InputError."""
  from synclipmae_jax.pretrained import SyncLipMAE  # slow to import, and no worker may
  from synclipmae_jax.sync.offsets import ClipOffsets, LipOffsets

  if checkpoint == "lips":
    return LipOffsets()
  keep_compiled()
  model = SyncLipMAE.load(checkpoint)
  remarks += [f"offsets are measured by {model.name}: {note}" for note in model.notes]
  return ClipOffsets(model.embedder, model.calibration)


def _probe(args: argparse.Namespace) -> int:
  settings = Settings(
    size=args.size, faces=args.faces, min_seconds=args.min_seconds, max_seconds=args.max_seconds,
    audio_track=args.audio_track,
  )  # fmt: skip
  found = probe(
    args.raw, corpus=args.corpus, split=args.split, settings=settings, workers=args.workers or os.cpu_count() or 1,
    progress=not args.json,
  )  # fmt: skip
  print(json.dumps(found) if args.json else "\n".join(prepare_probe.lines(found)))
  return 0 if found["readable"] else 1


def _print(summary: dict, out: str) -> None:
  print(
    f"{summary['accepted']} of {summary['files']} files accepted: {summary['clips']} clips, {summary['seconds']:.1f} s"
    + (f" ({summary['upscaled_clips']} enlarged)" if summary["upscaled_clips"] else "")
  )
  labelled = [f"{name} {count}" for name, count in summary["labelled"].items() if count and name != "text_source"]
  if labelled:
    print(f"files with labels: {', '.join(labelled)}")
  if summary["refused_clips"] or summary["corrected_clips"]:
    print(f"{summary['refused_clips']} clips refused, the offset of {summary['corrected_clips']} corrected")
  if summary["reasons"]:
    print(f"{summary['rejected']} refused:")
  for file, reason in list(summary["reasons"].items())[:_SHOWN]:
    print(f"  {printable(file)}: {printable(reason)}")
  if len(summary["reasons"]) > _SHOWN:
    print(f"  … and {len(summary['reasons']) - _SHOWN} more")
  for note in summary["notes"]:
    print(f"Note: {note}.")
  print(f"report:   {summary['report']}")
  print(f"manifest: {out}/manifest.jsonl" + (f"\nrecords:  {summary['records']}" if summary["records"] else ""))


if __name__ == "__main__":
  sys.exit(main())
