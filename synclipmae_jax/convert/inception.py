"""InceptionV3 of FID (`pt_inception-2015-12-05` of mseitzer/pytorch-fid): a flat state dict in torchvision's naming."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from synclipmae_jax.baselines.inception import BLOCKS, STEM, InceptionV3
from synclipmae_jax.convert.auto_avsr import batch_norm
from synclipmae_jax.convert.donor import Donor, Naming
from synclipmae_jax.convert.rules import CONV2D, Rule, Shape
from synclipmae_jax.models.functional import Functional


def _rules() -> Iterator[Rule]:
  inside = [
    f"{block}.{name}"
    for block, branches in BLOCKS.items()
    for branch in branches
    for name, *_ in (*branch.convs, *branch.ends)
  ]
  for name in (*STEM, *inside):
    ours = f"inception/{name.replace('.', '/')}"
    yield Rule(f"{name}.conv.weight", f"{ours}/conv/kernel", CONV2D)
    yield from batch_norm(f"{name}.bn", f"{ours}/norm")


def _sizes(leaves: Mapping[str, Shape]) -> dict[str, Any]:
  first = next(iter(STEM))
  return {"scale": leaves[f"inception/{first}/conv/kernel"][-1] / STEM[first][0]}


def _modules(**sizes: Any) -> dict[str, Functional]:
  return {"inception": Functional(lambda rngs: InceptionV3(**sizes, rngs=rngs))}


DONOR = Donor(
  name="inception",
  title="InceptionV3 of FID",
  licence="Apache-2.0 (weights of TensorFlow's model and code of pytorch-fid)",
  origin="pt_inception-2015-12-05-6726825d.pth of mseitzer/pytorch-fid",
  namings=(Naming("pytorch-fid", tuple(_rules()), drop=(r"fc\.(weight|bias)", r".*\.num_batches_tracked")),),
  sizes=_sizes,
  modules=_modules,
)
