"""The Wan2.1-VACE transformer against `WanVACETransformer3DModel` of diffusers, weights converted from both namings."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synclipmae_jax.convert import donor, wan_vace
from synclipmae_jax.convert.rules import invert
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.wan.dit import Dit
from synclipmae_jax.models.wan.vace import Vace
from synclipmae_jax.models.wan.vace import wan_vace as run

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TOLERANCE = 2e-5


def reference(*, heads, head_width, mlp_width, layers, vace_layers, text_width):
  """The model of diffusers with all weights random, including norms and zero-initialised projections."""
  torch.manual_seed(0)
  model = diffusers.WanVACETransformer3DModel(
    num_attention_heads=heads,
    attention_head_dim=head_width,
    ffn_dim=mlp_width,
    num_layers=layers,
    vace_layers=list(vace_layers),
    text_dim=text_width,
  ).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if parameter.ndim == 1:
        parameter.copy_(("norm" in name and name.endswith("weight")) + 0.2 * torch.randn_like(parameter))
  return model


def original_name(key: str) -> str:
  for pattern, replacement in wan_vace.DONOR.namings[1].rename:
    key = re.sub(pattern, replacement, key)
  return key


def converted(tensors: dict[str, np.ndarray], naming: str) -> dict:
  """The items of a file with exactly these tensors."""
  shapes = {key: tensor.shape for key, tensor in tensors.items()}
  match = donor.match([wan_vace.DONOR], shapes)
  assert match.naming.name == naming
  donor.check(match, "test")
  leaves = match.plan.fill(lambda key: tensors[match.keys[key]], np.dtype(np.float32))
  tree: dict = {}
  for path, leaf in leaves.items():
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def largest_relative_error(found, expected) -> float:
  return float(np.abs(found - expected).max() / np.abs(expected).max())


def compare(sizes: dict, *, grid: tuple[int, int, int], text_length: int, naming: str, times, scale) -> float:
  model = reference(**sizes)
  tensors = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
  if naming == "original":
    tensors = {f"model.diffusion_model.{original_name(key)}": tensor for key, tensor in tensors.items()}
  params = converted(tensors, naming)
  width, heads = sizes["heads"] * sizes["head_width"], sizes["heads"]
  block = dict(width=width, heads=heads, mlp_width=sizes["mlp_width"])
  dit = Functional(
    lambda rngs: Dit(**block, depth=sizes["layers"], text_width=sizes["text_width"], text_length=text_length, rngs=rngs)
  )
  vace = Functional(lambda rngs: Vace(**block, depth=len(sizes["vace_layers"]), stride=2, rngs=rngs))

  rng = np.random.default_rng(0)
  batch = len(times)
  latents, context, text = (
    rng.standard_normal(shape).astype(np.float32)
    for shape in ((batch, *grid, 16), (batch, *grid, 96), (batch, text_length - 3, sizes["text_width"]))
  )
  t = np.asarray(times, np.float32)
  scale = np.full(len(sizes["vace_layers"]), scale, np.float32) if np.isscalar(scale) else np.asarray(scale, np.float32)
  torch_of = lambda x: torch.from_numpy(np.moveaxis(x, -1, 1).copy())
  with torch.no_grad():
    expected = model(
      torch_of(latents),
      torch.from_numpy(t),
      torch.from_numpy(np.pad(text, ((0, 0), (0, 3), (0, 0)))),
      control_hidden_states=torch_of(context),
      control_hidden_states_scale=torch.from_numpy(scale),
      return_dict=False,
    )[0]
  with jax.default_matmul_precision("highest"):
    forward = lambda params, *args: run(
      dit.bind(params["dit"]), vace.bind(params["vace"]), *args, scale=jnp.asarray(scale)
    )
    found = jax.jit(forward)(params, latents, context, text, t)
  assert found.shape == latents.shape
  return largest_relative_error(np.asarray(found), np.moveaxis(expected.numpy(), 1, -1))


TINY = dict(heads=2, head_width=12, mlp_width=32, layers=3, vace_layers=(0, 2), text_width=32)
WIDER_HEADS = TINY | dict(head_width=16, layers=4)


@pytest.mark.parametrize("naming", ["original", "diffusers"])
@pytest.mark.parametrize("sizes, scale", [(TINY, 0.7), (WIDER_HEADS, (1.0, 0.3))])
def test_forward_equals_diffusers(sizes, scale, naming):
  times = (1000.0, 0.0, 987.65, 123.456)
  error = compare(sizes, grid=(3, 6, 8), text_length=8, naming=naming, times=times, scale=scale)
  print(f"relative error {error:.2e}")
  assert error < TOLERANCE


@pytest.mark.slow
def test_forward_equals_diffusers_at_full_width():
  sizes = dict(heads=12, head_width=128, mlp_width=8960, layers=4, vace_layers=(0, 2), text_width=4096)
  error = compare(sizes, grid=(3, 8, 8), text_length=512, naming="original", times=(987.65,), scale=1.0)
  print(f"relative error {error:.2e}")
  assert error < TOLERANCE


def test_tensors_come_back_bit_for_bit():
  tensors = {original_name(key): tensor.numpy() for key, tensor in reference(**TINY).state_dict().items()}
  match = donor.match([wan_vace.DONOR], {key: tensor.shape for key, tensor in tensors.items()})
  back = invert(match.naming.rules, match.plan.fill(tensors.__getitem__, np.dtype(np.float32)))
  assert back.keys() == tensors.keys()
  for key, tensor in tensors.items():
    np.testing.assert_array_equal(back[key](), tensor)


@pytest.mark.parametrize("naming", ["original", "diffusers"])
def test_every_key_of_the_full_model_has_a_leaf(naming):
  """1264 keys, by shape: the class of diffusers on the meta device fills exactly the leaves of the default modules."""
  with torch.device("meta"):
    model = diffusers.WanVACETransformer3DModel(
      num_attention_heads=12, ffn_dim=8960, num_layers=30, vace_layers=list(range(0, 30, 2))
    )
  shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
  if naming == "original":
    shapes = {original_name(key): shape for key, shape in shapes.items()}
  assert len(shapes) == 1264
  match = donor.match([wan_vace.DONOR], shapes)
  assert match.naming.name == naming
  donor.check(match, "the 1.3B model")
  defaults = {"dit": Functional(lambda rngs: Dit(rngs=rngs)), "vace": Functional(lambda rngs: Vace(rngs=rngs))}
  assert match.plan.targets == donor.abstract_shapes(defaults)
  assert sum(int(np.prod(shape)) for shape in match.plan.targets.values()) == 2_153_972_032
