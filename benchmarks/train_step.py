"""Time of the train step relative to the same step in PyTorch (`torch_twin.py`), timed in turn in one process.

    python benchmarks/train_step.py                              the demo's model, float32, all cores; three minutes
    python benchmarks/train_step.py --size=middle                12 blocks of 384, with wav2vec 2.0
    python benchmarks/train_step.py --size=paper                 on a GPU: bfloat16, the twins compiled, MFU

`plain` is a direct PyTorch implementation; `lean` also shares the decoder's first self-attention and predicts only
the scored patches. Both sides compute the paper's losses; `further terms` is the step as the preset has it, over the
same `plain`, which has none of its further terms. A turn is several steps in a row, as in a run. On a CPU all have the
settings of `main` (train/cpu_settings.py). Needs the extra `convert`. Prefix the command with `taskset -c 0` for one
core.
Targets: at most 1.1 x `plain` on a CPU, aim 1.0; on a GPU at most 0.9 x the compiled `plain`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import runpy
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import side_by_side

arguments = side_by_side.parser(__doc__)
arguments.add_argument("--size", choices=("demo", "middle", "paper"), default="demo")
arguments.add_argument("--clips", type=int, help="clips of a batch (default: 16 demo, 4 middle, 48 paper)")
arguments.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: bfloat16 on a GPU, else float32")
arguments.add_argument("--compile", action="store_true", help="torch.compile the twins (always on a GPU)")
arguments.add_argument("--untuned", action="store_true", help="without the settings of main on a CPU")
arguments.add_argument("--rounds", type=int, default=10)
arguments.add_argument("--steps", type=int, default=4, help="steps of a turn (default 4)")
if __name__ == "__main__":
  flags = side_by_side.parse(arguments, needs=["torch", "transformers"])

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from side_by_side import in_turn, print_ratio, ratio

from synclipmae_jax import sharding
from synclipmae_jax.run.jobs import training_job_of
from synclipmae_jax.train.accelerators import mfu
from synclipmae_jax.train.cpu_settings import apply_cpu_settings
from synclipmae_jax.train.optim import make_optimizer
from synclipmae_jax.train.state import init_state
from synclipmae_jax.train.step import make_train_step

SIZES = {  # preset of configs/pretrain.py and changed fields
  "demo": ("demo", {}),
  "middle": (
    "demo",
    {
      "data.image_size": 128,
      "model.visual_encoder": dict(patch=16, width=384, depth=12, heads=6, mlp_width=1536, class_token=True),
      "model.decoder": dict(width=256, depth=4, heads=8, mlp_width=1024, conditioning="cross_attention"),
      "model.speech_encoder.kind": "wav2vec2",
      "model.speech_encoder.wav2vec2": dict(width=384, depth=6, heads=6, mlp_width=1536, conv_width=256),
      "model.decode_frames": 8,
      "model.mask_ratio": 0.75,
      "loss.reconstruct_patches": "masked",
      "loss.negatives_clips": 4,
      "train.batch_clips": 4,
    },
  ),
  "paper": ("paper", {"train.batch_clips": 48, "train.mesh": (("data", -1),), "model.remat": "none"}),
}


# The paper's losses, which the twin computes too; the demo has further terms.
PAPER = {
  "loss.weights": dict(subject=0.0, frame=0.0, head=0.0, lips=0.0, spread=0.0),
  "loss.normalised_covariance": False,
  "loss.motion_weight": 0.0,
  "loss.structure_weight": 1.0,
  "loss.positive_similarity": None,
  "model.faceless_context": 0.0,
}


def sized(name: str, *, dtype: str, clips: int | None = None, further_terms: bool = False):
  """The configuration of one of SIZES."""
  preset, changes = SIZES[name]
  config = runpy.run_path(str(Path(__file__).parents[1] / "configs" / "pretrain.py"))["get_config"](preset)
  # The optimizer of the twin: the cost of Muon is not measured here.
  changes = changes | {"model.compute_dtype": dtype, "optimizer.name": "adamw"}
  if clips:
    changes |= {"train.batch_clips": clips, "loss.negatives_clips": min(clips, config.loss.negatives_clips)}
  if not further_terms:
    changes |= PAPER
  return change(config, changes)


def change(config, changes: Mapping[str, Any]):
  """Changes fields of `config`, named by their paths, in place; dicts are updated. Returns `config`."""
  for path, value in changes.items():
    *parts, field = path.split(".")
    part = functools.reduce(getattr, parts, config)
    if isinstance(value, dict):
      part[field].update(value)
    else:
      part[field] = value
  return config


@dataclasses.dataclass
class Ours:
  """The JAX step on random data; a call runs one step to its end."""

  task: Any
  compiled: Any
  state: Any
  arguments: tuple  # frozen, batch, key

  def __call__(self) -> float:
    self.state, metrics = self.compiled(self.state, *self.arguments)
    jax.block_until_ready(self.state)
    return float(metrics["loss"])


def build(config, devices=None) -> Ours:
  """Compiles the step of a configuration for `devices` (default: all)."""
  task = training_job_of(config).build_task(config)
  mesh = sharding.make_mesh(config.train.mesh, devices)
  optimizer = make_optimizer(**config.optimizer, total_steps=config.train.steps)
  state, frozen = init_state(task, optimizer, mesh, jax.random.key(0))
  random, abstract = np.random.default_rng(0), task.abstract_batches(config.train.batch_clips)[0]
  batch = {
    name: (random.integers(256, size=leaf.shape) if leaf.dtype == "uint8" else random.standard_normal(leaf.shape))
    for name, leaf in abstract.items()
  }
  batch["face_box"][:], batch["mouth_box"][:] = (0.2, 0.15, 0.8, 0.9), (0.35, 0.6, 0.65, 0.8)
  batch["index"] = np.arange(config.train.batch_clips)
  batch = {name: batch[name].astype(leaf.dtype) for name, leaf in abstract.items()}
  key = jax.device_put(jax.random.key(1), NamedSharding(mesh, PartitionSpec()))
  arguments = (frozen, sharding.to_global(batch, mesh), key)
  step = make_train_step(task, optimizer, mesh=mesh)
  return Ours(task, step.lower(state, *arguments).compile(), state, arguments)


def same_work(ours: Ours, twins, tensors) -> dict:
  """Parameters of every part, FLOPs of a step and first loss, for the JAX step and the twins."""
  from torch_twin import count_flops

  parameters, flops, first_loss = {}, {"ours": ours.task.model_flops(ours.arguments[1])}, {"ours": ours()}
  parts = dict(next(iter(twins.values())).model.named_children())
  for part, tree in {**ours.state.trainable, **ours.arguments[0]}.items():
    if part in parts:  # position tables are untrained parameters in JAX
      count = sum(leaf.size for path, leaf in sharding.tree_paths(tree) if not path.endswith("position"))
      parameters[part] = {"ours": count, "twin": sum(p.numel() for p in parts[part].parameters())}
  for name, twin in twins.items():
    loss, flops[name] = count_flops(functools.partial(twin.step, tensors))
    first_loss[name] = float(loss)
  return {"parameters": parameters, "flops": flops, "first_loss": first_loss}


def main(flags) -> None:
  import torch
  import torch_twin

  if not flags.untuned:
    apply_cpu_settings()
  torch.set_num_threads(len(os.sched_getaffinity(0)))  # as many as XLA uses
  on_gpu = torch.cuda.is_available()
  options = dict(dtype=flags.dtype or ("bfloat16" if on_gpu else "float32"), clips=flags.clips)
  config = sized(flags.size, **options)
  ours, preset = (build(each, jax.devices()[:1]) for each in (config, sized(flags.size, **options, further_terms=True)))
  twins = {name: torch_twin.Trainer(config, lean=name == "lean") for name in ("plain", "lean")}
  if (jax.default_backend() == "gpu") != on_gpu:
    arguments.error("jax and torch do not see the same devices")
  tensors = {
    name: torch.from_numpy(np.array(value)).to(twins["plain"].device)
    for name, value in ours.arguments[1].items()
    if name not in ("index", "subject", "source")
  }
  same = same_work(ours, twins, tensors)
  for twin in twins.values() if flags.compile or on_gpu else ():
    twin.compile()
  runs = {"ours": ours, "further terms": preset}
  runs |= {name: functools.partial(_finished, twin, tensors) for name, twin in twins.items()}
  in_turn(runs, rounds=2)  # warm up
  times = in_turn(runs, rounds=flags.rounds, calls=flags.steps)
  seconds = {name: statistics.median(each.wall) / flags.steps for name, each in times.items()}
  utilisation = mfu(same["flops"]["ours"], seconds["ours"], jax.devices()[:1])
  known = {"seconds": seconds, "mfu": utilisation, **same}
  for name in twins:
    target = ("<= 0.9" if on_gpu else "<= 1.1") if name == "plain" else None
    found = ratio(times["ours"], times[name])
    print_ratio("train_step", f"{flags.size}, {name}", found, of=f"ours / {name} in PyTorch", target=target, **known)
  found = ratio(times["further terms"], times["plain"])
  print_ratio("train_step", f"{flags.size}, further terms", found, of="ours with them / plain in PyTorch without")


def _finished(twin, tensors) -> float:
  return float(twin.step(tensors))  # waits for the device


if __name__ == "__main__":
  main(flags)
