"""`synclipmae prepare --raw DIR --out DIR`: a folder of videos -> clean clips, a manifest, and records to train from.

Footage of any frame rate, size, sample rate and number of channels is converted to 25 frames/s and 16 kHz mono on one
clock, cropped to the face that is visible longest and largest. OUT/manifest.jsonl names every file with its outcome and
the reason, OUT/report.html shows it in a browser. A repeated run continues, and processes added files; finished files
stay. With --probe nothing is converted: it says what is found by the names and headers of the files.

Exit status: 0 if at least one clip was made (with --probe: could be), 1 if none was, 2 for wrong arguments, 130 after
Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from synclipmae_jax.apps import prepare_probe
from synclipmae_jax.apps.footage import add_audio_track, add_faces, sentence
from synclipmae_jax.apps.prepare_report import write_report
from synclipmae_jax.data import corpora
from synclipmae_jax.data.clips import Settings
from synclipmae_jax.data.corpora.splits import RULES
from synclipmae_jax.data.prepare import prepare
from synclipmae_jax.data.probe import probe
from synclipmae_jax.sync.report import printable
from synclipmae_jax.types import InputError

_SHOWN = 20  # refusals that are printed; the manifest has all


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser("synclipmae prepare", description=__doc__.split("\n\n")[0])
  parser.add_argument("--raw", required=True, help="folder of video files, searched to any depth")
  parser.add_argument("--out", help="folder for clips, manifest and records; not needed with --probe")
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
  parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one a core)")
  parser.add_argument("--probe", action="store_true", help="only say what is found, by names and headers")
  parser.add_argument("--json", action="store_true", help="print the summary as one JSON object, and no progress bar")
  args = parser.parse_args(argv)
  if args.out is None and not args.probe:
    parser.error("name a folder with --out, or look first with --probe")
  try:
    if args.probe:
      return _probe(args)
    if os.path.lexists(args.out) and not os.path.isdir(args.out):
      raise InputError(f"{args.out} is not a folder: clips, manifest and records go into one")
    manifest = prepare(
      args.raw, args.out, corpus=args.corpus, faces=args.faces, size=args.size, min_seconds=args.min_seconds,
      max_seconds=args.max_seconds, audio_track=args.audio_track, split=args.split, workers=args.workers,
      progress=not args.json,
    )  # fmt: skip
    report = write_report(manifest, Path(args.out))
  except (InputError, OSError) as error:  # OSError: a full disk, a folder that may not be written
    print(f"synclipmae prepare: {sentence(error)}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("\ninterrupted: the finished files are kept, the same command continues", file=sys.stderr)
    return 130
  summary = {**manifest.summary(), "report": str(report)}
  if args.json:
    print(json.dumps(summary))
  else:
    _print(summary, args.out)
  return 0 if summary["clips"] else 1


def _probe(args: argparse.Namespace) -> int:
  settings = Settings(
    size=args.size, faces=args.faces, min_seconds=args.min_seconds, max_seconds=args.max_seconds,
    audio_track=args.audio_track,
  )  # fmt: skip
  found = probe(
    args.raw, corpus=args.corpus, split=args.split, settings=settings, workers=args.workers, progress=not args.json
  )
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
