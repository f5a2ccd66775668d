"""StableSyncNet (LatentSync), with attention (as released with LatentSync) and without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from synclipmae_jax.baselines.stable_syncnet import SYNCNET_16_PIXEL, SYNCNET_16_PIXEL_ATTN, StableSyncNet
from synclipmae_jax.convert.donor import Donor, Naming
from synclipmae_jax.convert.rules import CONV2D, LINEAR, SAME, Layout, Rule, Shape, fused, fused_bias, ones
from synclipmae_jax.models.functional import Functional

# A convolution of one pixel as a dense kernel: (out, in, 1, 1) -> (in, out).
_PIXEL = ones(after=2)
POINTWISE = Layout(lambda x: LINEAR.forward(*_PIXEL.forward(x)), lambda kernel: _PIXEL.inverse(*LINEAR.inverse(kernel)))


def _layer(source: str, target: str, layout: Layout) -> tuple[Rule, Rule]:
  return Rule(f"{source}.weight", f"{target}/kernel", layout), Rule(f"{source}.bias", f"{target}/bias")


def _norm(source: str, target: str) -> tuple[Rule, Rule]:
  return Rule(f"{source}.weight", f"{target}/scale", SAME), Rule(f"{source}.bias", f"{target}/bias")


def _residual(source: str, target: str, *, shortcut: bool, downsample: bool) -> Iterator[Rule]:
  for i in (1, 2):
    yield from _norm(f"{source}.norm{i}", f"{target}/norm{i}")
    yield from _layer(f"{source}.conv{i}", f"{target}/conv{i}", CONV2D)
  if shortcut:
    yield from _layer(f"{source}.conv_shortcut", f"{target}/shortcut", CONV2D)
  if downsample:
    yield from _layer(f"{source}.downsample_conv", f"{target}/downsample", CONV2D)


def _attention(source: str, target: str) -> Iterator[Rule]:
  for i in (1, 2, 3):
    yield from _norm(f"{source}.norm{i}", f"{target}/norm{i}")
  for name in ("conv_in", "conv_out"):
    yield from _layer(f"{source}.{name}", f"{target}/{name}", POINTWISE)
  qkv = tuple(f"{source}.attn.to_{name}" for name in "qkv")
  yield Rule(tuple(f"{key}.weight" for key in qkv), f"{target}/attention/qkv/kernel", fused(3))
  yield Rule(tuple(f"{key}.bias" for key in qkv), f"{target}/attention/qkv/bias", fused_bias(3))
  yield from _layer(f"{source}.attn.to_out.0", f"{target}/attention/out", LINEAR)
  yield from _layer(f"{source}.ff.net.0.proj", f"{target}/up", LINEAR)
  yield from _layer(f"{source}.ff.net.2", f"{target}/down", LINEAR)


def _encoder(name: str, config: Mapping[str, Any]) -> Iterator[Rule]:
  ours = f"stable_syncnet/{name}"
  yield from _layer(f"{name}.conv_in", f"{ours}/conv_in", CONV2D)
  number, widths = 0, (config["block_out_channels"][0], *config["block_out_channels"])
  for i, factor in enumerate(config["downsample_factors"]):
    source = f"{name}.down_blocks.{number}"
    yield from _residual(source, f"{ours}/residual_{i}", shortcut=widths[i] != widths[i + 1], downsample=factor != 1)
    number += 1
    if config["attn_blocks"][i]:  # attention has a block number too
      yield from _attention(f"{name}.down_blocks.{number}", f"{ours}/attention_{i}")
      number += 1
  yield from _norm(f"{name}.norm_out", f"{ours}/norm_out")


def _rules(config: Mapping[str, Mapping[str, Any]]) -> tuple[Rule, ...]:
  return tuple(rule for name in config for rule in _encoder(name, config[name]))


def _sizes(leaves: Mapping[str, Shape]) -> dict[str, Any]:
  """Widths and attention come from the leaves. Shapes do not show strides: those of the released models are used."""

  def encoder(name: str) -> dict[str, Any]:
    ours = f"stable_syncnet/{name}"
    factors = SYNCNET_16_PIXEL[name]["downsample_factors"]
    return {
      "in_channels": leaves[f"{ours}/conv_in/kernel"][2],
      "block_out_channels": tuple(leaves[f"{ours}/residual_{i}/conv2/bias"][0] for i in range(len(factors))),
      "downsample_factors": factors,
      "attn_blocks": tuple(int(f"{ours}/attention_{i}/norm1/scale" in leaves) for i in range(len(factors))),
    }

  return {name: encoder(name) for name in SYNCNET_16_PIXEL}


def _modules(**sizes: Any) -> dict[str, Functional]:
  return {"stable_syncnet": Functional(lambda rngs: StableSyncNet(**sizes, rngs=rngs))}


DONOR = Donor(
  name="stable_syncnet",
  title="StableSyncNet",
  licence="Apache-2.0 (code of LatentSync; see the model card of the weights)",
  origin="stable_syncnet.pt of ByteDance/LatentSync-1.6 (syncnet_16_pixel_attn); latentsync_syncnet.pt as MuseTalk "
  "loads it (syncnet_16_pixel)",
  namings=(
    Naming("syncnet_16_pixel_attn", _rules(SYNCNET_16_PIXEL_ATTN)),
    Naming("syncnet_16_pixel", _rules(SYNCNET_16_PIXEL)),
  ),
  sizes=_sizes,
  modules=_modules,
  file="stable_syncnet.pt",  # the repository also holds the diffusion model
)
