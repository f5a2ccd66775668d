"""`synclipmae lipread VIDEO…`: what faces say, read from their lips alone, with word times.

The sound is not used; a file needs none. The recogniser of the package knows the 51 words of the GRID corpus, in
sentences like "bin blue at f two now", and was trained on one speaker. Whatever else is said, it reads some of those
words all the same: it says so at each use, and warns (on stderr, and as `doubts` in JSON) of what is none of its
sentences or is read with less certainty than those. `--checkpoint DIR` names another recogniser, a run of
configs/vsr.py.

Every face that is seen for a second is read, those seen longest first: SPEAKER 1, 2, … where there are several. Long
stretches are divided at pauses. Confidence is the mean probability of a word's letters; it is not calibrated.

--out writes .srt, .vtt or .json; of several files, a folder or a pattern, into the folder OUT. --subtitle writes a copy
of a video with the text burnt in.

Exit status: 0 if every file was read, 1 if some of several were not, 2 for wrong arguments or a single bad file.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from synclipmae_jax.apps.footage import (
  add_faces,
  complain,
  exit_status,
  find_videos,
  keep_compiled,
  outputs,
  remark,
  tell_fallback,
  with_ending,
)
from synclipmae_jax.data.output_file import writing
from synclipmae_jax.lipread import subtitles
from synclipmae_jax.types import InputError


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    "synclipmae lipread", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("videos", nargs="+", metavar="VIDEO", help="a file, a folder or a pattern")
  add_faces(parser)
  parser.add_argument("--checkpoint", metavar="DIR", help="a run of configs/vsr.py, or a step of it (default: the "
                      "recogniser of the package)")  # fmt: skip
  parser.add_argument("--encoder", metavar="DIR", help="the checkpoint of its tokens (default: the embedded one)")
  parser.add_argument("--out", help="a .srt, .vtt or .json file (of several: a folder); default: lines of text")
  parser.add_argument("--format", default="srt", choices=[end[1:] for end in subtitles.FORMATS], help="in a folder")
  parser.add_argument("--subtitle", metavar="MP4", help="a copy with the text burnt in (of several: a folder)")
  args = parser.parse_args(argv)
  return exit_status("lipread", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
  from synclipmae_jax.lipread.reader import LipReader
  from synclipmae_jax.pretrained import SyncLipMAE

  videos, several = find_videos(args.videos)
  paths = outputs(args.out, videos, several=several, suffix=f".{args.format}") if args.out else {}
  for path in paths.values():
    if path.suffix not in subtitles.FORMATS:
      raise InputError(f"a text is written as {', '.join(subtitles.FORMATS)}, not to {path}")
  copy = args.subtitle if several or not args.subtitle else with_ending(args.subtitle, ".mp4")
  copies = outputs(copy, videos, several=several, suffix=".mp4") if copy else {}
  keep_compiled()
  tell_fallback("lipread", args.faces)
  reader = LipReader.load(args.checkpoint, say=functools.partial(print, file=sys.stderr))
  model = SyncLipMAE.load(args.encoder)
  reader.check_encoder(model.embedder)
  for note in reader.notes:
    print(f"synclipmae lipread: {note}", file=sys.stderr)
  failed = 0
  for video in videos:
    try:
      _read(video, args, reader, model.embedder, out=paths.get(video), copy=copies.get(video), several=several)
    except Exception as error:  # an unforeseen error affects one file only
      complain("lipread", video, error)
      failed += 1
  return 0 if not failed else 1 if several else 2


def _read(
  video: str, args: argparse.Namespace, reader, embedder, *, out: Path | None, copy: Path | None, several: bool
) -> None:
  from synclipmae_jax.inference.lips import read_lips
  from synclipmae_jax.lipread.preview import write_preview

  with tqdm(unit="s", desc=Path(video).name[:30], disable=not sys.stderr.isatty(), leave=False) as bar:
    faces, notes = read_lips(embedder, video, faces=args.faces, progress=functools.partial(_show, bar, "faces"))
    readings = reader.read_all([face.vocal for face in faces], progress=functools.partial(_show, bar, "reading"))
    if copy is not None:
      with writing(copy) as partial:
        boxes = [face.face_box for face in faces[: max((r.speaker for r in readings), default=1)]]
        write_preview(video, partial, readings, boxes, progress=functools.partial(_show, bar, "drawing"))
  doubtful = [reading for reading in readings if reading.doubts]
  if doubtful:
    notes = (*notes, f"out of its depth in {len(doubtful)} of {len(readings)} stretches: do not trust their text")
  for note in notes if readings else (*notes, "no words are read"):
    remark("lipread", video, note)
  if out is not None:
    with writing(out) as partial:
      partial.write_text(subtitles.write(readings, out.suffix), "utf-8")
  else:
    print((f"{video}\n" if several else "") + subtitles.lines(readings), end="")


def _show(bar: tqdm, what: str, done: float, total: float | None = None) -> None:
  bar.set_description(what, refresh=False)
  bar.total = total or bar.total
  bar.update(round(done, 1) - bar.n)


if __name__ == "__main__":
  sys.exit(main())
