"""VideoMAE (Tong et al. 2022): the encoder, and the decoder of its pretraining, from either naming."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from synclipmae_jax.baselines.videomae import TUBELET, VideoDecoder, VideoEncoder
from synclipmae_jax.convert.donor import Donor, Naming
from synclipmae_jax.convert.rules import LINEAR, Layout, Rule, Shape, fused, ones, patch_kernel
from synclipmae_jax.models.functional import Functional

ENCODER, DECODER = "video_encoder", "video_decoder"  # the items
# Not in the shapes: what the released models see.
FRAMES, IMAGE_SIZE = 16, 224


def _tubes(kernel: np.ndarray) -> tuple[np.ndarray, ...]:
  side = math.isqrt(kernel.shape[0] // (3 * TUBELET))
  return patch_kernel(size=(TUBELET, side, side), channels=3).inverse(kernel)


# (out, 3, 2, p, p) -> (2 * p * p * 3, out): frames, rows, columns, channels. The patch size comes from the shapes.
TUBES = Layout(lambda x: patch_kernel(size=(TUBELET, *2 * x.shape[-1:]), channels=3).forward(x), _tubes)
# Biases of queries and values; keys have none, which our block has as zeros.
QV_BIAS = Layout(
  lambda q, v: (np.concatenate([q, np.zeros_like(q), v]),),
  lambda bias: (np.split(bias, 3)[0], np.split(bias, 3)[2]),
)


def video_sizes(leaves: Mapping[str, Shape], *, epsilon: float, normalise: bool) -> dict[str, Any]:
  """Keyword arguments of both modules. Shapes do not show the heads: their width is 64, and 80 in the huge model."""
  depth, width, mlp_width = leaves[f"{ENCODER}/blocks/mlp/up/kernel"]
  patch = math.isqrt(leaves[f"{ENCODER}/patch_embedding/kernel"][0] // (3 * TUBELET))
  image_size, table = IMAGE_SIZE, f"{ENCODER}/position" in leaves
  if table:
    image_size = patch * math.isqrt(leaves[f"{ENCODER}/position"][0] * TUBELET // FRAMES)
  shared = dict(patch=patch, epsilon=epsilon, position_table=table)
  encoder = dict(
    image_size=image_size, frames=FRAMES, width=width, depth=depth, heads=_heads(width), mlp_width=mlp_width,
    normalise=normalise,
  )  # fmt: skip
  if f"{DECODER}/mask_token" not in leaves:
    return {"encoder": shared | encoder}
  depth, narrow, mlp_width = leaves[f"{DECODER}/blocks/mlp/up/kernel"]
  tubes = FRAMES // TUBELET * (image_size // patch) ** 2
  decoder = dict(
    tubes=tubes, token_width=width, width=narrow, depth=depth, heads=_heads(narrow), mlp_width=mlp_width
  )  # fmt: skip
  return {"encoder": shared | encoder, "decoder": shared | decoder}


def _heads(width: int) -> int:
  return width // (80 if width % 80 == 0 else math.gcd(width, 64))


def video_modules(*, encoder: Mapping[str, Any], decoder: Mapping[str, Any] | None = None) -> dict[str, Functional]:
  modules = {ENCODER: Functional(lambda rngs: VideoEncoder(**encoder, rngs=rngs))}
  if decoder is not None:
    modules[DECODER] = Functional(lambda rngs: VideoDecoder(**decoder, rngs=rngs))
  return modules


def dense(source: str, target: str, layout: Layout = LINEAR) -> tuple[Rule, Rule]:
  return Rule(f"{source}.weight", f"{target}/kernel", layout), Rule(f"{source}.bias", f"{target}/bias")


def norm(source: str, target: str) -> tuple[Rule, Rule]:
  return Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")


def block(source: str, item: str, names: Mapping[str, str]) -> tuple[Rule, ...]:
  """One transformer block; `names["qkv"]` lists the weights of one fused tensor or of three."""
  ours, at = f"{item}/blocks", lambda name: f"{source}.{names[name]}"
  qkv = tuple(f"{source}.{name}" for name in names["qkv"].split())
  return (
    *norm(at("norm1"), f"{ours}/norm_attention"),
    Rule(qkv, f"{ours}/attention/qkv/kernel", LINEAR if len(qkv) == 1 else fused(3)),
    Rule((at("q_bias"), at("v_bias")), f"{ours}/attention/qkv/bias", QV_BIAS),
    *dense(at("out"), f"{ours}/attention/out"),
    *norm(at("norm2"), f"{ours}/norm_mlp"),
    *dense(at("up"), f"{ours}/mlp/up"),
    *dense(at("down"), f"{ours}/mlp/down"),
  )


ORIGINAL = dict(
  norm1="norm1",
  qkv="attn.qkv.weight",
  q_bias="attn.q_bias",
  v_bias="attn.v_bias",
  out="attn.proj",
  norm2="norm2",
  up="mlp.fc1",
  down="mlp.fc2",
)
_HUGGING_FACE = dict(
  norm1="layernorm_before",
  qkv=" ".join(f"attention.attention.{name}.weight" for name in ("query", "key", "value")),
  q_bias="attention.attention.query.bias",
  v_bias="attention.attention.value.bias",
  out="attention.output.dense",
  norm2="layernorm_after",
  up="intermediate.dense",
  down="output.dense",
)


def _encoder(patch: str, blocks: str, last: str, names: Mapping[str, str]) -> tuple[Rule, ...]:
  return (
    *dense(patch, f"{ENCODER}/patch_embedding", TUBES),
    *block(blocks, ENCODER, names),
    *norm(last, f"{ENCODER}/norm"),
  )


def _decoder(blocks: str, names: Mapping[str, str]) -> tuple[Rule, ...]:
  return (
    Rule("encoder_to_decoder.weight", f"{DECODER}/embed_tokens/kernel", LINEAR),
    Rule("mask_token", f"{DECODER}/mask_token", ones(before=1)),
    *block(blocks, DECODER, names),
    *norm("decoder.norm", f"{DECODER}/norm"),
    *dense("decoder.head", f"{DECODER}/to_pixels"),
  )


_ORIGINAL_ENCODER = ("encoder.patch_embed.proj", "encoder.blocks.{i}")
_HUB_ENCODER = ("videomae.embeddings.patch_embeddings.projection", "videomae.encoder.layer.{i}")
# Hub files have the names of transformers 4, version 5 has others in memory. VideoMAEModel alone has no prefix.
_HUB_NAMES = (
  (r"^(?=(embeddings|encoder|layernorm)\.)", "videomae."),
  (r"\.attention\.attention\.q_bias$", ".attention.attention.query.bias"),
  (r"\.attention\.attention\.v_bias$", ".attention.attention.value.bias"),
)
# A classifier has no norm of its tokens: it norms their mean. Its fixed table is no parameter either.
_FINE_TUNED = ((r"^(?=(patch_embed|blocks|fc_norm)\.)", "encoder."),)

DONOR = Donor(
  name="videomae",
  title="VideoMAE",
  licence="CC-BY-NC-4.0",
  origin="checkpoint.pth of MCG-NJU/VideoMAE (pretrained or fine-tuned); pytorch_model.bin or model.safetensors of "
  "MCG-NJU/videomae-base and its sisters",
  namings=(
    Naming(
      "original",
      (*_encoder(*_ORIGINAL_ENCODER, "encoder.norm", ORIGINAL), *_decoder("decoder.blocks.{i}", ORIGINAL)),
    ),
    Naming("original, encoder only", _encoder(*_ORIGINAL_ENCODER, "encoder.norm", ORIGINAL)),
    Naming(
      "original, fine-tuned", _encoder(*_ORIGINAL_ENCODER, "encoder.fc_norm", ORIGINAL), _FINE_TUNED, (r"head\..*",)
    ),
    Naming(
      "Hugging Face",
      (
        *_encoder(*_HUB_ENCODER, "videomae.layernorm", _HUGGING_FACE),
        *_decoder("decoder.decoder_layers.{i}", _HUGGING_FACE),
      ),
      _HUB_NAMES,
    ),
    Naming("Hugging Face, encoder only", _encoder(*_HUB_ENCODER, "videomae.layernorm", _HUGGING_FACE), _HUB_NAMES),
    Naming(
      "Hugging Face, fine-tuned", _encoder(*_HUB_ENCODER, "fc_norm", _HUGGING_FACE), _HUB_NAMES, (r"classifier\..*",)
    ),
  ),
  sizes=lambda leaves: video_sizes(leaves, epsilon=1e-6, normalise=True),
  modules=video_modules,
)
