"""Growth of the cost of a step with the model, the clip, the batch and the number of devices.

    python benchmarks/scaling.py

Every row is a step of a small model in which one size is larger. It is timed in turn with the smallest model in one
process, and printed with the growth of the model FLOPs. A time ratio below the FLOP ratio means that the larger step is
more efficient. The virtual devices of a CPU share its cores and split the same work, so a ratio above 1 is the overhead
of the split. On an accelerator only existing devices are used.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

import jax
from side_by_side import in_turn, load, ratio
from train_step import build, change, sized

from synclipmae_jax.train.host_memory import keep_freed_memory

VIRTUAL_DEVICES = 4  # on a CPU
SMALLEST = {
  "model.visual_encoder": dict(width=128, depth=2, heads=2, mlp_width=512),
  "model.decoder": dict(width=64, depth=2, heads=2, mlp_width=256),
  "model.decode_frames": 4,
  "data.clip_frames": 8,
  "data.audio_frames": 24,
  "train.batch_clips": 8,
  "loss.negatives_clips": 2,
}
ROWS = {  # what grows -> larger variants: name -> changed fields
  "width": {
    "2 x": {"model.visual_encoder": dict(width=256, mlp_width=1024, heads=4)},
    "4 x": {"model.visual_encoder": dict(width=512, mlp_width=2048, heads=8)},
  },
  "depth": {"2 x": {"model.visual_encoder": dict(depth=4)}, "4 x": {"model.visual_encoder": dict(depth=8)}},
  "frames": {
    "2 x": {"data.clip_frames": 16, "data.audio_frames": 48, "model.decode_frames": 8},
    "4 x": {"data.clip_frames": 32, "data.audio_frames": 96, "model.decode_frames": 16},
  },
  "clips": {"2 x": {"train.batch_clips": 16}, "4 x": {"train.batch_clips": 32}},
  "data-parallel devices": {str(n): {"train.mesh": (("data", n),)} for n in (2, 4)},
  "fsdp devices": {str(n): {"train.mesh": (("fsdp", n),)} for n in (2, 4)},
}


def step(changes: dict):
  """The smallest step with `changes`, on the devices of its mesh."""
  config = change(sized("demo", dtype="float32"), SMALLEST | {"train.mesh": (("data", 1),)})
  config = change(config, changes)
  return build(config, jax.devices()[: dict(config.train.mesh).popitem()[1]])


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("names", nargs="*", default=list(ROWS), help=f"rows, some of {', '.join(ROWS)} (default: all)")
  parser.add_argument("--rounds", type=int, default=11)
  parser.add_argument("--json", action="store_true", help="print one JSON object")
  args = parser.parse_args()
  if unknown := sorted(set(args.names) - set(ROWS)):
    parser.error(f"{unknown[0]!r} is not one of {', '.join(ROWS)}")
  keep_freed_memory()
  jax.config.update("jax_num_cpu_devices", VIRTUAL_DEVICES)
  smallest, result = step({}), {}
  count = lambda ours: ours.task.model_flops(ours.arguments[1])
  for name in args.names:
    there = lambda label: not label.isdigit() or int(label) <= jax.device_count()
    rows = {label: changes for label, changes in ROWS[name].items() if there(label)}
    runs = {"smallest": smallest} | {label: step(changes) for label, changes in rows.items()}
    in_turn(runs, rounds=2)  # warm up
    times = in_turn(runs, rounds=args.rounds)
    for label in rows:
      measured, flops = ratio(times[label], times["smallest"]), count(runs[label]) / count(smallest)
      result.setdefault(name, {})[label] = {"ratio": dataclasses.asdict(measured), "flops": flops}
      if not args.json:
        print(f"{name:22} {label:>4}: {measured}, FLOPs {flops:.2f} x", flush=True)
  print(json.dumps({"scaling": result, "load": load()}) if args.json else load())
  return 0


if __name__ == "__main__":
  sys.exit(main())
