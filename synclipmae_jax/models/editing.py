"""Faces decoded from tokens of any origin, around the surroundings of a given face."""

from __future__ import annotations

from jaxtyping import Array, Float

from synclipmae_jax.models import masking
from synclipmae_jax.models.synclipmae import SyncLipMAEModel
from synclipmae_jax.models.visual_encoder import denormalise_pixels
from synclipmae_jax.types import Params


def caveats(model: SyncLipMAEModel) -> list[str]:
  """What a viewer of decoded faces must know of this model."""
  if model.faceless_context:
    return []
  return ["its decoder was never trained with the face hidden (model.faceless_context): faces decoded from tokens blur"]


def decode_around(
  model: SyncLipMAEModel, trainable: Params, frames, face_box, *, identity, vocal, ambient
) -> Float[Array, "r s s 3"]:
  """Pictures in 0..1 from tokens [R, D] and the patches of `frames` [R, S, S, 3] that cover least of `face_box` [R, 4].

  As many patches are seen as in training, so that mouth and pose come from the tokens. `trainable` has the decoder.
  """
  surroundings = masking.top_weighted(-masking.box_coverage(face_box[:, None], model.grid), model.visible)
  patches = model.encode(trainable, frames[:, None], surroundings).patches
  decoded = model.decode(
    trainable,
    patches,
    surroundings,
    identity=identity[:, None],
    ambient=ambient[:, None],
    conditioning=vocal[:, None, None],
  )
  return masking.unpatchify(denormalise_pixels(decoded[:, 0, 0]), model.patch)
