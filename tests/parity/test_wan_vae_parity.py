"""The VAE, which has no caches, against AutoencoderKLWan of diffusers, which has caches between groups of frames."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from synclipmae_jax.convert.donor import abstract_shapes, check, load, match  # noqa: E402
from synclipmae_jax.models.functional import Functional  # noqa: E402
from synclipmae_jax.models.wan.vae import LATENT_MEAN, LATENT_STD, Vae  # noqa: E402

DONOR = load("wan_vae")
TOLERANCE = 1e-5  # of the largest value
BLOCK = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}


def original_key(key):
  """The name in Wan2.1_VAE.pth of a tensor of the model of diffusers."""
  inside = lambda rest: ".".join((BLOCK | {"conv_shortcut": "shortcut"}).get(name, name) for name in rest)
  match key.split("."):
    case ["quant_conv", leaf]:
      return f"conv1.{leaf}"
    case ["post_quant_conv", leaf]:
      return f"conv2.{leaf}"
    case [half, "conv_in", leaf]:
      return f"{half}.conv1.{leaf}"
    case [half, "norm_out", leaf]:
      return f"{half}.head.0.{leaf}"
    case [half, "conv_out", leaf]:
      return f"{half}.head.2.{leaf}"
    case [half, "mid_block", "resnets", i, *rest]:
      return f"{half}.middle.{2 * int(i)}.{inside(rest)}"
    case [half, "mid_block", "attentions", "0", *rest]:
      return f"{half}.middle.1.{inside(rest)}"
    case ["encoder", "down_blocks", i, *rest]:
      return f"encoder.downsamples.{i}.{inside(rest)}"
    case ["decoder", "up_blocks", i, "resnets", j, *rest]:
      return f"decoder.upsamples.{4 * int(i) + int(j)}.{inside(rest)}"
    case ["decoder", "up_blocks", i, "upsamplers", "0", *rest]:
      return f"decoder.upsamples.{4 * int(i) + 3}.{inside(rest)}"
  raise KeyError(key)


class Pair:
  """A model of diffusers with random weights, and ours with the same weights."""

  def __init__(self, base, latent, **statistics):
    torch.manual_seed(base)
    named = {f"latents_{name}": list(values) for name, values in statistics.items()}
    self.theirs = diffusers.AutoencoderKLWan(base_dim=base, z_dim=latent, **named).eval()
    with torch.no_grad():  # no zero biases and no unit factors
      for name, parameter in self.theirs.named_parameters():
        if not name.endswith("weight"):
          parameter += 0.2 * torch.randn_like(parameter)
    self.tensors = {key: tensor.numpy() for key, tensor in self.theirs.state_dict().items()}
    own = {f"latent_{name}": tuple(values) for name, values in statistics.items()}
    self.ours = Functional(lambda rngs: Vae(rngs=rngs, base=base, latent=latent, **own))
    self.latent = latent
    self.mean, self.std = np.asarray([statistics.get("mean", LATENT_MEAN), statistics.get("std", LATENT_STD)], "f")
    self.leaves = convert(self.tensors)
    self.params = nested(self.leaves)["vae"]
    self.moments = self.jitted("moments")
    self.decode = self.jitted("decode")

  def jitted(self, method):
    run = jax.jit(lambda params, x: getattr(self.ours.bind(params), method)(x))

    def call(x):
      with jax.default_matmul_precision("highest"):
        return np.asarray(run(self.params, x))

    return call

  @torch.no_grad()
  def encode_theirs(self, video):
    return channels_last(self.theirs.encode(channels_first(video)).latent_dist.parameters)

  @torch.no_grad()
  def decode_theirs(self, latents):
    return channels_last(self.theirs.decode(channels_first(latents * self.std + self.mean)).sample)

  def check_encoder(self, frames, size, clips=2):
    video = np.random.RandomState(frames).uniform(-1, 1, (clips, frames, *size, 3)).astype(np.float32)
    expected = self.encode_theirs(video)
    assert error(self.moments(video), expected) < TOLERANCE

  def check_decoder(self, groups, size, clips=2):
    shape = (clips, groups, size[0] // 8, size[1] // 8, self.latent)
    latents = np.random.RandomState(groups).randn(*shape).astype(np.float32)
    expected = self.decode_theirs(latents)
    assert np.mean(np.abs(expected) == 1) < 0.5  # not all clipped
    assert error(self.decode(latents), expected) < TOLERANCE


def channels_first(x):
  return torch.from_numpy(x).permute(0, 4, 1, 2, 3)


def channels_last(x):
  return x.permute(0, 2, 3, 4, 1).numpy()


def error(x, expected):
  assert x.shape == expected.shape
  return np.abs(x - expected).max() / np.abs(expected).max()


def convert(tensors):
  found = match([DONOR], {key: tensor.shape for key, tensor in tensors.items()})
  check(found, "state dict")
  return found.plan.fill(lambda key: tensors[found.keys[key]], np.float32)


def nested(leaves):
  tree = {}
  for path, leaf in leaves.items():
    *modules, name = path.split("/")
    node = tree
    for module in modules:
      node = node.setdefault(module, {})
    node[name] = leaf
  return tree


@pytest.fixture(scope="module")
def small():
  return Pair(8, 4, mean=(0.1, -0.2, 0.3, 0.0), std=(1.5, 0.5, 1.0, 2.0))


@pytest.mark.parametrize("frames", [1, 5, 17, 18, 20])
def test_encoder(small, frames):
  small.check_encoder(frames, (16, 24))


@pytest.mark.parametrize("groups", [1, 2, 5])
def test_decoder(small, groups):
  small.check_decoder(groups, (16, 24))


def test_the_narrowest_model():
  pair = Pair(3, 16)
  pair.check_encoder(5, (16, 16))
  pair.check_decoder(2, (16, 16))


def test_both_namings_give_the_same_leaves(small):
  renamed = {original_key(key): tensor for key, tensor in small.tensors.items()}
  assert match([DONOR], {key: tensor.shape for key, tensor in renamed.items()}).naming.name == "original"
  leaves = convert(renamed)
  assert leaves.keys() == small.leaves.keys()
  for path, leaf in leaves.items():
    np.testing.assert_array_equal(leaf, small.leaves[path])


def test_full_size_keys_shapes_and_statistics():
  with torch.device("meta"):
    model = diffusers.AutoencoderKLWan()
  assert (tuple(model.config.latents_mean), tuple(model.config.latents_std)) == (LATENT_MEAN, LATENT_STD)
  shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
  assert len(shapes) == 194
  for naming, keys in (("diffusers", shapes), ("original", {original_key(key): shapes[key] for key in shapes})):
    found = match([DONOR], keys)
    assert (found.naming.name, found.plan.distance, len(found.keys)) == (naming, 0, 194)
    sizes = check(found, naming)
    assert found.plan.targets == abstract_shapes(DONOR.modules(**sizes))
    assert sizes == {"base": 96, "latent": 16, "multipliers": (1, 2, 4, 4)}


@pytest.mark.slow
def test_full_size():
  pair = Pair(96, 16)
  pair.check_encoder(17, (64, 64), clips=1)
  pair.check_decoder(5, (64, 64), clips=1)
