"""Wan2.1-VACE-1.3B at its released size, without values: tensors, sharding and FLOPs."""

from __future__ import annotations

import math

import jax
import jax.extend
import jax.numpy as jnp
import pytest

from synclipmae_jax import sharding
from synclipmae_jax.convert import donor
from synclipmae_jax.convert.wan_vace import DONOR
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.wan.dit import Dit
from synclipmae_jax.models.wan.vace import Vace, wan_vace

FULL = {"dit": Functional(lambda rngs: Dit(rngs=rngs)), "vace": Functional(lambda rngs: Vace(rngs=rngs))}


def released_shapes() -> dict[str, tuple[int, ...]]:
  """Shapes of all tensors of Wan2.1-VACE-1.3B in the original naming, from its published architecture."""
  width, mlp_width = 1536, 8960
  shapes: dict[str, tuple[int, ...]] = {"head.modulation": (1, 2, width)}

  def dense(key, rows, *rest):
    shapes[f"{key}.weight"], shapes[f"{key}.bias"] = (rows, *rest), (rows,)

  dense("patch_embedding", width, 16, 1, 2, 2)
  dense("vace_patch_embedding", width, 96, 1, 2, 2)
  dense("text_embedding.0", width, 4096)
  dense("text_embedding.2", width, width)
  dense("time_embedding.0", width, 256)
  dense("time_embedding.2", width, width)
  dense("time_projection.1", 6 * width, width)
  dense("head.head", 64, width)
  dense("vace_blocks.0.before_proj", width, width)
  for block in [f"blocks.{i}" for i in range(30)] + [f"vace_blocks.{i}" for i in range(15)]:
    shapes[f"{block}.modulation"] = (1, 6, width)
    for attention in ("self_attn", "cross_attn"):
      for name in "qkvo":
        dense(f"{block}.{attention}.{name}", width, width)
      shapes[f"{block}.{attention}.norm_q.weight"] = shapes[f"{block}.{attention}.norm_k.weight"] = (width,)
    dense(f"{block}.norm3", width)
    dense(f"{block}.ffn.0", mlp_width, width)
    dense(f"{block}.ffn.2", width, mlp_width)
    if block.startswith("vace"):
      dense(f"{block}.after_proj", width, width)
  return shapes


DIFFUSERS_NAMES = {
  "text_embedding.0.": "condition_embedder.text_embedder.linear_1.",
  "text_embedding.2.": "condition_embedder.text_embedder.linear_2.",
  "time_embedding.0.": "condition_embedder.time_embedder.linear_1.",
  "time_embedding.2.": "condition_embedder.time_embedder.linear_2.",
  "time_projection.1.": "condition_embedder.time_proj.",
  "head.head.": "proj_out.",
  "head.modulation": "scale_shift_table",
  "modulation": "scale_shift_table",
  "self_attn.": "attn1.",
  "cross_attn.": "attn2.",
  ".o.": ".to_out.0.",
  ".q.": ".to_q.",
  ".k.": ".to_k.",
  ".v.": ".to_v.",
  "norm3.": "norm2.",
  "ffn.0.": "ffn.net.0.proj.",
  "ffn.2.": "ffn.net.2.",
  "before_proj.": "proj_in.",
  "after_proj.": "proj_out.",
}


def diffusers_key(key: str) -> str:
  for original, theirs in DIFFUSERS_NAMES.items():
    key = key.replace(original, theirs)
  return key


@pytest.mark.parametrize(
  "naming, prefix", [("original", ""), ("original", "model.diffusion_model."), ("diffusers", "")]
)
def test_the_released_tensors_fill_all_parameters(naming, prefix):
  rename = diffusers_key if naming == "diffusers" else str
  shapes = {prefix + rename(key): shape for key, shape in released_shapes().items()}
  assert len(shapes) == 1264
  match = donor.match([DONOR], shapes | {"freqs": (1024, 64)})
  assert match.naming.name == naming and match.dropped == ("freqs",)
  sizes = donor.check(match, "the file")
  assert match.plan.targets == donor.abstract_shapes(FULL)
  assert (sizes["heads"], sizes["stride"]) == (12, 2)
  assert set(match.keys) == set(released_shapes())
  count = lambda item: sum(math.prod(s) for path, s in match.plan.targets.items() if path.startswith(item))
  assert count("vace/") == 734_383_872 + 591_360
  assert count("") == 2_153_972_032


def test_every_leaf_is_placed_on_a_mesh():
  mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
  placed = sharding.shardings({item: f.abstract for item, f in FULL.items()}, mesh, sharding.RULES)
  kernel = placed["vace"]["blocks"]["mlp"]["up"]["kernel"]
  assert kernel.shard_shape((15, 1536, 8960)) == (15, 1536 // 4, 8960)
  assert placed["dit"]["blocks"]["modulation"].is_fully_replicated


def test_flops_are_those_of_the_matrix_products():
  dit, vace = (f.bind(f.abstract) for f in FULL.values())
  shape = (1, 7, 16, 16)
  args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((*shape, 16), (*shape, 96), (1, 512, 4096), (1,))]
  forward = lambda params, *args: wan_vace(*(f.bind(params[item]) for item, f in FULL.items()), *args)
  jaxpr = jax.make_jaxpr(forward)({item: f.abstract for item, f in FULL.items()}, *args)
  tokens = 7 * 8 * 8
  assert products(jaxpr.jaxpr) == dit.flops(tokens) + vace.flops(tokens)


def products(jaxpr) -> int:
  """FLOPs of the matrix products, with the body of a scan multiplied by its length. Those with one column are sums."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general" and equation.invars[1].aval.shape[-1] > 1:
      (contracted, _), _ = equation.params["dimension_numbers"]
      depth = math.prod(equation.invars[0].aval.shape[i] for i in contracted)
      total += 2 * depth * equation.outvars[0].aval.size
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      total += equation.params.get("length", 1) * products(inner)
  return total
