"""`synclipmae lse VIDEO… --syncnet DIR`: LSE-C and LSE-D, the lip-sync numbers that dubbing papers report.

Needs the converted weights of SyncNet v2 or StableSyncNet. A file is cut into clips of one face in one shot with sound,
at most 10 s each; its numbers are the means over its clips. The face crop is that of this package, not that of
SyncNet's pipeline (S3FD): compare files with each other, not with published numbers.

Exit status: 0 if every file was measured, 1 if some of several were not, 2 for wrong arguments or a single file that
cannot be measured, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from synclipmae_jax.apps.footage import (
  add_videos,
  complain,
  exit_status,
  find_videos,
  keep_compiled,
  tell_fallback,
)
from synclipmae_jax.baselines.protocol import SyncModel
from synclipmae_jax.data.clips import Settings
from synclipmae_jax.metrics import lse
from synclipmae_jax.types import EvalClip, InputError

LseOf = Callable[[EvalClip], lse.LseState]


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    "synclipmae lse",
    description=f"{__doc__.split('Exit status')[0]}Definitions\n\n{lse.__doc__}",
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add_videos(parser)
  parser.add_argument("--syncnet", metavar="DIR", help="converted weights of SyncNet v2")
  parser.add_argument("--stable-syncnet", metavar="DIR", help="converted weights of StableSyncNet")
  parser.add_argument("--json", action="store_true", help="print one object (folder, pattern, several files: an array)")
  parser.add_argument("--size", type=int, default=224, help="pixels of a side of the face crops (default 224)")
  args = parser.parse_args(argv)
  return exit_status("lse", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
  if not (args.syncnet or args.stable_syncnet):
    raise InputError("name the weights to measure with: --syncnet DIR, --stable-syncnet DIR, or both")
  settings = Settings(size=args.size, faces=args.faces, audio_track=args.audio_track)
  videos, several = find_videos(args.videos)
  tell_fallback("lse", args.faces)
  keep_compiled()
  judges = _load(syncnet=args.syncnet, stable_syncnet=args.stable_syncnet)
  entries, failed = [], 0
  for path in videos:
    try:
      entries.append(_measure(path, judges, settings))
    except Exception as error:  # an unforeseen error affects one file only
      complain("lse", path, error)
      entries.append({"file": path, "error": str(error)})
      failed += 1
  if args.json:
    print(json.dumps(entries if several else entries[0], allow_nan=False))
  elif failed < len(videos):
    _print([entry for entry in entries if "error" not in entry])
  return 0 if not failed else 1 if several else 2


def _load(**directories: str | None) -> list[LseOf]:
  """The functions that measure a clip, one for each model that has a directory."""
  from synclipmae_jax.run.sync_models import load_model, lse_of

  judges: list[LseOf] = []
  for kind, directory in directories.items():
    if directory:
      model = load_model(kind, directory)
      of = lse_of(kind, model)
      if of is None:
        raise InputError(f"{directory} is a SyncNet that was trained here; LSE is of the released one")
      judges.append(functools.partial(_lse_of, of, model))
  return judges


def _lse_of(of: Callable[..., lse.LseState], model: SyncModel, clip: EvalClip) -> lse.LseState:
  return of(clip.key, *model.embed(clip))


def _measure(path: str, judges: Sequence[LseOf], settings: Settings) -> dict[str, Any]:
  """The entry of one file. Raises InputError if it yields no clip."""
  from synclipmae_jax.run.file_clips import clips_of

  with tempfile.TemporaryDirectory() as folder:
    clips = 0
    states: list[lse.LseState | None] = [None] * len(judges)
    for clip in clips_of(path, settings, Path(folder)):
      found = [judge(clip) for judge in judges]
      states = [new if old is None else old.merge(new) for old, new in zip(states, found, strict=True)]
      clips += 1
  values = {name: e.value for state in states for name, e in state.compute().items()}
  return {"file": path, "clips": clips, **{name: None if math.isnan(v) else v for name, v in values.items()}}


def _print(entries: Sequence[Mapping[str, Any]]) -> None:
  columns = list(entries[0])[1:]
  width = max(len(entry["file"]) for entry in entries)
  print(" " * width, *(f"{name:>{max(len(name), 8)}}" for name in columns))
  text = lambda value: "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
  for entry in entries:
    print(f"{entry['file']:<{width}}", *(f"{text(entry[name]):>{max(len(name), 8)}}" for name in columns))


if __name__ == "__main__":
  sys.exit(main())
