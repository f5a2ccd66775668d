"""InceptionV3 of FID and I3D: names, shapes and sizes of the released files."""

import numpy as np
import pytest

from synclipmae_jax.convert.donor import abstract_shapes, load
from synclipmae_jax.convert.rules import invert

# Number of tensors, without InceptionV3's classifier; parameters without statistics; some keys.
FILES = {
  "inception": (470, 21_785_568, {
    "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
    "Conv2d_4a_3x3.bn.running_var": (192,),
    "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
    "Mixed_5d.branch5x5_2.conv.weight": (64, 48, 5, 5),
    "Mixed_6a.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
    "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
    "Mixed_6e.branch7x7dbl_4.conv.weight": (192, 192, 7, 1),
    "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
    "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
    "Mixed_7c.branch1x1.bn.bias": (320,),
  }),
  "i3d": (287, 12_697_264, {
    "Conv3d_1a_7x7.conv3d.weight": (64, 3, 7, 7, 7),
    "Mixed_3b.b0.conv3d.weight": (64, 192, 1, 1, 1),
    "Mixed_4e.b2b.bn.running_mean": (64,),
    "Mixed_5c.b1b.conv3d.weight": (384, 192, 3, 3, 3),
    "logits.conv3d.weight": (400, 1024, 1, 1, 1),
    "logits.conv3d.bias": (400,),
  }),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_the_released_sizes(name):
  count, parameters, keys = FILES[name]
  shapes = abstract_shapes(load(name).modules())
  leaves = {path: np.broadcast_to(np.float32(0), shape) for path, shape in shapes.items()}
  tensors = invert(load(name).namings[0].rules, leaves)
  assert len(tensors) == count
  assert {key: tensors[key]().shape for key in keys} == keys
  assert (
    sum(int(np.prod(s)) for path, s in shapes.items() if not path.endswith(("norm/mean", "norm/var"))) == parameters
  )
