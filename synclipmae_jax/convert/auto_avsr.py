"""Auto-AVSR (Ma et al. 2023; mpc001/auto_avsr), the recogniser of lips: front end, Conformer, CTC and decoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from synclipmae_jax.baselines.lip_resnet import BLOCKS, WIDTHS, LipResNet
from synclipmae_jax.convert.donor import Donor, Naming
from synclipmae_jax.convert.rules import CONV2D, CONV3D, LINEAR, Layout, Rule, Shape, fused, fused_bias
from synclipmae_jax.models.conformer import Conformer
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.recogniser import CtcHead
from synclipmae_jax.models.text_decoder import TextDecoder

EPSILON = 1e-12  # of all layer norms of ESPnet
DEPTHWISE = Layout(lambda x: (x[:, 0].T,), lambda kernel: (kernel.T[:, None],))  # (c, 1, taps) -> (taps, c)


def _pointwise(weight):
  return (weight[..., 0].T,)


POINTWISE = Layout(_pointwise, lambda kernel: (kernel.T[..., None],))  # (out, in, 1) -> (in, out)


def layer(source: str, target: str, layout: Layout = LINEAR) -> tuple[Rule, Rule]:
  return Rule(f"{source}.weight", f"{target}/kernel", layout), Rule(f"{source}.bias", f"{target}/bias")


def norm(source: str, target: str) -> tuple[Rule, Rule]:
  return Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")


def batch_norm(source: str, target: str) -> Iterator[Rule]:
  yield from norm(source, target)
  yield Rule(f"{source}.running_mean", f"{target}/mean")
  yield Rule(f"{source}.running_var", f"{target}/var")


def _side_by_side(source: str, names: str, target: str) -> Iterator[Rule]:
  """Several dense layers in one kernel."""
  keys = [f"{source}.linear_{name}" for name in names]
  yield Rule(tuple(f"{key}.weight" for key in keys), f"{target}/kernel", fused(len(keys)))
  yield Rule(tuple(f"{key}.bias" for key in keys), f"{target}/bias", fused_bias(len(keys)))


def _feed_forward(source: str, target: str) -> Iterator[Rule]:
  yield from layer(f"{source}.w_1", f"{target}/up")
  yield from layer(f"{source}.w_2", f"{target}/down")


def _frontend() -> Iterator[Rule]:
  yield Rule("frontend.frontend3D.0.weight", "lip_resnet/stem/kernel", CONV3D)
  yield from batch_norm("frontend.frontend3D.1", "lip_resnet/norm_stem")
  for i in range(BLOCKS * len(WIDTHS)):
    theirs, ours = f"frontend.trunk.layer{i // BLOCKS + 1}.{i % BLOCKS}", f"lip_resnet/block_{i}"
    for n in (1, 2):
      yield Rule(f"{theirs}.conv{n}.weight", f"{ours}/conv_{n}/kernel", CONV2D)
      yield from batch_norm(f"{theirs}.bn{n}", f"{ours}/norm_{n}")
    if i and i % BLOCKS == 0:
      yield Rule(f"{theirs}.downsample.0.weight", f"{ours}/shortcut/kernel", CONV2D)
      yield from batch_norm(f"{theirs}.downsample.1", f"{ours}/norm_shortcut")


def _encoder() -> Iterator[Rule]:
  theirs, ours = "encoder.encoders.{i}", "conformer/blocks"
  yield from layer("proj_encoder", "conformer/projection")
  for source, target in (("feed_forward_macaron", "macaron"), ("feed_forward", "mlp")):
    yield from _feed_forward(f"{theirs}.{source}", f"{ours}/{target}")
  yield from _side_by_side(f"{theirs}.self_attn", "qkv", f"{ours}/attention/qkv")
  yield from layer(f"{theirs}.self_attn.linear_out", f"{ours}/attention/out")
  yield Rule(f"{theirs}.self_attn.linear_pos.weight", f"{ours}/attention/position/kernel", LINEAR)
  yield Rule(f"{theirs}.self_attn.pos_bias_u", f"{ours}/attention/content_bias")
  yield Rule(f"{theirs}.self_attn.pos_bias_v", f"{ours}/attention/position_bias")
  yield from layer(f"{theirs}.conv_module.pointwise_cov1", f"{ours}/conv/gate", POINTWISE)
  yield from layer(f"{theirs}.conv_module.depthwise_conv", f"{ours}/conv/depthwise", DEPTHWISE)
  yield from batch_norm(f"{theirs}.conv_module.norm", f"{ours}/conv/norm")
  yield from layer(f"{theirs}.conv_module.pointwise_cov2", f"{ours}/conv/out", POINTWISE)
  names = {"ff_macaron": "macaron", "mha": "attention", "conv": "conv", "ff": "mlp", "final": "out"}
  for source, target in names.items():
    yield from norm(f"{theirs}.norm_{source}", f"{ours}/norm_{target}")
  yield from norm("encoder.after_norm", "conformer/norm")


def _decoder() -> Iterator[Rule]:
  theirs, ours = "decoder.decoders.{i}", "text_decoder/blocks"
  yield Rule("decoder.embed.0.weight", "text_decoder/embedding")
  for source, target in (("self_attn", "attention"), ("src_attn", "cross")):
    yield from layer(f"{theirs}.{source}.linear_q", f"{ours}/{target}/query")
    yield from _side_by_side(f"{theirs}.{source}", "kv", f"{ours}/{target}/key_value")
    yield from layer(f"{theirs}.{source}.linear_out", f"{ours}/{target}/out")
  yield from _feed_forward(f"{theirs}.feed_forward", f"{ours}/mlp")
  for number, target in enumerate(("attention", "cross", "mlp"), start=1):
    yield from norm(f"{theirs}.norm{number}", f"{ours}/norm_{target}")
  yield from norm("decoder.after_norm", "text_decoder/norm")
  yield from layer("decoder.output_layer", "text_decoder/output")
  yield from layer("ctc.ctc_lo", "ctc_head/output")


def _sizes(leaves: Mapping[str, Shape]) -> dict[str, Any]:
  depth, heads, head_width = leaves["conformer/blocks/attention/content_bias"]
  decoder_depth, width, decoder_mlp = leaves["text_decoder/blocks/mlp/up/kernel"]
  in_features, encoder_width = leaves["conformer/projection/kernel"]
  return dict(
    widths=tuple(leaves[f"lip_resnet/block_{BLOCKS * i}/norm_1/scale"][0] for i in range(len(WIDTHS))),
    vocabulary=leaves["text_decoder/embedding"][0],
    conformer=dict(
      in_features=in_features,
      width=encoder_width,
      depth=depth,
      heads=heads,
      mlp_width=leaves["conformer/blocks/mlp/up/kernel"][2],
      kernel=leaves["conformer/blocks/conv/depthwise/kernel"][1],
    ),
    # The number of heads of the decoder is not in the shapes: they are as wide as those of the encoder.
    text_decoder=dict(width=width, depth=decoder_depth, heads=width // head_width, mlp_width=decoder_mlp),
  )


def _modules(*, widths, vocabulary, conformer, text_decoder) -> dict[str, Functional]:
  return {
    "lip_resnet": Functional(lambda rngs: LipResNet(widths, rngs=rngs)),
    "conformer": Functional(lambda rngs: Conformer(**conformer, norm="batch", epsilon=EPSILON, rngs=rngs)),
    "text_decoder": Functional(lambda rngs: TextDecoder(vocabulary, **text_decoder, epsilon=EPSILON, rngs=rngs)),
    "ctc_head": Functional(lambda rngs: CtcHead(conformer["width"], vocabulary, rngs=rngs)),
  }


DONOR = Donor(
  name="auto_avsr",
  title="Auto-AVSR (video)",
  licence="Apache-2.0 (code); of the weights, see the model zoo of mpc001/auto_avsr",
  origin="vsr_*.pth of mpc001/auto_avsr",
  namings=(
    Naming(
      "Auto-AVSR",
      (*_frontend(), *_encoder(), *_decoder()),
      rename=((r"^model\.", ""),),  # in checkpoints of Lightning
      drop=(r".*\.num_batches_tracked",),
    ),
  ),
  sizes=_sizes,
  modules=_modules,
)
