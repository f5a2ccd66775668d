"""Layouts and their inverses against plain products and convolutions; plans from keys and shapes alone."""

import numpy as np
import pytest

from synclipmae_jax.convert import rules
from synclipmae_jax.convert.rules import Misfit, Plan, Rule, invert
from synclipmae_jax.convert.sapiens import POSITION_WITH_CLASS
from synclipmae_jax.convert.wav2vec2 import WEIGHT_NORM

RANDOM = np.random.default_rng(0)


def tensor(*shape):
  return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
  "layout, tensors, target",
  [
    (rules.SAME, [tensor(5)], (5,)),
    (rules.LINEAR, [tensor(6, 4)], (4, 6)),
    (rules.CONV1D, [tensor(8, 3, 5)], (5, 3, 8)),
    (rules.CONV2D, [tensor(8, 3, 5, 7)], (5, 7, 3, 8)),
    (rules.CONV3D, [tensor(8, 3, 2, 5, 7)], (2, 5, 7, 3, 8)),
    (rules.fused(3), [tensor(4, 6) for _ in range(3)], (6, 12)),
    (rules.fused_bias(2), [tensor(4), tensor(4)], (8,)),
    (rules.ones(before=2), [tensor(1, 1, 4)], (4,)),
    (rules.ones(after=3), [tensor(4, 1, 1, 1)], (4,)),
    (rules.IMAGE_PATCHES, [tensor(8, 3, 4, 4)], (48, 8)),
    (rules.patch_kernel(size=(1, 2, 2), channels=5), [tensor(8, 5, 1, 2, 2)], (20, 8)),
  ],
)
def test_a_layout_and_its_inverse(layout, tensors, target):
  (leaf,) = layout.forward(*tensors)
  assert leaf.shape == target
  back = layout.inverse(leaf)
  assert len(back) == len(tensors)
  assert all(np.array_equal(a, b) for a, b in zip(back, tensors, strict=True))


def test_a_patch_kernel_is_its_convolution():
  weight, patch = tensor(8, 3, 4, 4), tensor(4, 4, 3)  # one patch: rows, columns, channels
  (kernel,) = rules.IMAGE_PATCHES.forward(weight)
  np.testing.assert_allclose(patch.reshape(-1) @ kernel, np.einsum("ochw,hwc->o", weight, patch), rtol=1e-5)


def test_fused_kernels_have_the_order_of_the_rule():
  parts = [tensor(4, 6) for _ in range(3)]
  x = tensor(6)
  joined = x @ rules.fused(3).forward(*parts)[0]
  np.testing.assert_allclose(joined, np.concatenate([part @ x for part in parts]), rtol=1e-5, atol=1e-6)


def test_a_folded_weight_norm_is_independent_of_the_length_of_v():
  g, v = np.abs(tensor(1, 1, 4)), tensor(6, 3, 4)
  (kernel,) = WEIGHT_NORM.forward(g, v)
  np.testing.assert_allclose(np.linalg.norm(kernel, axis=(1, 2)), g.ravel(), rtol=1e-6)
  np.testing.assert_allclose(WEIGHT_NORM.forward(g, 7 * v)[0], kernel, rtol=1e-6)
  np.testing.assert_allclose(WEIGHT_NORM.forward(*WEIGHT_NORM.inverse(kernel))[0], kernel, rtol=1e-6)


RULES = (
  Rule("stem.weight", "item/stem/kernel", rules.LINEAR),
  Rule("layer.{i}.weight", "item/blocks/kernel", rules.LINEAR),
  Rule(("layer.{i}.q", "layer.{i}.k"), "item/blocks/qk", rules.fused_bias(2)),
  Rule("extra", "item/extra", optional=True),
)


def weights(depth=3):
  blocks = {f"layer.{i}.{name}": tensor(*shape) for i in range(depth) for name, shape in
            (("weight", (4, 2)), ("q", (2,)), ("k", (2,)))}  # fmt: skip
  return {"stem.weight": tensor(5, 4), **blocks}


