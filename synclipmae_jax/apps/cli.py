"""`synclipmae COMMAND …`: the commands for users. Training is `python -m synclipmae_jax.main`."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
  "prepare": "a folder of videos -> clean clips, a manifest, and records to train from",
  "sync": "a video -> the lag of its picture against its sound, and the corrected file",
  "embed": "a video -> identity, vocal, ambient and audio tokens of every frame",
  "calibrate": "a trained model -> a checkpoint with calibrated confidences",
  "edit": "the face of one video with the mouth of another and the pose of a third, from their tokens",
  "dub": "a video with its mouth generated to match speech, or the mouth of another video",
  "lipread": "a video -> what its face says, read from the lips, with word times",
  "emotion": "a video -> the emotion or the actions of its face, by a linear probe, over time",
  "wer": "what a recogniser read -> its word and character error rates",
  "lse": "a video -> LSE-C and LSE-D by SyncNet, and StableSyncNet's variant",
}

CACHE_HELP = """\
What a second call need not do again (compiled functions, at most 0.5 GiB) is kept in the user's cache folder, or in the
folder that SYNCLIPMAE_CACHE names. `synclipmae --no-cache COMMAND …`, or SYNCLIPMAE_CACHE=off, keeps nothing."""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command with its arguments; returns its exit status."""
  # Before anything imports numpy: between two products its threads wait in a loop, on the cores that the model needs.
  os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
  if argv is None:
    gc.set_threshold(50_000)  # importing jax makes many objects, of which none can go
  arguments = list(sys.argv[1:] if argv is None else argv)
  if not arguments or arguments[0] in ("-h", "--help"):
    print(f"{__doc__}\n\nCommands (each has --help):")
    for name, purpose in COMMANDS.items():
      print(f"  {name:10} {purpose}")
    print(f"\n{CACHE_HELP}")
    return 0 if arguments else 2
  if arguments[0] == "--no-cache":
    os.environ["SYNCLIPMAE_CACHE"] = "off"  # of other processes too
    arguments = arguments[1:] or ["--help"]
    return main(arguments)
  command, *rest = arguments
  if command not in COMMANDS:
    print(f"synclipmae: there is no command {command!r}: {', '.join(COMMANDS)}", file=sys.stderr)
    return 2
  try:
    return importlib.import_module(f"synclipmae_jax.apps.{command}").main(rest)
  finally:
    if argv is None:  # the process ends: nothing is searched for cycles any more, which takes 0.15 s
      gc.freeze()


if __name__ == "__main__":
  sys.exit(main())
