import re

import numpy as np
import pytest

from synclipmae_jax.convert.donor import abstract_shapes, check, load, match
from synclipmae_jax.convert.rules import invert
from synclipmae_jax.types import InputError

DONOR = load("wan_vae")
SIZES = {"base": 96, "latent": 16, "multipliers": (1, 2, 4, 4)}


def released(base=96, latent=16):
  """Keys and shapes of Wan2.1_VAE.pth and of smaller variants."""
  shapes = {}

  def layer(key, out, *kernel):
    shapes.update({f"{key}.weight": (out, *kernel), f"{key}.bias": (out,)})

  def residual(key, before, width):
    shapes.update({f"{key}.residual.0.gamma": (before, 1, 1, 1), f"{key}.residual.3.gamma": (width, 1, 1, 1)})
    layer(f"{key}.residual.2", width, before, 3, 3, 3)
    layer(f"{key}.residual.6", width, width, 3, 3, 3)
    if before != width:
      layer(f"{key}.shortcut", width, before, 1, 1, 1)

  wide = 4 * base
  for half, first, inside, last, outside in (
    ("encoder", base, 3, wide, 2 * latent),
    ("decoder", wide, latent, base, 3),
  ):
    layer(f"{half}.conv1", first, inside, 3, 3, 3)
    residual(f"{half}.middle.0", wide, wide)
    shapes[f"{half}.middle.1.norm.gamma"] = (wide, 1, 1)
    layer(f"{half}.middle.1.to_qkv", 3 * wide, wide, 1, 1)
    layer(f"{half}.middle.1.proj", wide, wide, 1, 1)
    residual(f"{half}.middle.2", wide, wide)
    shapes[f"{half}.head.0.gamma"] = (last, 1, 1, 1)
    layer(f"{half}.head.2", outside, last, 3, 3, 3)
  layer("conv1", 2 * latent, 2 * latent, 1, 1, 1)
  layer("conv2", latent, latent, 1, 1, 1)

  width = base
  for i, after in enumerate((1, 1, None, 2, 2, None, 4, 4, None, 4, 4)):
    key = f"encoder.downsamples.{i}"
    if after:
      residual(key, width, base * after)
      width = base * after
    else:
      layer(f"{key}.resample.1", width, width, 3, 3)
  width = wide
  for i, after in enumerate((4, 4, 4, None, 4, 4, 4, None, 2, 2, 2, None, 1, 1, 1)):
    key = f"decoder.upsamples.{i}"
    if after:
      residual(key, width, base * after)
      width = base * after
    else:
      layer(f"{key}.resample.1", width // 2, width, 3, 3)
      width //= 2
  for i, width in ((5, 2 * base), (8, wide)):
    layer(f"encoder.downsamples.{i}.time_conv", width, width, 3, 1, 1)
  for i in (3, 7):
    layer(f"decoder.upsamples.{i}.time_conv", 2 * wide, wide, 3, 1, 1)
  return shapes


def test_every_tensor_of_the_released_file_is_converted():
  shapes = released()
  assert (len(shapes), sum(map(np.prod, shapes.values()))) == (194, 126_892_531)
  found = match([DONOR], shapes)
  assert (found.naming.name, found.plan.distance, found.dropped) == ("original", 0, ())
  assert check(found, "file") == SIZES
  assert found.plan.targets == abstract_shapes(DONOR.modules(**SIZES))


def test_conversion_and_export_are_exact():
  draw = np.random.RandomState(0)
  tensors = {key: draw.randn(*shape).astype(np.float32) for key, shape in released(base=2, latent=3).items()}
  plan = match([DONOR], {key: tensor.shape for key, tensor in tensors.items()}).plan
  back = invert(DONOR.namings[0].rules, plan.fill(tensors.__getitem__, np.float32))
  assert back.keys() == tensors.keys()
  for key, tensor in tensors.items():
    np.testing.assert_array_equal(back[key](), tensor)


@pytest.mark.parametrize(
  ("diffusers", "original"),
  [
    ("encoder.conv_in.weight", "encoder.conv1.weight"),
    ("encoder.down_blocks.3.conv_shortcut.bias", "encoder.downsamples.3.shortcut.bias"),
    ("encoder.down_blocks.10.conv1.weight", "encoder.downsamples.10.residual.2.weight"),
    ("encoder.down_blocks.8.time_conv.weight", "encoder.downsamples.8.time_conv.weight"),
    ("encoder.mid_block.resnets.1.norm2.gamma", "encoder.middle.2.residual.3.gamma"),
    ("encoder.mid_block.attentions.0.to_qkv.weight", "encoder.middle.1.to_qkv.weight"),
    ("quant_conv.weight", "conv1.weight"),
    ("post_quant_conv.bias", "conv2.bias"),
    ("decoder.up_blocks.1.resnets.2.conv2.bias", "decoder.upsamples.6.residual.6.bias"),
    ("decoder.up_blocks.2.upsamplers.0.resample.1.weight", "decoder.upsamples.11.resample.1.weight"),
    ("decoder.norm_out.gamma", "decoder.head.0.gamma"),
    ("decoder.conv_out.bias", "decoder.head.2.bias"),
  ],
)
def test_the_names_of_diffusers(diffusers, original):
  key = diffusers
  for pattern, replacement in DONOR.namings[1].rename:
    key = re.sub(pattern, replacement, key)
  assert key == original and original in released()


def test_another_shape_is_named_with_both_sides():
  shapes = released() | {"decoder.upsamples.4.shortcut.weight": (384, 96, 1, 1, 1)}
  with pytest.raises(InputError, match=r"shortcut.weight: \[384, 96, 1, 1, 1\] in the file, expected \[384, 192, 1, 1"):
    check(match([DONOR], shapes), "file")