def plan_of(tensors):
  return Plan(RULES, {key: value.shape for key, value in tensors.items()})


def test_blocks_fill_one_stacked_leaf_and_are_restored():
  tensors = weights()
  plan = plan_of(tensors)
  assert plan.distance == 0 and not plan.misfits
  leaves = plan.fill(tensors.__getitem__, np.float32)
  assert {path: leaf.shape for path, leaf in leaves.items()} == plan.targets
  assert plan.targets == {"item/stem/kernel": (4, 5), "item/blocks/kernel": (3, 2, 4), "item/blocks/qk": (3, 4)}
  joined = np.concatenate([tensors["layer.1.q"], tensors["layer.1.k"]])
  np.testing.assert_array_equal(leaves["item/blocks/qk"][1], joined)
  back = {key: make() for key, make in invert(RULES, leaves).items()}
  assert back.keys() == tensors.keys()
  assert all(np.array_equal(back[key], tensors[key]) for key in tensors)


def test_an_optional_rule_may_find_nothing():
  tensors = weights() | {"extra": tensor(3)}
  assert plan_of(tensors).targets["item/extra"] == (3,)


def test_a_gap_in_the_blocks_is_missing_and_not_a_shorter_stack():
  tensors = weights()
  del tensors["layer.1.q"], tensors["layer.2.weight"]
  assert set(plan_of(tensors).missing) == {"layer.1.q", "layer.2.weight"}


def test_unknown_keys_and_too_large_block_numbers_are_unused():
  tensors = weights() | {"head.weight": tensor(1), "layer.99999999.weight": tensor(4, 2), "layer.x.weight": tensor(1)}
  plan = plan_of(tensors)
  assert set(plan.unused) == {"head.weight", "layer.99999999.weight", "layer.x.weight"} and not plan.missing


@pytest.mark.parametrize("odd, usual", [(0, 1), (2, 0)])
def test_a_block_that_differs_from_the_others_is_named_with_both_shapes(odd, usual):
  plan = plan_of(weights() | {f"layer.{odd}.weight": tensor(4, 3)})
  assert plan.misfits == [Misfit(f"layer.{odd}.weight", (4, 3), (4, 2), f"layer.{usual}.weight")]
  assert plan.targets["item/blocks/kernel"] == (3, 2, 4)


@pytest.mark.parametrize(
  "layout, shapes, wanted",
  [
    (rules.fused(2), [(3, 4), (5, 4)], [(4, 4), (4, 4)]),
    (rules.fused_bias(2), [(3,), (5,)], [(4,), (4,)]),
    (WEIGHT_NORM, [(6, 1, 1), (6, 3, 4)], [(1, 1, 4), (6, 3, 4)]),  # a norm for every output, not for every tap
    (POSITION_WITH_CLASS, [(2, 5, 8)], [(1, 5, 8)]),
  ],
)
def test_shapes_that_numpy_would_let_pass_are_misfits(layout, shapes, wanted):
  keys = tuple("ab"[: len(shapes)])
  targets = ("item/x", "item/y") if layout is POSITION_WITH_CLASS else "item/x"
  plan = Plan([Rule(keys, targets, layout)], dict(zip(keys, shapes, strict=True)))
  assert [(misfit.key, misfit.expected) for misfit in plan.misfits] == [
    (key, want) for key, shape, want in zip(keys, shapes, wanted, strict=True) if shape != want
  ]


def test_a_shape_that_no_layout_takes_is_a_misfit():
  plan = Plan((Rule("a", "item/a", rules.IMAGE_PATCHES), Rule("b", "item/b", rules.LINEAR)), {"a": (8, 3), "b": (4,)})
  assert [misfit.key for misfit in plan.misfits] == ["a", "b"]


def test_expected_shapes_are_given_as_the_file_should_have_them():
  plan = plan_of(weights())
  (misfit,) = plan.against({**plan.targets, "item/stem/kernel": (4, 9)})
  assert (misfit.key, misfit.found, misfit.expected) == ("stem.weight", (5, 4), (9, 4))
