"""Converts torch checkpoints of the donors to Orbax checkpoints of this package, and back.

    python -m synclipmae_jax.convert sapiens --src sapiens_0.3b_epoch_1600_clean.pth --dst weights/sapiens
    python -m synclipmae_jax.convert wav2vec2 --src wav2vec2-base/ --dst weights/wav2vec2 --verify
    python -m synclipmae_jax.convert inspect FILE
    python -m synclipmae_jax.convert export sapiens --src runs/demo --dst encoder.safetensors
    python -m synclipmae_jax.convert text-embeddings --src Wan2.1-VACE-1.3B/ --prompt "..." --dst weights/prompts

Exit status: 0 done; 1 `inspect` does not know the file; 2 wrong input; 130 after Ctrl-C, 143 after SIGTERM. A partial
result is removed.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import math
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from absl import logging

from synclipmae_jax.convert import donor as donors
from synclipmae_jax.convert.conversion import DTYPES, Conversion, Cost, convert, export
from synclipmae_jax.convert.destination import stop
from synclipmae_jax.convert.source import open_source
from synclipmae_jax.types import InputError


def run() -> NoReturn:
  """Runs `main` and ends the process with its exit status."""
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
  # `main` prints the error. Orbax would log it a second time, and its writer threads would print tracebacks.
  logging.set_verbosity(logging.FATAL)
  sys.unraisablehook = lambda _: None
  status = main()
  sys.stdout.flush()
  os._exit(status)  # do not wait for the threads of a failed Orbax save: they may block for minutes


def main(argv: Sequence[str] | None = None) -> int:
  argv = list(sys.argv[1:] if argv is None else argv)
  try:
    if argv[:1] == ["text-embeddings"]:
      from synclipmae_jax.convert import text_embeddings

      return text_embeddings.main(argv[1:])
    args = _parser().parse_args(argv)
    return args.run(args)
  except (InputError, OSError, MemoryError) as error:  # OSError: a full disk, a folder without write permission
    # A message may quote the content of a file: escape its control characters before they reach the terminal.
    shown = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(error))
    print(f"convert: {shown}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
  known = [donors.load(name) for name in donors.NAMES]
  table = "\n".join(f"  {d.name:15}{d.title}; licence {d.licence}\n{'':17}from {d.origin}" for d in known)
  parser = argparse.ArgumentParser(
    prog="python -m synclipmae_jax.convert",
    description=__doc__.partition("\n\nExit status")[0],
    epilog=f"donors:\n{table}\n\n{__doc__.partition('Exit status')[1]}{__doc__.partition('Exit status')[2]}",
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(required=True, metavar="COMMAND")
  for donor in known:
    described = f"{donor.title}. Licence: {donor.licence}. From {donor.origin}."
    command = commands.add_parser(donor.name, help=f"convert {donor.title}", description=described)
    command.add_argument("--src", required=True, help="file, or folder of a downloaded repository")
    command.add_argument("--dst", required=True, help="new directory: an Orbax checkpoint with one item for each part")
    command.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="result dtype (default float32)")
    command.add_argument("--verify", action="store_true", help="read the result back and compare it with the file")
    if donor.name in ("sapiens", "vit_mae"):
      command.add_argument("--image-size", type=int, help="resize the positional table for square images of this "
                           "size in pixels (default: keep it; a run that starts from it resizes it)")  # fmt: skip
    _json(command)
    command.set_defaults(run=_convert, name=donor.name)

  command = commands.add_parser("inspect", help="print format, naming, parameters and unused keys of a file")
  command.add_argument("file", help="file, or folder of a downloaded repository")
  _json(command)
  command.set_defaults(run=_inspect)

  command = commands.add_parser("export", help="write checkpoint items as safetensors in the donor's naming")
  command.add_argument("name", choices=donors.NAMES, help="donor whose naming is used")
  command.add_argument("--src", required=True, help="workdir, step of a checkpoint, or converted donor")
  command.add_argument("--dst", required=True, help="new file, NAME.safetensors")
  command.add_argument("--dtype", choices=tuple(DTYPES), help="default: as in the checkpoint")
  _json(command)
  command.set_defaults(run=_export)

  commands.add_parser("text-embeddings", help="umT5 embeddings of prompts, computed on the CPU with transformers")
  return parser


def _json(command: argparse.ArgumentParser) -> None:
  command.add_argument("--json", action="store_true", help="print one JSON object and no progress bar")


def _convert(args: argparse.Namespace) -> int:
  progress = sys.stderr.isatty() and not args.json
  done, cost = convert(
    args.name, src=args.src, dst=args.dst, dtype=args.dtype, image_size=getattr(args, "image_size", None),
    verify=args.verify, progress=progress,
  )  # fmt: skip
  if args.json:
    result = dataclasses.asdict(done) | dataclasses.asdict(cost) | {"dst": args.dst, "verified": args.verify}
    print(json.dumps(result))
    return 0
  print(_told(done, args.dst, args.verify))
  print(_cost(cost))
  return 0


def _told(done: Conversion, dst: str, verified: bool) -> str:
  lines = [f"{dst}: {donors.load(done.donor).title} ({done.naming}), {done.dtype}, licence {done.licence}"]
  lines += [f"  {item}: {_millions(count)} parameters" for item, count in done.items.items()]
  for what, entries in (
    ("not used, dropped", done.dropped),
    ("not weights, skipped", tuple(done.skipped)),
    ("not exact", done.lossy),
  ):
    if entries:
      lines.append(f"  {what} ({len(entries)}): {', '.join(entries[:6])}{', ...' if len(entries) > 6 else ''}")
  if verified:
    lines.append("  verified: every tensor read back is equal to the tensor in the file")
  return "\n".join(lines)


def _export(args: argparse.Namespace) -> int:
  counts, left_out, cost = export(args.name, src=args.src, dst=args.dst, dtype=args.dtype)
  if args.json:
    print(json.dumps({"dst": args.dst, "items": counts, "left_out": left_out, **dataclasses.asdict(cost)}))
    return 0
  print(f"{args.dst}: " + ", ".join(f"{item} ({_millions(count)} parameters)" for item, count in counts.items()))
  if left_out:
    print(f"  the donor has no name for {len(left_out)} leaves: {', '.join(left_out[:6])}")
  print(_cost(cost))
  return 0


def _inspect(args: argparse.Namespace) -> int:
  known = [donors.load(name) for name in donors.NAMES]
  with open_source(args.file, folders=[folder for donor in known for folder in donor.folders]) as source:
    match = donors.match(known, source.shapes)
    found: dict[str, Any] = {
      "file": args.file,
      "kind": source.kind,
      "container": source.container,
      "tensors": len(source.shapes),
      "parameters": sum(math.prod(shape) for shape in source.shapes.values()),
      "dtypes": dict(collections.Counter(source.dtypes.values())),
      "skipped": dict(source.skipped),
      "donor": None,
    }
    # A few keys of an unrelated file may match by chance.
    taken = len(source.shapes) - len(match.dropped) - len(match.plan.unused)
    if taken > len(source.shapes) / 2:
      found |= {
        "donor": match.donor.name,
        "title": match.donor.title,
        "naming": match.naming.name,
        "licence": match.donor.licence,
        "missing": [match.keys.get(key, key) for key in match.plan.missing],
        "unused": [*match.dropped, *(match.keys.get(key, key) for key in match.plan.unused)],
      }
      try:
        found["sizes"] = donors.check(match, args.file)
      except InputError as error:
        found["problem"] = str(error)
  whole = "sizes" in found
  if args.json:
    print(json.dumps(found))
    return 0 if whole else 1
  print(f"{args.file}: {found['kind']}{f', in {source.container!r}' if source.container else ''}")
  types = ", ".join(f"{count} {name}" for name, count in found["dtypes"].items())
  print(f"  {found['tensors']} tensors ({types}), {_millions(found['parameters'])} parameters")
  if found["donor"] is None:
    print(f"  not a checkpoint that can be converted; its first keys are {', '.join(list(source.shapes)[:3])}")
    return 1
  print(f"  {found['title']} ({found['naming']}), licence {found['licence']}")
  if unused := found["unused"]:
    print(f"  would be unused ({len(unused)}): {', '.join(unused[:6])}{', ...' if len(unused) > 6 else ''}")
  if not whole:
    print(found["problem"])
    return 1
  print(f"  sizes: {', '.join(f'{name} {value}' for name, value in found['sizes'].items())}")
  print(f"  python -m synclipmae_jax.convert {found['donor']} --src {args.file} --dst DIR")
  return 0


def _millions(count: int) -> str:
  return f"{count / 1e6:,.1f} M" if count >= 1e5 else f"{count:,}"


def _cost(cost: Cost) -> str:
  peak = "" if cost.peak_gib is None else f", peak memory {cost.peak_gib:.2f} GiB"
  return f"  {cost.seconds:.1f} s{peak} for {cost.result_gib:.2f} GiB of weights"


if __name__ == "__main__":
  run()
