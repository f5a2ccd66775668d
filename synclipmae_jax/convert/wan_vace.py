"""Wan2.1-VACE (Wan-Video/Wan2.1, `VaceWanModel`; diffusers `WanVACETransformer3DModel`). The backbone and the
VACE path are two items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from synclipmae_jax.convert.donor import Donor, Naming
from synclipmae_jax.convert.rules import LINEAR, Layout, Rule, Shape, fused, fused_bias, ones, patch_kernel
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.wan.dit import PATCH, Dit
from synclipmae_jax.models.wan.vace import Vace

CONTEXT_CHANNELS = 96
LATENT_CHANNELS = 16


def _dense(source: str, target: str, layout: Layout = LINEAR) -> tuple[Rule, Rule]:
  return Rule(f"{source}.weight", f"{target}/kernel", layout), Rule(f"{source}.bias", f"{target}/bias")


def _fused(sources: tuple[str, ...], target: str) -> tuple[Rule, Rule]:
  return (
    Rule(tuple(f"{source}.weight" for source in sources), f"{target}/kernel", fused(len(sources))),
    Rule(tuple(f"{source}.bias" for source in sources), f"{target}/bias", fused_bias(len(sources))),
  )


def _blocks(source: str, target: str) -> Iterator[Rule]:
  yield Rule(f"{source}.modulation", f"{target}/modulation", ones(before=1))
  yield from _fused(tuple(f"{source}.self_attn.{name}" for name in "qkv"), f"{target}/attention/qkv")
  yield from _dense(f"{source}.cross_attn.q", f"{target}/cross/query")
  yield from _fused(tuple(f"{source}.cross_attn.{name}" for name in "kv"), f"{target}/cross/key_value")
  for theirs, ours in (("self_attn", "attention"), ("cross_attn", "cross")):
    yield from _dense(f"{source}.{theirs}.o", f"{target}/{ours}/out")
    yield Rule(f"{source}.{theirs}.norm_q.weight", f"{target}/{ours}/norm_query/scale")
    yield Rule(f"{source}.{theirs}.norm_k.weight", f"{target}/{ours}/norm_key/scale")
  yield Rule(f"{source}.norm3.weight", f"{target}/norm_cross/scale")
  yield Rule(f"{source}.norm3.bias", f"{target}/norm_cross/bias")
  yield from _dense(f"{source}.ffn.0", f"{target}/mlp/up")
  yield from _dense(f"{source}.ffn.2", f"{target}/mlp/down")


def _patches(channels: int) -> Layout:
  return patch_kernel(size=(1, PATCH, PATCH), channels=channels)


RULES = (
  *_dense("patch_embedding", "dit/patch_embedding", _patches(LATENT_CHANNELS)),
  *_dense("text_embedding.0", "dit/text_embedding/up"),
  *_dense("text_embedding.2", "dit/text_embedding/down"),
  *_dense("time_embedding.0", "dit/time_embedding/up"),
  *_dense("time_embedding.2", "dit/time_embedding/down"),
  *_dense("time_projection.1", "dit/time_projection"),
  *_blocks("blocks.{i}", "dit/blocks"),
  Rule("head.modulation", "dit/head/modulation", ones(before=1)),
  *_dense("head.head", "dit/head/projection"),  # the channel is already the fastest axis of its outputs
  *_dense("vace_patch_embedding", "vace/patch_embedding", _patches(CONTEXT_CHANNELS)),
  *_dense("vace_blocks.0.before_proj", "vace/before_projection"),
  *_blocks("vace_blocks.{i}", "vace/blocks"),
  *_dense("vace_blocks.{i}.after_proj", "vace/blocks/after_projection"),
)

_UNPREFIXED = ((r"^model\.diffusion_model\.", ""),)
_FROM_DIFFUSERS = (
  *_UNPREFIXED,
  (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
  (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
  (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
  (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
  (r"^condition_embedder\.time_proj\.", "time_projection.1."),
  (r"\.attn1\.", ".self_attn."),
  (r"\.attn2\.", ".cross_attn."),
  (r"\.to_([qkv])\.", r".\1."),
  (r"\.to_out\.0\.", ".o."),
  (r"\.norm2\.", ".norm3."),  # the norm before cross-attention: third in the original, second in diffusers
  (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
  (r"\.ffn\.net\.2\.", ".ffn.2."),
  (r"^proj_out\.", "head.head."),
  (r"\.proj_in\.", ".before_proj."),
  (r"\.proj_out\.", ".after_proj."),
  (r"^scale_shift_table$", "head.modulation"),
  (r"\.scale_shift_table$", ".modulation"),
)
_ROTARY_TABLES = (r"freqs|rope\..*",)  # buffers; the model computes them


def _sizes(leaves: Mapping[str, Shape]) -> dict[str, Any]:
  """Keyword arguments of both modules. Shapes do not show the number of heads: released heads have width 128."""
  depth, width, mlp_width = leaves["dit/blocks/mlp/up/kernel"]
  hints = leaves["vace/blocks/mlp/up/kernel"][0]
  return dict(
    width=width,
    depth=depth,
    heads=width // 128 if width % 128 == 0 else 1,
    mlp_width=mlp_width,
    text_width=leaves["dit/text_embedding/up/kernel"][0],
    time_features=leaves["dit/time_embedding/up/kernel"][0],
    hints=hints,
    stride=-(-depth // hints),
  )


def _modules(
  *, width: int, depth: int, heads: int, mlp_width: int, text_width: int, time_features: int, hints: int, stride: int
) -> dict[str, Functional]:
  block: dict[str, Any] = dict(width=width, heads=heads, mlp_width=mlp_width)
  return {
    "dit": Functional(
      lambda rngs: Dit(**block, depth=depth, text_width=text_width, time_features=time_features, rngs=rngs)
    ),
    "vace": Functional(lambda rngs: Vace(**block, depth=hints, stride=stride, rngs=rngs)),
  }


DONOR = Donor(
  name="wan_vace",
  title="Wan2.1-VACE",
  licence="Apache-2.0",
  origin="Wan-AI/Wan2.1-VACE-1.3B, diffusion_pytorch_model.safetensors; in diffusers' form the folder transformer",
  namings=(
    Naming("original", RULES, rename=_UNPREFIXED, drop=_ROTARY_TABLES),
    Naming("diffusers", RULES, rename=_FROM_DIFFUSERS, drop=_ROTARY_TABLES),
  ),
  sizes=_sizes,
  modules=_modules,
  folders=("transformer",),
)
