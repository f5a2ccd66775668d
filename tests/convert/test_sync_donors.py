"""StableSyncNet and VocaLiST: every tensor of a released file is converted and exported bit for bit."""

import functools
import json

import numpy as np
import pytest
from convert.random_weights import donor_weights
from safetensors.numpy import load_file, save_file

from synclipmae_jax.baselines.stable_syncnet import SYNCNET_16_PIXEL, SYNCNET_16_PIXEL_ATTN
from synclipmae_jax.baselines.vocalist import WIDTHS
from synclipmae_jax.convert.__main__ import main
from synclipmae_jax.convert.conversion import convert, export
from synclipmae_jax.convert.donor import abstract_shapes, load
from synclipmae_jax.types import InputError


def narrow(config):
  """A norm of 32 groups needs 32 channels; neighbours are equal where they are equal in the released model."""
  widths = {"audio_encoder": (32, 64, 32, 64, 32, 64, 32), "visual_encoder": (64, 32, 64, 64, 32, 64, 32, 32)}
  return {name: encoder | {"block_out_channels": widths[name]} for name, encoder in config.items()}


SMALL = {
  "syncnet_16_pixel_attn": ("stable_syncnet", 0, narrow(SYNCNET_16_PIXEL_ATTN)),
  "syncnet_16_pixel": ("stable_syncnet", 1, narrow(SYNCNET_16_PIXEL)),
  "VocaLiST": ("vocalist", 0, dict(widths=(4, 8, 8, 16, 32), depth=2)),
}


def parameters(name, sizes):
  """Number of parameters without the statistics of the batch norms."""
  shapes = abstract_shapes(load(name).modules(**sizes))
  return sum(int(np.prod(shape)) for path, shape in shapes.items() if not path.endswith(("norm/mean", "norm/var")))


def test_the_released_sizes():
  assert parameters("stable_syncnet", SYNCNET_16_PIXEL_ATTN) == 401_306_080
  assert parameters("vocalist", dict(widths=WIDTHS, depth=4)) == 80_106_561


@functools.cache
def weights(naming):
  name, number, sizes = SMALL[naming]
  return donor_weights(name, sizes, number)


@pytest.mark.parametrize("naming", SMALL)
def test_conversion_and_export_are_exact(naming, tmp_path, capsys):
  name, _, sizes = SMALL[naming]
  tensors, of_no_use = weights(naming), {}
  if name == "vocalist":
    of_no_use = {
      "av_transformer.version": np.float32([2]), "vid_prenet.0.conv_block.1.num_batches_tracked": np.int64([7]),
      "va_transformer.embed_positions._float_tensor": np.float32([np.nan]),  # uninitialised memory
    }  # fmt: skip
  source = tmp_path / "source.safetensors"
  save_file(tensors | of_no_use, source)
  assert main(["inspect", str(source), "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert (found["donor"], found["naming"], found["missing"]) == (name, naming, [])
  assert found["sizes"] == json.loads(json.dumps(sizes))

  done, _ = convert(name, src=source, dst=tmp_path / "item", verify=True)
  assert (done.naming, done.sizes, done.lossy, list(done.items)) == (naming, sizes, (), [name])
  assert set(done.dropped) | set(done.skipped) == set(of_no_use)
  counts, left_out, _ = export(name, src=tmp_path / "item", dst=tmp_path / "back.safetensors")
  assert counts == done.items and not left_out
  back = load_file(tmp_path / "back.safetensors")
  assert back.keys() == tensors.keys()
  assert all(np.array_equal(back[key], tensors[key]) for key in tensors)


def test_keys_of_the_released_files():
  """A few keys, copied from the authors' classes."""
  syncnet = weights("syncnet_16_pixel_attn")
  for key, shape in {
    "visual_encoder.conv_in.weight": (64, 48, 3, 3),
    "visual_encoder.down_blocks.0.downsample_conv.weight": (64, 64, 3, 3),
    "visual_encoder.down_blocks.1.conv_shortcut.weight": (32, 64, 1, 1),
    "visual_encoder.down_blocks.5.attn.to_out.0.weight": (32, 32),
    "visual_encoder.down_blocks.7.ff.net.0.proj.weight": (8 * 64, 64),
    "audio_encoder.down_blocks.6.conv_in.weight": (32, 32, 1, 1),
    "audio_encoder.down_blocks.8.downsample_conv.bias": (32,),
    "audio_encoder.norm_out.weight": (32,),
  }.items():
    assert syncnet[key].shape == shape, key
  assert not {"visual_encoder.down_blocks.0.conv_shortcut.weight", "audio_encoder.down_blocks.3.downsample_conv.bias",
              "visual_encoder.down_blocks.3.conv_shortcut.weight"} & syncnet.keys()  # fmt: skip
  vocalist = weights("VocaLiST")
  for key, shape in {
    "vid_prenet.0.conv_block.0.weight": (4, 3, 7, 7, 7),
    "vid_prenet.16.conv_block.1.running_var": (32,),
    "aud_prenet.13.conv_block.0.weight": (32, 32, 1, 1),
    "mem_transformer.layers.1.self_attn.in_proj_weight": (96, 32),
    "va_transformer.layers.0.fc1.weight": (128, 32),
    "av_transformer.layer_norm.bias": (32,),
    "classifier.weight": (1, 32),
  }.items():
    assert vocalist[key].shape == shape, key


def test_a_file_of_the_other_donor_is_recognised(tmp_path):
  save_file(weights("VocaLiST"), tmp_path / "source.safetensors")
  with pytest.raises(InputError, match="keys are those of VocaLiST"):
    convert("stable_syncnet", src=tmp_path / "source.safetensors", dst=tmp_path / "item")


def test_a_missing_tensor_is_named(tmp_path):
  tensors = dict(weights("syncnet_16_pixel_attn"))
  tensors.pop("visual_encoder.down_blocks.5.attn.to_k.bias")
  save_file(tensors, tmp_path / "source.safetensors")
  with pytest.raises(InputError, match=r"missing in the file \(1\):\n +visual_encoder.down_blocks.5.attn.to_k.bias"):
    convert("stable_syncnet", src=tmp_path / "source.safetensors", dst=tmp_path / "item")
