"""`synclipmae lipread VIDEO… --checkpoint DIR`: what a face says, read from its lips alone, with word times.

The sound is not used. DIR is a run of configs/vsr.py; a recogniser reads only what it was trained on: one of GRID knows
the 51 words of GRID, and gives some of them for any other sentence. Of several faces, the one visible in most frames is
read. Confidence is the mean probability of a word's letters; it is not calibrated.

--out writes .srt, .vtt or .json; of several files, a folder or a pattern, into the folder OUT.

Exit status: 0 if every file was read, 1 if some of several were not, 2 for wrong arguments or a single bad file.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from typing import Any

from synclipmae_jax.apps.footage import (
  add_videos,
  complain,
  exit_status,
  find_videos,
  keep_compiled,
  outputs,
  remark,
  tell_fallback,
)
from synclipmae_jax.data.output_file import writing
from synclipmae_jax.lipread import subtitles
from synclipmae_jax.types import InputError


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    "synclipmae lipread", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add_videos(parser)
  parser.add_argument("--checkpoint", metavar="DIR", required=True, help="a run of configs/vsr.py, or a step of it")
  parser.add_argument("--encoder", metavar="DIR", help="the checkpoint of its tokens (default: the embedded one)")
  parser.add_argument("--out", help="a .srt, .vtt or .json file (of several: a folder); default: lines of text")
  parser.add_argument("--format", default="srt", choices=[end[1:] for end in subtitles.FORMATS], help="in a folder")
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
  keep_compiled()
  tell_fallback("lipread", args.faces)
  reader = LipReader.load(args.checkpoint, say=functools.partial(print, file=sys.stderr))
  model = SyncLipMAE.load(args.encoder)
  reader.check_encoder(model.embedder)
  failed = 0
  for video in videos:
    try:
      embedding: Any = model.embed(video, faces=args.faces, audio_track=args.audio_track)
      for note in embedding.notes:
        remark("lipread", video, note)
      readings = reader.read(embedding)
      if not readings:
        remark("lipread", video, "no words are read")
      if paths:
        with writing(paths[video]) as partial:
          partial.write_text(subtitles.write(readings, paths[video].suffix), "utf-8")
      else:
        print((f"{video}\n" if several else "") + subtitles.lines(readings), end="")
    except Exception as error:  # an unforeseen error affects one file only
      complain("lipread", video, error)
      failed += 1
  return 0 if not failed else 1 if several else 2


if __name__ == "__main__":
  sys.exit(main())
