"""Time of the features of a frozen encoder (run/feature_encoders.py) relative to the same encoder in PyTorch.

    python benchmarks/feature_extraction.py [CHECKPOINT]          a minute; default: the embedded checkpoint

Both read face crops uint8 [T, S, S, 3] with boxes and give identity, vocal and ambient tokens of every frame from two
views. The torch encoder (`torch_modules.py`, scaled dot-product attention) has the weights of the checkpoint, and its
tokens must agree within 1e-3. The choice of patches is timed on our side only. On a busy machine run it on one core, or
the threads of torch wait for one another: `OMP_NUM_THREADS=1 taskset -c 0`. Needs the extra `convert`. Target: at most
1.0 x PyTorch's time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import side_by_side

arguments = side_by_side.parser(__doc__)
arguments.add_argument("checkpoint", nargs="?", help="a workdir or a step (default: the embedded checkpoint)")
arguments.add_argument("--rounds", type=int, default=7)
arguments.add_argument("--frames", type=int, default=1024)
if __name__ == "__main__":
  flags = side_by_side.parse(arguments, needs=["torch"])

import jax
import numpy as np
import torch
from einops import rearrange
from torch_modules import VisualEncoder

from synclipmae_jax.inference.trained import load_trained
from synclipmae_jax.models.visual_encoder import PIXEL_MEAN, PIXEL_STD
from synclipmae_jax.pretrained import DEMO, SyncLipMAE
from synclipmae_jax.run.feature_encoders import BLOCK, TokenFeatures


def torch_encoder(model: SyncLipMAE, directory: str | Path) -> VisualEncoder:
  """With the parameters of `model`."""
  ours = jax.tree.map(np.asarray, model.embedder.params["visual_encoder"])
  if "class_token" in ours:
    raise SystemExit("this checkpoint has a class token: of another encoder than the benchmark's")
  depth, width, mlp_width = ours["blocks"]["mlp"]["up"]["kernel"].shape
  inner = model.embedder.model
  heads = load_trained(directory).config["model"]["visual_encoder"]["heads"]
  encoder = VisualEncoder(
    grid=inner.grid, patch=inner.patch, width=width, depth=depth, heads=heads, mlp_width=mlp_width, class_token=False
  ).eval()
  linear = lambda name, tree: {f"{name}.weight": tree["kernel"].T, f"{name}.bias": tree["bias"]}
  norm = lambda name, tree: {f"{name}.weight": tree["scale"], f"{name}.bias": tree["bias"]}
  state: dict[str, np.ndarray] = {"position": ours["position"], "prompts": ours["prompt_tokens"]}
  state |= linear("patch_embedding", ours["patch_embedding"]) | norm("norm", ours["norm"])
  for number in range(depth):
    block: Mapping = jax.tree.map(lambda leaf, at=number: leaf[at], ours["blocks"])
    state |= norm(f"blocks.{number}.0.norm", block["norm_attention"])
    state |= linear(f"blocks.{number}.0.qkv", block["attention"]["qkv"])
    state |= linear(f"blocks.{number}.0.out", block["attention"]["out"])
    state |= norm(f"blocks.{number}.1.0", block["norm_mlp"])
    state |= linear(f"blocks.{number}.1.1", block["mlp"]["up"]) | linear(f"blocks.{number}.1.3", block["mlp"]["down"])
  encoder.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
  return encoder


def main(flags) -> None:
  model, count = SyncLipMAE.load(flags.checkpoint), flags.frames
  encoder, twin = TokenFeatures(model), torch_encoder(model, flags.checkpoint or DEMO)
  inner, random = model.embedder.model, np.random.default_rng(0)
  frames = random.integers(0, 256, (count, model.image_size, model.image_size, 3), np.uint8)
  face = np.tile(np.float32([0.15, 0.15, 0.85, 0.9]), (count, 1)) + random.normal(0, 0.01, (count, 4)).astype("f4")
  mouth = np.tile(np.float32([0.35, 0.62, 0.65, 0.8]), (count, 1))
  views = [torch.from_numpy(np.array(x[0])).long() for x in inner._embed_indices((1, count), face[None], mouth[None])]
  mean, deviation = (torch.from_numpy(np.tile(x, inner.patch**2)) for x in (PIXEL_MEAN, PIXEL_STD))

  def ours() -> dict[str, np.ndarray]:
    return dict(encoder.features(frames, face_box=face, mouth_box=mouth))

  @torch.inference_mode()
  def theirs() -> dict[str, np.ndarray]:
    found = []
    for start in range(0, count, BLOCK):
      block = torch.from_numpy(frames[start : start + BLOCK])
      patches = rearrange(block, "t (h p) (w q) c -> t (h w) (p q c)", p=inner.patch, q=inner.patch)
      tokens = []
      for view in views:
        index = view[start : start + BLOCK]
        pixels = (patches[torch.arange(len(index))[:, None], index].float() / 255 - mean) / deviation
        tokens.append(twin(pixels[:, None], index[:, None])[:, 0])
      found.append(torch.stack([tokens[0][:, 0], tokens[1][:, 1], tokens[1][:, 2]]))
    return dict(zip(("identity", "vocal", "ambient"), torch.cat(found, dim=1).numpy(), strict=True))

  left, right = ours(), theirs()
  difference = max(float(np.abs(left[name] - right[name]).max()) for name in left)
  if not difference < 1e-3:
    raise SystemExit(f"the tokens differ by {difference:.1e}: this is not the same encoder")
  times = side_by_side.in_turn({"ours": ours, "torch": theirs}, rounds=flags.rounds)
  found = side_by_side.ratio(times["ours"], times["torch"])
  rates = {name: round(count / float(np.median(each.cpu))) for name, each in times.items()}
  side_by_side.print_ratio(
    "feature_extraction", "frozen encoder", found, of="ours / torch", target="<= 1.0", frames=count,
    frames_a_second_of_a_core=rates, tokens_differ_by=difference,
  )  # fmt: skip


if __name__ == "__main__":
  main(flags)
