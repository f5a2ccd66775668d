"""`synclipmae embed VIDEO… --out tokens.npz`: the tokens of every frame of a talking face, for use elsewhere.

Arrays: identity, vocal, ambient and audio, float32 [T, D] at 25 frames/s, not normalised; times [T] in seconds from the
first picture; face_box [T, 4] as fractions of the picture. Rows without a face are nan, except audio. Of several
faces, the one visible in most frames is used. The tokens of one file are written to OUT (.npz or .safetensors), those
of several files, a folder or a pattern into the folder OUT.

Exit status: 0 if every file was done, 1 if some of several were not, 2 for wrong arguments or a single bad file.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from synclipmae_jax.apps.footage import (
  add_videos,
  complain,
  exit_status,
  find_videos,
  keep_compiled,
  outputs,
  remark,
)
from synclipmae_jax.data.output_file import writing
from synclipmae_jax.types import InputError

FORMATS = (".npz", ".safetensors")


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser("synclipmae embed", description=__doc__.split("\n\n")[0])
  add_videos(parser)
  parser.add_argument("--out", required=True, help="a .npz or .safetensors file (of several: a folder)")
  parser.add_argument("--format", default="npz", choices=[end[1:] for end in FORMATS], help="of the files in a folder")
  parser.add_argument("--checkpoint", metavar="DIR", help="a workdir or a step (default: the model of the package)")
  args = parser.parse_args(argv)
  return exit_status("embed", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
  from synclipmae_jax.pretrained import SyncLipMAE

  videos, several = find_videos(args.videos)
  paths = outputs(args.out, videos, several=several, suffix=f".{args.format}")
  for path in paths.values():
    if path.suffix not in FORMATS:
      raise InputError(f"tokens are written as {' or '.join(FORMATS)}, not to {path}")
  keep_compiled()
  model = SyncLipMAE.load(args.checkpoint)
  failed = 0
  for video in tqdm(videos, unit="file", desc="embed", disable=not sys.stderr.isatty()):
    try:
      embedding: Any = model.embed(video, faces=args.faces, audio_track=args.audio_track)
      arrays = {field.name: getattr(embedding, field.name) for field in dataclasses.fields(embedding)}
      for note in arrays.pop("notes"):
        remark("embed", video, note)
      _write(paths[video], arrays)
    except Exception as error:  # an unforeseen error affects one file only
      complain("embed", video, error)
      failed += 1
  return 0 if not failed else 1 if several else 2


def _write(path: Path, arrays: Mapping[str, Any]) -> None:
  with writing(path) as partial:
    if path.suffix == ".npz":
      np.savez(partial, **arrays)
    else:
      from synclipmae_jax.convert.weights_file import write_safetensors

      write_safetensors(partial, arrays)


if __name__ == "__main__":
  sys.exit(main())
