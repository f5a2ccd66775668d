"""Which tubes of a clip VideoMAE and MARLIN see. A tube is one patch of the picture at all times of the clip.

Both masks are an order of the tubes: the first are visible. They are pure functions of a key for each clip.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from synclipmae_jax.models.masking import box_coverage, mouth_or_prior

# Parts of a face in its box, which goes from the brows to the chin. MARLIN takes them from a face parser, which also
# knows hair; records have boxes alone.
PARTS = (
  (0.1, 0.0, 0.45, 0.4),  # the eyes, with their brows
  (0.55, 0.0, 0.9, 0.4),
  (0.37, 0.3, 0.63, 0.62),  # the nose
)
BACKGROUND, SKIN = 0, 1  # the other regions are PARTS and the mouth


def tube_order(keys: Key[Array, " b"], tubes: int) -> Int[Array, "b n"]:
  """VideoMAE's tube masking: the tubes of every clip in random order."""
  return jax.vmap(lambda key: jax.random.permutation(key, tubes))(keys)


def fasking_order(
  keys: Key[Array, " b"], face_box: Float[Array, "b t 4"], mouth_box: Float[Array, "b t 4"], *, grid: int, visible: int
) -> Int[Array, "b n"]:
  """MARLIN's face-region-guided masking ("Fasking"; `fasking` in dataset/youtube_face.py of ControlNet/MARLIN).

  The eyes, the nose and the mouth are masked first. Regions are kept in the order background, skin, parts of the face
  in random order, until the next one is not needed for `visible` tubes. Of the regions kept so far the visible tubes
  are drawn at random.

  There, the regions are drawn for each pair of frames and the draw is over all of them. Here, a tube has one region,
  from the mean of the boxes over the clip, and is visible at all times or never, as the paper describes it.
  """
  region = regions(face_box, mouth_box, grid=grid)
  parts = len(PARTS) + 1

  def order(key, region):
    shuffle, draw = jax.random.split(key)
    turn = jnp.concatenate([jnp.arange(2), 2 + jax.random.permutation(shuffle, parts)])[region]  # [n]
    kept = jnp.cumsum(jnp.bincount(turn, length=2 + parts))
    last = jnp.argmax(kept >= visible)  # the first turn with enough tubes
    noise = jax.random.uniform(draw, region.shape)
    return jnp.argsort(jnp.where(turn <= last, noise, 1 + turn + noise))

  return jax.vmap(order)(keys, region)


def regions(face_box: Float[Array, "b t 4"], mouth_box: Float[Array, "b t 4"], *, grid: int) -> Int[Array, "b n"]:
  """The region of every tube: BACKGROUND, SKIN, 2, 3, ... for PARTS, and the mouth last.

  A tube belongs to a region of which it holds at least half, over the clip; to the last of several.
  """
  corner, size = face_box[..., :2], face_box[..., 2:] - face_box[..., :2]
  inside = lambda part: jnp.concatenate(
    [corner + size * jnp.asarray(part[:2]), corner + size * jnp.asarray(part[2:])], axis=-1
  )
  boxes = [face_box, *map(inside, PARTS), mouth_or_prior(face_box, mouth_box)]
  found = jnp.zeros((len(face_box), grid**2), jnp.int32)
  for number, box in enumerate(boxes, SKIN):
    found = jnp.where(box_coverage(box, grid).mean(axis=1) >= 0.5, number, found)
  return found
