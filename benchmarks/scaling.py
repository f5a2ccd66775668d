"""Growth of the cost of a step with the model, the clip, the batch and the number of devices.

    python benchmarks/scaling.py [NAME ...]          about four minutes on two cores

Every row is a step of a small model in which one size is larger. It is timed in turn with the smallest model in one
process, and printed with the growth of the model FLOPs. A time ratio below the FLOP ratio means that the larger step is
more efficient. The virtual devices of a CPU share its cores and split the same work, so a ratio above 1 is the overhead
of the split. On an accelerator only existing devices are used.
"""

from __future__ import annotations

import side_by_side

NAMES = ("width", "depth", "frames", "clips", "data-parallel devices", "fsdp devices")

arguments = side_by_side.parser(__doc__)
arguments.add_argument("names", nargs="*", metavar="NAME", help=f"rows, some of {', '.join(NAMES)} (default: all)")
arguments.add_argument("--rounds", type=int, default=11)
if __name__ == "__main__":
  flags = side_by_side.parse(arguments)
  if unknown := sorted(set(flags.names) - set(NAMES)):
    arguments.error(f"{unknown[0]!r} is not one of {', '.join(NAMES)}")

import jax
from side_by_side import in_turn, print_ratio, ratio
from train_step import build, change, sized

from synclipmae_jax.train.cpu_settings import apply_cpu_settings

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


def main(flags) -> None:
  apply_cpu_settings()
  jax.config.update("jax_num_cpu_devices", VIRTUAL_DEVICES)
  smallest = step({})
  count = lambda ours: ours.task.model_flops(ours.arguments[1])
  for name in flags.names or NAMES:
    there = lambda label: not label.isdigit() or int(label) <= jax.device_count()
    rows = {label: changes for label, changes in ROWS[name].items() if there(label)}
    runs = {"smallest": smallest} | {label: step(changes) for label, changes in rows.items()}
    in_turn(runs, rounds=2)  # warm up
    times = in_turn(runs, rounds=flags.rounds)
    for label in rows:
      flops = count(runs[label]) / count(smallest)
      of = f"{label.removesuffix(' x')} times as large / smallest" if label.endswith("x") else f"{label} devices / one"
      print_ratio("scaling", f"{name}, {label}", ratio(times[label], times["smallest"]), of=of, flops_ratio=flops)


if __name__ == "__main__":
  main(flags)
