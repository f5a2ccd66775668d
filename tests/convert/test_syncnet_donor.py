import numpy as np
import pytest
from convert.random_weights import random_weights
from safetensors.numpy import load_file, save_file

from synclipmae_jax.convert.conversion import convert, export
from synclipmae_jax.convert.donor import abstract_shapes, check, load, match
from synclipmae_jax.types import InputError

DONOR = load("syncnet")


def released(scale=1.0, side=6, width=1024):
  """Keys and shapes of syncnet_v2.model and of narrower variants."""
  shapes = {}
  wide = lambda channels: round(scale * channels)

  def norm(key, channels):
    shapes.update({f"{key}.{name}": (channels,) for name in ("weight", "bias", "running_mean", "running_var")})

  towers = {
    "lip": [(3, 96, 5, 7, 7), (96, 256, 1, 5, 5), *[(256, 256, 1, 3, 3)] * 3, (256, 512, 1, side, side)],
    "aud": [(1, 64, 3, 3), (64, 192, 3, 3), (192, 384, 3, 3), (384, 256, 3, 3), (256, 256, 3, 3), (256, 512, 5, 4)],
  }
  for tower, layers in towers.items():
    for i, (place, (before, channels, *kernel)) in enumerate(zip((0, 4, 8, 11, 14, 18), layers, strict=True)):
      shapes[f"netcnn{tower}.{place}.weight"] = (wide(channels), wide(before) if i else before, *kernel)
      shapes[f"netcnn{tower}.{place}.bias"] = (wide(channels),)
      norm(f"netcnn{tower}.{place + 1}", wide(channels))
    features = wide(512)
    shapes |= {f"netfc{tower}.0.weight": (features, features), f"netfc{tower}.0.bias": (features,)}
    norm(f"netfc{tower}.1", features)
    shapes |= {f"netfc{tower}.3.weight": (width, features), f"netfc{tower}.3.bias": (width,)}
  return shapes


def test_every_tensor_of_the_released_file_is_converted():
  shapes = released()
  statistics = sum(shape[0] for key, shape in shapes.items() if "running" in key)
  assert sum(map(np.prod, shapes.values())) == 13_631_616 + statistics
  found = match([load(name) for name in ("sapiens", "syncnet", "wav2vec2")], shapes)
  assert (found.donor.name, found.plan.distance) == ("syncnet", 0)
  sizes = check(found, "syncnet_v2.model")
  assert sizes == {"image_size": 224, "scale": 1.0, "width": 1024}
  assert found.plan.targets == abstract_shapes(DONOR.modules(**sizes))


@pytest.mark.parametrize("side, image_size", [(1, 51), (2, 83), (5, 179)])
def test_other_sizes(side, image_size):
  sizes = check(match([DONOR], released(scale=0.25, side=side, width=64)), "file")
  assert sizes == {"image_size": image_size, "scale": 0.25, "width": 64}


def test_conversion_and_export_are_exact(tmp_path):
  tensors = random_weights(released(scale=0.0625, side=1, width=8))
  counted = {"netfclip.1.num_batches_tracked": np.int64(3)}
  save_file(tensors | {key: np.asarray(value) for key, value in counted.items()}, tmp_path / "file.safetensors")
  done, _ = convert("syncnet", src=tmp_path / "file.safetensors", dst=tmp_path / "item", verify=True)
  assert list(done.items) == ["syncnet"] and list(done.skipped) == list(counted) and not done.lossy
  _, left_out, _ = export("syncnet", src=tmp_path / "item", dst=tmp_path / "back.safetensors")
  back = load_file(tmp_path / "back.safetensors")
  assert back.keys() == tensors.keys() and not left_out
  for key, tensor in tensors.items():
    np.testing.assert_array_equal(back[key], tensor)


def test_the_first_kernel_is_its_convolution():
  """For one window, a 3-D convolution over five frames equals a 2-D one over fifteen channels, frames slowest."""
  random = np.random.default_rng(0)
  weight, window = random.normal(size=(4, 3, 5, 7, 7)), random.normal(size=(5, 7, 7, 3))
  rule = next(rule for rule in DONOR.namings[0].rules if rule.sources == ("netcnnlip.0.weight",))
  (kernel,) = rule.layout.forward(weight)
  stacked = np.concatenate(list(window), axis=-1)
  np.testing.assert_allclose(np.einsum("hwc,hwco->o", stacked, kernel), np.einsum("ocdhw,dhwc->o", weight, window))


@pytest.mark.parametrize(
  "key, shape",
  [
    ("netcnnlip.0.weight", (96, 3, 3, 7, 7)),
    ("netcnnlip.4.weight", (256, 96, 2, 5, 5)),
    ("netcnnaud.18.weight", (512, 256, 5, 5)),
    ("netfcaud.3.weight", (1000, 512)),
  ],
)
def test_another_shape_is_named(key, shape):
  with pytest.raises(InputError, match=key.replace(".", r"\.")):
    check(match([DONOR], released() | {key: shape}), "file")


def test_too_small_pictures_are_refused():
  with pytest.raises(InputError, match="at least 51"):
    DONOR.modules(image_size=50, scale=0.1, width=8)
