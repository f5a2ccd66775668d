"""The Wan2.1 VAE in the original naming and in that of diffusers. Both files hold the same 194 tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from synclipmae_jax.convert.donor import Donor, Naming
from synclipmae_jax.convert.rules import CONV2D, CONV3D, LINEAR, SAME, Layout, Rule, Shape, ones
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.wan.vae import LATENT_MEAN, Vae

STAGES = 4


def _pointwise(axes: int) -> Layout:
  """A convolution of one pixel as a dense kernel: (out, in, 1 x `axes`) -> (in, out)."""
  pixel = ones(after=axes)
  return Layout(lambda x: LINEAR.forward(*pixel.forward(x)), lambda x: pixel.inverse(*LINEAR.inverse(x)))


def _layer(source: str, target: str, layout: Layout) -> tuple[Rule, ...]:
  return Rule(f"{source}.weight", f"{target}/kernel", layout), Rule(f"{source}.bias", f"{target}/bias", SAME)


def _norm(source: str, target: str, *, axes: int = 3) -> Rule:
  return Rule(f"{source}.gamma", f"{target}/scale", ones(after=axes))


def _residual(source: str, target: str, *, shortcut: bool = False) -> Iterator[Rule]:
  # The indices of the original's Sequential also count activations and dropout.
  yield _norm(f"{source}.residual.0", f"{target}/norm_0")
  yield from _layer(f"{source}.residual.2", f"{target}/conv_0", CONV3D)
  yield _norm(f"{source}.residual.3", f"{target}/norm_1")
  yield from _layer(f"{source}.residual.6", f"{target}/conv_1", CONV3D)
  if shortcut:
    yield from _layer(f"{source}.shortcut", f"{target}/shortcut", _pointwise(3))


def _half(
  name: str, sequence: str, *, blocks: int, shortcuts: Collection[int], temporal: Collection[int]
) -> Iterator[Rule]:
  """Encoder or decoder: the original numbers all blocks and resamplers of all stages in one `sequence`."""
  ours = f"vae/{name}"
  yield from _layer(f"{name}.conv1", f"{ours}/conv_in", CONV3D)
  for i, block in ((0, "block_0"), (2, "block_1")):
    yield from _residual(f"{name}.middle.{i}", f"{ours}/middle/{block}")
  yield _norm(f"{name}.middle.1.norm", f"{ours}/middle/attention/norm", axes=2)
  yield from _layer(f"{name}.middle.1.to_qkv", f"{ours}/middle/attention/qkv", _pointwise(2))
  yield from _layer(f"{name}.middle.1.proj", f"{ours}/middle/attention/out", _pointwise(2))
  for stage in range(STAGES):
    first = stage * (blocks + 1)
    for i in range(blocks):
      source, target = f"{name}.{sequence}.{first + i}", f"{ours}/stage_{stage}/block_{i}"
      yield from _residual(source, target, shortcut=i == 0 and stage in shortcuts)
    if stage < STAGES - 1:
      source, target = f"{name}.{sequence}.{first + blocks}", f"{ours}/stage_{stage}/resample"
      yield from _layer(f"{source}.resample.1", f"{target}/conv", CONV2D)
      if stage in temporal:
        yield from _layer(f"{source}.time_conv", f"{target}/time_conv", CONV3D)
  yield _norm(f"{name}.head.0", f"{ours}/norm_out")
  yield from _layer(f"{name}.head.2", f"{ours}/conv_out", CONV3D)


RULES = (
  *_half("encoder", "downsamples", blocks=2, shortcuts=(1, 2), temporal=(1, 2)),
  *_layer("conv1", "vae/quant_conv", _pointwise(3)),
  *_layer("conv2", "vae/post_quant_conv", _pointwise(3)),
  *_half("decoder", "upsamples", blocks=3, shortcuts=(1,), temporal=(0, 1)),
)

_FROM_DIFFUSERS = (
  (r"^encoder\.down_blocks\.", "encoder.downsamples."),
  *(
    (rf"^decoder\.up_blocks\.{stage}\.resnets\.{i}\.", f"decoder.upsamples.{4 * stage + i}.")
    for stage in range(STAGES)
    for i in range(3)
  ),
  *(
    (rf"^decoder\.up_blocks\.{stage}\.upsamplers\.0\.", f"decoder.upsamples.{4 * stage + 3}.")
    for stage in range(STAGES - 1)
  ),
  (r"\.mid_block\.resnets\.0\.", ".middle.0."),
  (r"\.mid_block\.attentions\.0\.", ".middle.1."),
  (r"\.mid_block\.resnets\.1\.", ".middle.2."),
  (r"\.norm1\.", ".residual.0."),
  (r"\.conv1\.", ".residual.2."),
  (r"\.norm2\.", ".residual.3."),
  (r"\.conv2\.", ".residual.6."),
  (r"\.conv_shortcut\.", ".shortcut."),
  # After the rules above: `conv1` is also the name of a convolution of a residual block.
  (r"\.conv_in\.", ".conv1."),
  (r"\.norm_out\.", ".head.0."),
  (r"\.conv_out\.", ".head.2."),
  (r"^quant_conv\.", "conv1."),
  (r"^post_quant_conv\.", "conv2."),
)


def _sizes(shapes: Mapping[str, Shape]) -> dict[str, Any]:
  base = shapes["vae/encoder/conv_in/bias"][0]
  widths = [shapes[f"vae/encoder/stage_{stage}/block_0/conv_1/bias"][0] for stage in range(STAGES)]
  return {
    "base": base,
    "latent": shapes["vae/post_quant_conv/bias"][0],
    "multipliers": tuple(width // base for width in widths),
  }


def _modules(*, base: int, latent: int, multipliers: tuple[int, ...]) -> dict[str, Functional]:
  sizes: dict[str, Any] = {"base": base, "latent": latent, "multipliers": multipliers}
  if latent != len(LATENT_MEAN):  # not the released model: weights files do not hold the statistics
    sizes |= {"latent_mean": (0.0,) * latent, "latent_std": (1.0,) * latent}
  return {"vae": Functional(lambda rngs: Vae(rngs=rngs, **sizes))}


DONOR = Donor(
  name="wan_vae",
  title="Wan2.1 VAE",
  licence="Apache-2.0",
  origin="Wan-AI/Wan2.1-VACE-1.3B, Wan2.1_VAE.pth; in diffusers' form vae/diffusion_pytorch_model.safetensors",
  namings=(Naming("original", RULES), Naming("diffusers", RULES, rename=_FROM_DIFFUSERS)),
  sizes=_sizes,
  modules=_modules,
  folders=("vae",),
  file="Wan2.1_VAE.pth",  # the repository also holds the transformer
)
