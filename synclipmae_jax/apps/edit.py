"""`synclipmae edit --identity A.mp4 --mouth B.mp4 --ambient C.mp4 --out X.mp4`: one face made of the tokens of three.

X.mp4 shows the person of A with the mouth of B and the pose, eyes and brows of C: the decoder's picture of the aligned
face, as large as the model's (64 or 96 pixels), with hair and background of A. It is made for looking into the tokens:
what moves although its token did not change is a leak. It is no picture for production, and no means to put words into
the mouth of anyone: it is small, and the small models so far draw a blurred face of nobody in particular.

What is left out is taken from the file of the identity (without one, of the ambient motion, then of the mouth). Where
the ambient motion is of another file, hair and background are those of the middle frame of A. The sound is that of the
mouth's file. All files are read at 25 frames/s, at most their first minute; the face is that visible in most frames.

Exit status: 0, 2 for wrong arguments or a file that cannot be used (nothing is written then), 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from synclipmae_jax.apps.footage import add_audio_track, add_faces, exit_status, keep_compiled, refuse_inputs, remark
from synclipmae_jax.data.output_file import writing
from synclipmae_jax.types import FPS, InputError


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    "synclipmae edit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--identity", metavar="VIDEO", help="who is seen, with hair and background")
  parser.add_argument("--mouth", metavar="VIDEO", help="the motion of the mouth, and the sound")
  parser.add_argument("--ambient", metavar="VIDEO", help="pose, eyes and brows")
  parser.add_argument("--out", required=True, metavar="MP4", help="a .mp4 file")
  parser.add_argument("--fit", default="shortest", choices=("shortest", "loop"), help="files of different lengths: as "
                      "long as the shortest (default), or as long as the mouth's, the others to and fro")  # fmt: skip
  parser.add_argument("--beside", action="store_true", help="show identity, mouth and ambient motion beside the result")
  add_faces(parser)
  add_audio_track(parser)
  parser.add_argument("--checkpoint", metavar="DIR", help="a workdir or a step (default: the model of the package)")
  parser.add_argument("--json", action="store_true", help="print one object: what the result is made of")
  args = parser.parse_args(argv)
  return exit_status("edit", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
  from synclipmae_jax.data.synthtalk.corpus import encode
  from synclipmae_jax.inference.editing import edit_files, sources_of
  from synclipmae_jax.models.editing import caveats
  from synclipmae_jax.pretrained import SyncLipMAE

  files = sources_of({role: getattr(args, role) for role in ("identity", "mouth", "ambient")})
  if Path(args.out).suffix.lower() != ".mp4":
    raise InputError(f"the result is written as .mp4, not to {args.out}")
  refuse_inputs([args.out], list(files.values()))
  keep_compiled()
  model = SyncLipMAE.load(args.checkpoint, decoder=True)
  made = edit_files(model.embedder, files, fit=args.fit, faces=args.faces, audio_track=args.audio_track)
  for path, note in made.notes:
    remark("edit", path, note)
  shown = np.concatenate([*made.shown.values(), made.frames], axis=2) if args.beside else made.frames
  with writing(args.out) as partial:
    encode(partial, shown, made.waveform, crf=12)
  seconds, size = len(made.frames) / FPS, model.image_size
  notes = [*model.notes, *caveats(model.embedder.model)]
  if args.json:
    print(json.dumps({
      "out": args.out, **files, "audio": files["mouth"], "fit": args.fit, "frames": len(made.frames), "fps": FPS,
      "size": size, "beside": args.beside, "checkpoint": model.name,
      "notes": [*notes, *(f"{path}: {note}" for path, note in made.notes)],
    }))  # fmt: skip
  else:
    print(f"{args.out}: {seconds:.1f} s, {size} x {size} pixels, sound of {files['mouth']}")
    for note in notes:
      print(f"Note: {note}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
