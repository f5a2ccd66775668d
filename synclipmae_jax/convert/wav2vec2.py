"""wav2vec 2.0 base (Baevski et al. 2020): the frozen speech encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from synclipmae_jax.convert.donor import Donor, Naming
from synclipmae_jax.convert.rules import CONV1D, LINEAR, Layout, Rule, Shape, fused, fused_bias
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.wav2vec2 import KERNELS, Wav2Vec2


def _fold(g: np.ndarray, v: np.ndarray) -> tuple[np.ndarray]:
  """weight_norm(dim=2): g (1, 1, k) and v (out, in, k) -> kernel (k, in, out), one norm for each of the k taps."""
  v = v.astype(np.float64)
  with np.errstate(invalid="ignore", divide="ignore"):
    weight = g.astype(np.float64) * v / np.sqrt((v**2).sum(axis=(0, 1), keepdims=True))
  return (weight.transpose(2, 1, 0).astype(np.float32),)


def _unfold(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  v = kernel.transpose(2, 1, 0)
  norm = np.sqrt((v.astype(np.float64) ** 2).sum(axis=(0, 1), keepdims=True))
  return norm.astype(kernel.dtype), v


WEIGHT_NORM = Layout(_fold, _unfold, lossy="weight norm is folded: export restores g and v with the same product")


def _sizes(leaves: Mapping[str, Shape]) -> dict[str, Any]:
  depth, width, mlp_width = leaves["speech_encoder/blocks/mlp/up/kernel"]
  pos_kernel, group_width, _ = leaves["speech_encoder/positional_conv/kernel"]
  return dict(
    width=width,
    depth=depth,
    heads=width // math.gcd(width, 64),  # not in the shapes; heads have width 64
    mlp_width=mlp_width,
    conv_width=leaves["speech_encoder/projection/kernel"][0],
    pos_kernel=pos_kernel,
    pos_groups=width // group_width,
  )


def _modules(**sizes: Any) -> dict[str, Functional]:
  return {"speech_encoder": Functional(lambda rngs: Wav2Vec2(**sizes, rngs=rngs))}


def _norm(source: str, target: str) -> tuple[Rule, Rule]:
  return (
    Rule(f"{source}.weight", f"speech_encoder/{target}/scale"),
    Rule(f"{source}.bias", f"speech_encoder/{target}/bias"),
  )


def _dense(source: str, target: str) -> tuple[Rule, Rule]:
  return (
    Rule(f"{source}.weight", f"speech_encoder/{target}/kernel", LINEAR),
    Rule(f"{source}.bias", f"speech_encoder/{target}/bias"),
  )


_QKV = tuple(f"encoder.layers.{{i}}.attention.{name}_proj" for name in "qkv")
_RULES = (
  *(
    Rule(f"feature_extractor.conv_layers.{n}.conv.weight", f"speech_encoder/feature_extractor/conv_{n}/kernel", CONV1D)
    for n in range(len(KERNELS))
  ),
  *_norm("feature_extractor.conv_layers.0.layer_norm", "feature_extractor/norm"),
  *_norm("feature_projection.layer_norm", "norm_features"),
  *_dense("feature_projection.projection", "projection"),
  Rule(
    ("encoder.pos_conv_embed.conv.weight_g", "encoder.pos_conv_embed.conv.weight_v"),
    "speech_encoder/positional_conv/kernel",
    WEIGHT_NORM,
  ),
  Rule("encoder.pos_conv_embed.conv.bias", "speech_encoder/positional_conv/bias"),
  *_norm("encoder.layer_norm", "norm"),
  Rule(tuple(f"{key}.weight" for key in _QKV), "speech_encoder/blocks/attention/qkv/kernel", fused(3)),
  Rule(tuple(f"{key}.bias" for key in _QKV), "speech_encoder/blocks/attention/qkv/bias", fused_bias(3)),
  *_dense("encoder.layers.{i}.attention.out_proj", "blocks/attention/out"),
  *_norm("encoder.layers.{i}.layer_norm", "blocks/norm_attention"),
  *_dense("encoder.layers.{i}.feed_forward.intermediate_dense", "blocks/mlp/up"),
  *_dense("encoder.layers.{i}.feed_forward.output_dense", "blocks/mlp/down"),
  *_norm("encoder.layers.{i}.final_layer_norm", "blocks/norm_mlp"),
)

DONOR = Donor(
  name="wav2vec2",
  title="wav2vec 2.0 base",
  licence="Apache-2.0 (Hugging Face), MIT (fairseq)",
  origin="model.safetensors or pytorch_model.bin of facebook/wav2vec2-base or -base-960h; wav2vec_small.pt of fairseq",
  namings=(
    Naming(
      "Hugging Face",
      _RULES,
      rename=(
        (r"^wav2vec2\.", ""),
        (r"\.parametrizations\.weight\.original0$", ".weight_g"),
        (r"\.parametrizations\.weight\.original1$", ".weight_v"),
      ),
      # masked_spec_embed is for training only, the quantizer for ForPreTraining, lm_head for ForCTC.
      drop=(r"masked_spec_embed", r"(quantizer|project_hid|project_q|lm_head|dropout_features)\..*"),
    ),
    Naming(
      "fairseq",
      _RULES,
      rename=(
        (r"^(w2v_encoder\.)?w2v_model\.", ""),
        (r"^layer_norm\.", "feature_projection.layer_norm."),
        (r"^post_extract_proj\.", "feature_projection.projection."),
        (r"^(feature_extractor\.conv_layers\.\d+)\.0\.", r"\1.conv."),
        (r"^(feature_extractor\.conv_layers\.\d+)\.2\.", r"\1.layer_norm."),
        (r"^encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
        (r"^(encoder\.layers\.\d+)\.self_attn\.", r"\1.attention."),
        (r"^(encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.layer_norm."),
        (r"^(encoder\.layers\.\d+)\.fc1\.", r"\1.feed_forward.intermediate_dense."),
        (r"^(encoder\.layers\.\d+)\.fc2\.", r"\1.feed_forward.output_dense."),
      ),
      drop=(r"mask_emb", r"(quantizer|project_q|final_proj|w2v_encoder\.proj)\b.*"),
    ),
  ),
  sizes=_sizes,
  modules=_modules,
)
