"""AV-HuBERT (Shi et al. 2022; facebookresearch/av_hubert): front end, encoder, and the decoder or CTC layer if any.

A file of pretraining has the encoder alone; fine-tuned for reading, it is below `encoder.w2v_model` beside a decoder
(av_hubert_seq2seq), or below `w2v_encoder.w2v_model` beside a dense layer (av_hubert_ctc).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from synclipmae_jax.baselines.av_hubert import EPSILON, AvHubert
from synclipmae_jax.baselines.lip_resnet import BLOCKS, WIDTHS, LipResNet
from synclipmae_jax.convert.auto_avsr import batch_norm, layer, norm
from synclipmae_jax.convert.donor import Donor, Naming
from synclipmae_jax.convert.rules import CONV2D, CONV3D, Layout, Rule, Shape, fused, fused_bias
from synclipmae_jax.convert.wav2vec2 import WEIGHT_NORM
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.recogniser import CtcHead
from synclipmae_jax.models.text_decoder import TextDecoder

_HEAD = 64  # width of a head of the encoder


def _projections(source: str, names: str, target: str) -> Iterator[Rule]:
  """Several dense layers in one kernel."""
  keys = [f"{source}.{name}_proj" for name in names]
  layout: Layout = fused(len(keys))
  yield Rule(tuple(f"{key}.weight" for key in keys), f"{target}/kernel", layout)
  yield Rule(tuple(f"{key}.bias" for key in keys), f"{target}/bias", fused_bias(len(keys)))


def _frontend() -> Iterator[Rule]:
  source = "feature_extractor_video.resnet"
  yield Rule(f"{source}.frontend3D.0.weight", "lip_resnet/stem/kernel", CONV3D)
  yield from batch_norm(f"{source}.frontend3D.1", "lip_resnet/norm_stem")
  yield Rule(f"{source}.frontend3D.2.weight", "lip_resnet/activation/slope")
  for i in range(BLOCKS * len(WIDTHS)):
    theirs, ours = f"{source}.trunk.layer{i // BLOCKS + 1}.{i % BLOCKS}", f"lip_resnet/block_{i}"
    for n in (1, 2):
      yield Rule(f"{theirs}.conv{n}.weight", f"{ours}/conv_{n}/kernel", CONV2D)
      yield from batch_norm(f"{theirs}.bn{n}", f"{ours}/norm_{n}")
      yield Rule(f"{theirs}.relu{n}.weight", f"{ours}/activation_{n}/slope")
    if i and i % BLOCKS == 0:
      yield Rule(f"{theirs}.downsample.0.weight", f"{ours}/shortcut/kernel", CONV2D)
      yield from batch_norm(f"{theirs}.downsample.1", f"{ours}/norm_shortcut")


def _encoder() -> Iterator[Rule]:
  theirs, ours = "encoder.layers.{i}", "av_hubert/blocks"
  yield from layer("feature_extractor_video.proj", "av_hubert/lips")
  yield from layer("feature_extractor_audio.proj", "av_hubert/sound")
  yield from norm("layer_norm", "av_hubert/norm_features")
  yield from layer("post_extract_proj", "av_hubert/projection")
  pos_conv = "encoder.pos_conv.0"
  keys = (f"{pos_conv}.weight_g", f"{pos_conv}.weight_v")
  yield Rule(keys, "av_hubert/positional_conv/kernel", WEIGHT_NORM)
  yield Rule(f"{pos_conv}.bias", "av_hubert/positional_conv/bias")
  yield from _projections(f"{theirs}.self_attn", "qkv", f"{ours}/attention/qkv")
  yield from layer(f"{theirs}.self_attn.out_proj", f"{ours}/attention/out")
  yield from norm(f"{theirs}.self_attn_layer_norm", f"{ours}/norm_attention")
  yield from layer(f"{theirs}.fc1", f"{ours}/mlp/up")
  yield from layer(f"{theirs}.fc2", f"{ours}/mlp/down")
  yield from norm(f"{theirs}.final_layer_norm", f"{ours}/norm_mlp")
  yield from norm("encoder.layer_norm", "av_hubert/norm")


def _decoder() -> Iterator[Rule]:
  theirs, ours = "decoder.layers.{i}", "text_decoder/blocks"
  yield Rule("decoder.embed_tokens.weight", "text_decoder/embedding")
  for source, target in (("self_attn", "attention"), ("encoder_attn", "cross")):
    yield from layer(f"{theirs}.{source}.q_proj", f"{ours}/{target}/query")
    yield from _projections(f"{theirs}.{source}", "kv", f"{ours}/{target}/key_value")
    yield from layer(f"{theirs}.{source}.out_proj", f"{ours}/{target}/out")
    yield from norm(f"{theirs}.{source}_layer_norm", f"{ours}/norm_{target}")
  yield from layer(f"{theirs}.fc1", f"{ours}/mlp/up")
  yield from layer(f"{theirs}.fc2", f"{ours}/mlp/down")
  yield from norm(f"{theirs}.final_layer_norm", f"{ours}/norm_mlp")
  yield from norm("decoder.layer_norm", "text_decoder/norm")


def _sizes(leaves: Mapping[str, Shape]) -> dict[str, Any]:
  depth, width, mlp_width = leaves["av_hubert/blocks/mlp/up/kernel"]
  pos_kernel, group, _ = leaves["av_hubert/positional_conv/kernel"]
  found: dict[str, Any] = dict(
    widths=tuple(leaves[f"lip_resnet/block_{BLOCKS * i}/norm_1/scale"][0] for i in range(len(WIDTHS))),
    encoder=dict(
      in_features=leaves["av_hubert/lips/kernel"][0],
      sound=leaves["av_hubert/sound/kernel"][0],
      width=width,
      depth=depth,
      heads=width // math.gcd(width, _HEAD),  # not in the shapes
      mlp_width=mlp_width,
      pos_kernel=pos_kernel,
      pos_groups=width // group,
    ),
    decoder=None,
    ctc=leaves["ctc_head/output/bias"][0] if "ctc_head/output/bias" in leaves else None,
  )
  if "text_decoder/embedding" in leaves:
    depth, width, mlp_width = leaves["text_decoder/blocks/mlp/up/kernel"]
    # Not in the shapes: the released decoders have 4 heads (768 wide) or 8 (1024 wide).
    heads = 8 if width >= 1024 else 4
    found["decoder"] = dict(
      vocabulary=leaves["text_decoder/embedding"][0], width=width, depth=depth, heads=heads, mlp_width=mlp_width
    )
  return found


def _modules(*, widths, encoder, decoder, ctc) -> dict[str, Functional]:
  found = {
    "lip_resnet": Functional(lambda rngs: LipResNet(widths, activation="prelu", rngs=rngs)),
    "av_hubert": Functional(lambda rngs: AvHubert(**encoder, rngs=rngs)),
  }
  if decoder is not None:
    found["text_decoder"] = Functional(
      lambda rngs: TextDecoder(**decoder, epsilon=EPSILON, flavour="fairseq", rngs=rngs)
    )
  if ctc is not None:
    found["ctc_head"] = Functional(lambda rngs: CtcHead(encoder["width"], ctc, rngs=rngs))
  return found


# Of the pretraining: masks, targets and their projection.
_DROP = (
  r".*\.num_batches_tracked", r"(mask_emb|label_embs_concat)", r"(final_proj|target_glu)\..*",
  r"decoder\.(version|embed_positions\._float_tensor)",
)  # fmt: skip
_COMMON = (*_frontend(), *_encoder())

DONOR = Donor(
  name="av_hubert",
  title="AV-HuBERT",
  licence="custom licence of Meta, non-commercial research; of the code and of the weights",
  origin="{base,large}_*.pt of facebookresearch/av_hubert, pretrained or fine-tuned",
  namings=(
    Naming("fairseq, pretrained", _COMMON, drop=_DROP),
    Naming(
      "fairseq, sequence to sequence", (*_COMMON, *_decoder()), rename=((r"^encoder\.w2v_model\.", ""),), drop=_DROP
    ),
    Naming(
      "fairseq, CTC",
      (*_COMMON, *layer("proj", "ctc_head/output")),
      rename=((r"^w2v_encoder\.w2v_model\.", ""), (r"^w2v_encoder\.", "")),
      drop=_DROP,
    ),
  ),
  sizes=_sizes,
  modules=_modules,
)
