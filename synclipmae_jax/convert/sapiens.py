"""Sapiens-0.3B (facebookresearch/sapiens, `MAEViT`): the visual encoder that pretraining starts from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from synclipmae_jax.convert.donor import Donor, Naming, root
from synclipmae_jax.convert.rules import IMAGE_PATCHES, LINEAR, Layout, Rule, Shape, ones
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.visual_encoder import VisualEncoder

# (1, 1 + n, d) -> the position of the class token [1, d] and the table of the patches [n, d].
POSITION_WITH_CLASS = Layout(
  lambda x: (x[0, :1], x[0, 1:]),
  lambda first, table: (np.concatenate([first, table])[None],),
)
NO_PROMPTS = {"visual_encoder/prompt_tokens": "the donor has no prompt tokens"}
CLASS_TOKEN = {r"visual_encoder/class_(token|position)": "only one of the two sides has a class token"}
# This package adds prompt tokens to the ViT; only files written by `export` contain them.
PROMPT_TOKENS = Rule("prompt_tokens", "visual_encoder/prompt_tokens", ones(before=1), optional=True)


def encoder_sizes(leaves: Mapping[str, Shape]) -> dict[str, Any]:
  """Keyword arguments of VisualEncoder. Shapes do not show the number of heads: heads of width 64 are assumed."""
  depth, width, mlp_width = leaves["visual_encoder/blocks/mlp/up/kernel"]
  patch = root(leaves["visual_encoder/patch_embedding/kernel"][0] // 3, "the patch kernel")
  grid = root(leaves["visual_encoder/position"][0], "the positional table")
  return dict(
    image_size=grid * patch,
    patch=patch,
    width=width,
    depth=depth,
    heads=width // math.gcd(width, 64),
    mlp_width=mlp_width,
    class_token="visual_encoder/class_token" in leaves,
  )


def encoder_module(**sizes: Any) -> dict[str, Functional]:
  return {"visual_encoder": Functional(lambda rngs: VisualEncoder(**sizes, rngs=rngs))}


def _both(source: str, target: str, layout: Layout) -> tuple[Rule, Rule]:
  return (
    Rule(f"{source}.weight", f"visual_encoder/{target}/kernel", layout),
    Rule(f"{source}.bias", f"visual_encoder/{target}/bias"),
  )


def _norm(source: str, target: str) -> tuple[Rule, Rule]:
  return (
    Rule(f"{source}.weight", f"visual_encoder/{target}/scale"),
    Rule(f"{source}.bias", f"visual_encoder/{target}/bias"),
  )


_RULES = (
  *_both("patch_embed.projection", "patch_embedding", IMAGE_PATCHES),
  *_norm("layers.{i}.ln1", "blocks/norm_attention"),
  *_both("layers.{i}.attn.qkv", "blocks/attention/qkv", LINEAR),
  *_both("layers.{i}.attn.proj", "blocks/attention/out", LINEAR),
  *_norm("layers.{i}.ln2", "blocks/norm_mlp"),
  *_both("layers.{i}.ffn.layers.0.0", "blocks/mlp/up", LINEAR),
  *_both("layers.{i}.ffn.layers.1", "blocks/mlp/down", LINEAR),
  *_norm("ln1", "norm"),
  PROMPT_TOKENS,
)
_WITH_CLASS = (
  Rule("cls_token", "visual_encoder/class_token", ones(before=1)),
  Rule("pos_embed", ("visual_encoder/class_position", "visual_encoder/position"), POSITION_WITH_CLASS),
)
_WITHOUT_CLASS = (Rule("pos_embed", "visual_encoder/position", ones(before=1)),)

# The cleaned file holds the backbone alone. The mmengine and TorchScript files use the prefix `backbone.`; the mmengine
# file also holds the decoder of its pretraining.
_FILES: dict[str, Any] = dict(
  rename=((r"^backbone\.", ""),), drop=(r"(neck|head|data_preprocessor|target_generator)\..*",)
)

DONOR = Donor(
  name="sapiens",
  title="Sapiens visual encoder",
  licence="CC-BY-NC-4.0",
  origin="sapiens_0.3b_epoch_1600_clean.pth (or the .pth before cleaning, or *_torchscript.pt2) of "
  "facebook/sapiens-pretrain-0.3b",
  namings=(
    Naming("Sapiens", (*_WITH_CLASS, *_RULES), **_FILES),
    Naming("Sapiens without a class token", (*_WITHOUT_CLASS, *_RULES), **_FILES),
  ),
  sizes=encoder_sizes,
  modules=encoder_module,
  optional=NO_PROMPTS | CLASS_TOKEN,
)
