"""`synclipmae dub VIDEO --audio SPEECH.wav | --drive-video OTHER.mp4 --out OUT.mp4`

OUT is VIDEO with a mouth that says the speech, or moves as the mouth of OTHER does, and with that sound. All pictures,
their times, size and turn, and all other streams are kept; pictures are encoded anew as H.264. Outside of the mouth
region nothing changes before that; where no face is seen, nothing changes at all. Of several faces the one that is seen
longest is dubbed.

A model can do the faces that it was trained on, and that of the package knows the drawn faces of SynthTalk and one
speaker of the GRID corpus: of any other face it warns (`known` in JSON), and the mouth is wrong or blurred.
`--checkpoint` names another model, a run of configs/dub.py. The result is no picture of what a person said: do not pass
it off as one, and dub nobody who does not agree.

A run that was stopped goes on where it was if it is started again with the same arguments. Until then, what it has
generated is kept in `.OUT.unfinished` beside OUT.

Exit status: 0, 2 for wrong arguments or a file that cannot be used (nothing is written then), 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from synclipmae_jax.apps.footage import add_audio_track, add_faces, exit_status, keep_compiled, refuse_inputs, remark
from synclipmae_jax.data.output_file import writing
from synclipmae_jax.types import InputError


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    "synclipmae dub", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("video", metavar="VIDEO", help="whose mouth is replaced")
  parser.add_argument("--audio", metavar="FILE", help="speech: a file with sound, of which the first track is used")
  parser.add_argument("--drive-video", metavar="VIDEO", help="a video whose mouth and sound are taken")
  parser.add_argument("--out", metavar="FILE", help="a .mp4, .m4v, .mov or .mkv file")
  parser.add_argument("--checkpoint", metavar="DIR", help="a run of configs/dub.py, or a step of it (default: the "
                      "model of the package)")  # fmt: skip
  parser.add_argument(
    "--fit", default="pad", choices=("pad", "trim", "loop"), help="for speech of another length. pad (default): VIDEO "
    "keeps its length, silence follows shorter speech, of longer speech the end is left out; trim: as long as the "
    "shorter; loop: as long as the speech, VIDEO to and fro"
  )  # fmt: skip
  parser.add_argument("--preview", metavar="PNG", help="write the first picture to change, mask in red, and stop")
  parser.add_argument("--compare", metavar="FILE", help="also write the source beside the result")
  add_faces(parser)
  add_audio_track(parser)
  parser.add_argument("--steps", type=int, metavar="N", help="of the sampler (default: as the run was evaluated)")
  parser.add_argument("--guidance", type=float, metavar="X", help="on the drive (default: as the run was evaluated)")
  parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
  parser.add_argument("--encoder", metavar="DIR", help="the checkpoint of the tokens (default: the embedded one)")
  parser.add_argument("--autoencoder", metavar="DIR", help="the converted VAE (default: where the run had it)")
  parser.add_argument("--text", metavar="DIR", help="the converted text embeddings (default: where the run had them)")
  parser.add_argument("--json", action="store_true", help="print one object: what was done, and the sync scores")
  args = parser.parse_args(argv)
  return exit_status("dub", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
  driven_by = [path for path in (args.audio, args.drive_video) if path is not None]
  if not args.preview and (args.out is None or len(driven_by) != 1):
    raise InputError("name the output with --out, and either --audio or --drive-video")
  written = [args.preview] if args.preview else [path for path in (args.out, args.compare) if path is not None]
  refuse_inputs(written, [args.video, *driven_by])
  if len(written) == 2 and written[0] == written[1]:
    raise InputError(f"{written[0]} cannot be both the result and the comparison")
  keep_compiled()
  from synclipmae_jax.dub.dubber import Dubber

  sampling = {"steps": args.steps, "control_guidance": args.guidance}
  settings = {name: value for name, value in sampling.items() if value is not None}
  model = Dubber.load(
    args.checkpoint, encoder=args.encoder, autoencoder=args.autoencoder, text=args.text, settings=settings
  )
  if args.preview:
    from PIL import Image

    shown = model.preview(args.video, faces=args.faces)
    with writing(args.preview) as partial:
      Image.fromarray(shown).save(partial, format="PNG")
    print(f"{args.preview}: nothing was generated")
    return 0
  with tqdm(unit="step", desc="dub", disable=args.json or not sys.stderr.isatty()) as bar:

    def progress(done: int, total: int) -> None:
      bar.total = total
      bar.update(done - bar.n)

    done = model.dub(
      args.video, args.out, audio=args.audio, drive_video=args.drive_video, fit=args.fit, faces=args.faces,
      audio_track=args.audio_track, seed=args.seed, compare=args.compare, progress=progress,
    )  # fmt: skip
  scores = {"source": _sync(args.video, args), "result": _sync(args.out, args)}
  if args.json:
    notes = list(done.notes)
    print(json.dumps({**dataclasses.asdict(done), "notes": notes, "sync": scores}, allow_nan=False))
    return 0
  print(f"{done.out}: {done.dubbed} of {done.frames} pictures dubbed, {done.seconds:.2f} s, fit {done.fit}")
  for note in done.notes:
    remark("dub", args.video, note)
  for name, score in scores.items():
    print(f"sync of the {name}: {score['told']}")
  return 0


def _sync(path: str, args: argparse.Namespace) -> dict[str, Any]:
  """The lag of a file's sound by the model of the package, and one sentence on it."""
  from synclipmae_jax.pretrained import SyncLipMAE

  try:
    found = SyncLipMAE.load(args.encoder).sync(path, faces=args.faces)
  except InputError as error:
    return {"verdict": None, "told": str(error)}
  score = found.to_json()["score"]
  said = f"{found.verdict.replace('_', ' ')}, score {found.score:.3f}: {found.reason}"
  kept = {"lag_frames": found.lag_frames, "confidence": found.confidence, "score": score}
  return {"verdict": found.verdict, **kept, "reason": found.reason, "told": said}


if __name__ == "__main__":
  sys.exit(main())
