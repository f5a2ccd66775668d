"""ViTMAE base and large (He et al. 2022): a warm start of the visual encoder and of the decoder.

The decoder's blocks fill the self-attentions and MLPs of the model's decoder. Its cross-attention stays freshly
initialised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from synclipmae_jax.convert.donor import Donor, Naming, root
from synclipmae_jax.convert.rules import IMAGE_PATCHES, LINEAR, SAME, Layout, Rule, Shape, fused, fused_bias, ones
from synclipmae_jax.convert.sapiens import (
  CLASS_TOKEN,
  NO_PROMPTS,
  POSITION_WITH_CLASS,
  PROMPT_TOKENS,
  encoder_module,
  encoder_sizes,
)
from synclipmae_jax.models.decoder import Decoder
from synclipmae_jax.models.functional import Functional

DECODER_POSITION = Layout(
  lambda x: (x[0, 1:],),
  lambda table: (np.pad(table, ((1, 0), (0, 0)))[None],),
  lossy="the decoder's position of the class token (zeros in the released files) is dropped",
)


def _sizes(leaves: Mapping[str, Shape]) -> dict[str, Any]:
  sizes = encoder_sizes(leaves)
  if "decoder/embed_patches/kernel" not in leaves:
    return sizes
  width = leaves["decoder/embed_patches/bias"][0]
  depth, _, mlp_width = leaves["decoder/blocks/prompted_mlp/mlp/up/kernel"]
  decoder = dict(
    grid=root(leaves["decoder/position"][0], "the decoder's positional table"),
    patch=sizes["patch"],
    token_width=sizes["width"],
    width=width,
    depth=depth,
    heads=width // math.gcd(width, 32),  # not in the shapes; the released models have 16 heads of width 32
    mlp_width=mlp_width,
  )
  return sizes | {"decoder": decoder}


def _modules(*, decoder: Mapping[str, Any] | None = None, **sizes: Any) -> dict[str, Functional]:
  modules = encoder_module(**sizes)
  if decoder is not None:
    modules["decoder"] = Functional(lambda rngs: Decoder(**decoder, rngs=rngs))
  return modules


def _pair(source: str, target: str, layout: Layout = LINEAR) -> tuple[Rule, Rule]:
  return Rule(f"{source}.weight", f"{target}/kernel", layout), Rule(f"{source}.bias", f"{target}/bias")


def _norm(source: str, target: str) -> tuple[Rule, Rule]:
  return Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")


def _block(prefix: str, names: Mapping[str, str], attention: str, mlp: str, norms: tuple[str, str]) -> tuple[Rule, ...]:
  """One transformer block; `names["qkv"]` lists one fused tensor or three (query, key, value)."""
  qkv = [f"{prefix}.{name}" for name in names["qkv"].split()]
  weight, bias = (LINEAR, SAME) if len(qkv) == 1 else (fused(3), fused_bias(3))
  return (
    *_norm(f"{prefix}.{names['norm1']}", norms[0]),
    Rule(tuple(f"{key}.weight" for key in qkv), f"{attention}/qkv/kernel", weight),
    Rule(tuple(f"{key}.bias" for key in qkv), f"{attention}/qkv/bias", bias),
    *_pair(f"{prefix}.{names['out']}", f"{attention}/out"),
    *_norm(f"{prefix}.{names['norm2']}", norms[1]),
    *_pair(f"{prefix}.{names['up']}", f"{mlp}/up"),
    *_pair(f"{prefix}.{names['down']}", f"{mlp}/down"),
  )


def _encoder(prefix: str, names: Mapping[str, str]) -> tuple[Rule, ...]:
  ours = "visual_encoder"
  blocks = f"{ours}/blocks"
  return (
    Rule(prefix + names["cls"], f"{ours}/class_token", ones(before=1)),
    Rule(prefix + names["position"], (f"{ours}/class_position", f"{ours}/position"), POSITION_WITH_CLASS),
    *_pair(prefix + names["patch"], f"{ours}/patch_embedding", IMAGE_PATCHES),
    *_block(
      prefix + names["blocks"], names, f"{blocks}/attention", f"{blocks}/mlp",
      (f"{blocks}/norm_attention", f"{blocks}/norm_mlp"),
    ),
    *_norm(prefix + names["norm"], f"{ours}/norm"),
    PROMPT_TOKENS,
  )  # fmt: skip


def _decoder(prefix: str, blocks: str, names: Mapping[str, str]) -> tuple[Rule, ...]:
  attention, mlp = "decoder/blocks/patch_attention", "decoder/blocks/prompted_mlp"
  return (
    *_pair(f"{prefix}decoder_embed", "decoder/embed_patches"),
    Rule(f"{prefix}mask_token", "decoder/mask_token", ones(before=1)),
    Rule(f"{prefix}decoder_pos_embed", "decoder/position", DECODER_POSITION),
    *_block(prefix + blocks, names, f"{attention}/attention", f"{mlp}/mlp", (f"{attention}/norm", f"{mlp}/norm_mlp")),
    *_norm(f"{prefix}decoder_norm", "decoder/norm"),
    *_pair(f"{prefix}decoder_pred", "decoder/to_pixels"),
  )


_HUGGING_FACE = dict(
  cls="embeddings.cls_token",
  position="embeddings.position_embeddings",
  patch="embeddings.patch_embeddings.projection",
  blocks="encoder.layer.{i}",
  norm="layernorm",
  norm1="layernorm_before",
  qkv="attention.attention.query attention.attention.key attention.attention.value",
  out="attention.output.dense",
  norm2="layernorm_after",
  up="intermediate.dense",
  down="output.dense",
)
_ORIGINAL = dict(
  cls="cls_token",
  position="pos_embed",
  patch="patch_embed.proj",
  blocks="blocks.{i}",
  norm="norm",
  norm1="norm1",
  qkv="attn.qkv",
  out="attn.proj",
  norm2="norm2",
  up="mlp.fc1",
  down="mlp.fc2",
)
_TO_HUB: dict[str, Any] = dict(
  # Files on the hub have the names of transformers 4, which the rules use. Version 5 has other names in memory, and
  # saves a freshly built decoder under further ones.
  rename=(
    (r"^(?=(embeddings|encoder|layers|layernorm)\.)", "vit."),
    (r"^vit\.layers\.", "vit.encoder.layer."),
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
  ),
  drop=(r"(vit\.)?pooler\..*", r"classifier\..*"),
)

_HUB_ENCODER = _encoder("vit.", _HUGGING_FACE)
_ORIGINAL_ENCODER = _encoder("", _ORIGINAL)

DONOR = Donor(
  name="vit_mae",
  title="ViTMAE",
  licence="Apache-2.0 (Hugging Face), CC-BY-NC-4.0 (facebookresearch/mae)",
  origin="pytorch_model.bin of facebook/vit-mae-base or -large; mae_pretrain_vit_base.pth (encoder only) or "
  "mae_visualize_vit_base.pth of facebookresearch/mae",
  namings=(
    Naming("Hugging Face", (*_HUB_ENCODER, *_decoder("decoder.", "decoder_layers.{i}", _HUGGING_FACE)), **_TO_HUB),
    Naming("Hugging Face, encoder only", _HUB_ENCODER, **_TO_HUB),
    Naming("original", (*_ORIGINAL_ENCODER, *_decoder("", "decoder_blocks.{i}", _ORIGINAL))),
    Naming("original, encoder only", _ORIGINAL_ENCODER, drop=(r"head\..*",)),
  ),
  sizes=_sizes,
  modules=_modules,
  optional=NO_PROMPTS
  | CLASS_TOKEN
  | {
    r"decoder/embed_patches/.*": "its input width is that of the donor's encoder",
    r"decoder/embed_prompts/.*": "the donor has no prompt tokens",
    r"decoder/blocks/prompted_mlp/(norm_)?cross/.*": "the donor has no cross-attention",
  },
)
