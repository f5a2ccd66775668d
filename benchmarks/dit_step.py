"""Time of the dubbing model's transformer relative to diffusers' `WanVACETransformer3DModel`, timed in turn in one run.

    python benchmarks/dit_step.py [--side 16] [--frames 7] [--batch 1] [--blocks 2] [--rounds 7]

The width of the 1.3B model (1536, 12 heads, MLP 8960, text of 512) at a reduced depth: `--blocks` of Wan, and of VACE
one for every two. Random weights, converted from diffusers' model, so that both compute the same; float32, nothing
recomputed. `forward` is one evaluation; `step` is the forward and backward pass of what is trained in dubbing: the VACE
path, with the Wan blocks frozen. The optimiser and the AudioPack, which diffusers does not have, are left out. Prints
one JSON line each, ours / diffusers. About two minutes on two cores. On a busy machine run it on one core, or
the threads of torch wait for one another: `OMP_NUM_THREADS=1 taskset -c 0`. Needs the extra `parity`. Target: at most
1.0.
"""

from __future__ import annotations

import functools
import os

import side_by_side

arguments = side_by_side.parser(__doc__)
arguments.add_argument("--side", type=int, default=16, help="rows and columns of latents (64 for 512 pixels)")
arguments.add_argument("--frames", type=int, default=7, help="latent frames: 5 of a segment and two references")
arguments.add_argument("--batch", type=int, default=1)
arguments.add_argument("--blocks", type=int, default=2, help="of Wan (30 in the model)")
arguments.add_argument("--rounds", type=int, default=7)
if __name__ == "__main__":
  flags = side_by_side.parse(arguments, needs=["torch", "diffusers"])

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch

from synclipmae_jax.convert import donor, wan_vace
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.wan.dit import PATCH, Dit
from synclipmae_jax.models.wan.vace import Vace
from synclipmae_jax.models.wan.vace import wan_vace as run
from synclipmae_jax.train.cpu_settings import apply_cpu_settings

WIDTH, HEADS, MLP, TEXT, TEXT_WIDTH = 1536, 12, 8960, 512, 4096
STRIDE = 2  # Wan blocks for each of VACE


def reference(blocks: int) -> torch.nn.Module:
  """Random weights; only the VACE path has gradients."""
  torch.manual_seed(0)
  model = diffusers.WanVACETransformer3DModel(
    num_attention_heads=HEADS, attention_head_dim=WIDTH // HEADS, ffn_dim=MLP, num_layers=blocks,
    vace_layers=list(range(0, blocks, STRIDE)), text_dim=TEXT_WIDTH,
  )  # fmt: skip
  for name, parameter in model.named_parameters():
    parameter.requires_grad_(name.startswith("vace_"))
  return model.eval()


def converted(model: torch.nn.Module) -> dict:
  """Our items with the weights of diffusers' model."""
  tensors = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
  match = donor.match([wan_vace.DONOR], {key: tensor.shape for key, tensor in tensors.items()})
  donor.check(match, "the model of diffusers")
  tree: dict = {}
  for path, leaf in match.plan.fill(lambda key: tensors[match.keys[key]], np.dtype(np.float32)).items():
    *parents, name = path.split("/")
    functools.reduce(lambda node, part: node.setdefault(part, {}), parents, tree)[name] = leaf
  return jax.device_put(tree)


def ours(params: dict, inputs: dict, *, blocks: int):
  """(forward, step): functions without arguments that run to their end."""
  block = dict(width=WIDTH, heads=HEADS, mlp_width=MLP, unroll=True)
  dit = Functional(lambda rngs: Dit(**block, depth=blocks, text_width=TEXT_WIDTH, text_length=TEXT, rngs=rngs))
  vace = Functional(lambda rngs: Vace(**block, depth=-(-blocks // STRIDE), stride=STRIDE, rngs=rngs))
  given = [jnp.asarray(inputs[name]) for name in ("latents", "context", "text", "t")]
  target = jnp.asarray(inputs["target"])

  def velocity(trained, frozen, *given):
    return run(dit.bind(frozen), vace.bind(trained), *given)

  def loss(trained, frozen, target, *given):
    return jnp.square(velocity(trained, frozen, *given) - target).mean()

  forward = jax.jit(velocity)
  step = jax.jit(jax.value_and_grad(loss))
  return (
    lambda: jax.block_until_ready(forward(params["vace"], params["dit"], *given)),
    lambda: jax.block_until_ready(step(params["vace"], params["dit"], target, *given)),
  )


def theirs(model: torch.nn.Module, inputs: dict):
  """The same of diffusers."""
  first = lambda x: torch.from_numpy(np.moveaxis(x, -1, 1).copy())
  latents, context, target = (first(inputs[name]) for name in ("latents", "context", "target"))
  text, t = torch.from_numpy(inputs["text"]), torch.from_numpy(inputs["t"])

  def velocity():
    return model(latents, t, text, control_hidden_states=context, return_dict=False)[0]

  def forward():
    with torch.no_grad():
      return velocity()

  def step():
    model.zero_grad(set_to_none=True)
    loss = (velocity() - target).square().mean()
    loss.backward()
    return loss

  return forward, step


def same_work(ours, theirs, model: torch.nn.Module) -> dict[str, float]:
  """Relative differences of output, loss and norm of the gradient. Ends the program where they are large."""
  found, expected = np.asarray(ours[0]()), np.moveaxis(theirs[0]().numpy(), 1, -1)
  loss, gradient = ours[1]()
  expected_loss = theirs[1]().item()
  norm = np.sqrt(sum(float(jnp.square(leaf).sum()) for leaf in jax.tree.leaves(gradient)))
  parts = [p.grad.square().sum().item() for p in model.parameters() if p.grad is not None]
  differences = {
    "output": float(np.abs(found - expected).max() / np.abs(expected).max()),
    "loss": abs(float(loss) / expected_loss - 1),
    "gradient": abs(norm / np.sqrt(sum(parts)) - 1),
  }
  if not max(differences.values()) < 1e-3:
    raise SystemExit(f"the models do not compute the same: {differences}")
  return differences


def main(flags) -> None:
  if flags.side % PATCH or min(vars(flags).values()) < 1:
    arguments.error("all numbers are at least 1, and --side is even")
  apply_cpu_settings()
  torch.set_num_threads(len(os.sched_getaffinity(0)))  # as many as XLA uses
  place, rng = (flags.batch, flags.frames, flags.side, flags.side), np.random.default_rng(0)
  shapes = {"latents": (*place, 16), "target": (*place, 16), "context": (*place, 96)}
  inputs = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
  inputs["text"] = rng.standard_normal((flags.batch, TEXT, TEXT_WIDTH), np.float32)
  inputs["t"] = np.linspace(900, 300, flags.batch, dtype=np.float32)
  model = reference(flags.blocks)
  mine, other = ours(converted(model), inputs, blocks=flags.blocks), theirs(model, inputs)
  differences = same_work(mine, other, model)
  tokens = flags.frames * (flags.side // PATCH) ** 2
  for name, pair in zip(("forward", "step"), zip(mine, other, strict=True), strict=True):
    times = side_by_side.in_turn(dict(zip(("ours", "diffusers"), pair, strict=True)), rounds=flags.rounds)
    side_by_side.print_ratio(
      "dit_step", f"{name}, {tokens} tokens, {flags.blocks} blocks",
      side_by_side.ratio(times["ours"], times["diffusers"]), of="ours / diffusers", target="<= 1.0",
      batch=flags.batch, differences=differences,
    )  # fmt: skip


if __name__ == "__main__":
  main(flags)
