"""Selection of the patches that the encoder sees (paper section 3.2, "Two-Bypass Face-Aware Masking").

All functions are pure functions of a per-clip key, so a mask depends on (seed, step, clip) only.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, Key, Shaped, UInt8

# Default boxes for callers without boxes: the face in a crop made by `data.prepare`, and the mouth in a face box.
FACE_PRIOR = (0.15, 0.15, 0.85, 0.9)
MOUTH_PRIOR = (0.25, 0.62, 0.75, 0.95)


def patchify(frames: Shaped[Array, "*b s s c"], patch: int) -> Shaped[Array, "*b n p"]:
  """Pixels of every patch: [..., S, S, 3] -> [..., N, patch * patch * 3]; patches by row, channels vary fastest."""
  if frames.dtype == jnp.uint8 and patch % 4 == 0:
    return jax.lax.platform_dependent(
      frames, cpu=lambda x: _patchify_words(x, patch), default=lambda x: _patchify(x, patch)
    )
  return _patchify(frames, patch)


def _patchify(frames, patch: int):
  return rearrange(frames, "... (h p) (w q) c -> ... (h w) (p q c)", p=patch, q=patch)


def _patchify_words(frames: UInt8[Array, "*b s s c"], patch: int) -> UInt8[Array, "*b n p"]:
  """Moves four bytes at a time, which a CPU does in 0.4 of the time."""
  rows = rearrange(frames, "... (h p) (w q) c -> ... h p w (q c)", p=patch, q=patch)
  words = jax.lax.bitcast_convert_type(rearrange(rows, "... (n four) -> ... n four", four=4), jnp.uint32)
  patches = rearrange(words, "... h p w n -> ... (h w) (p n)")
  return rearrange(jax.lax.bitcast_convert_type(patches, jnp.uint8), "... n four -> ... (n four)")


def unpatchify(patches: Shaped[Array, "*b n p"], patch: int) -> Shaped[Array, "*b s s c"]:
  """Inverse of `patchify` for square images of three channels."""
  side = round(patches.shape[-2] ** 0.5)
  return rearrange(patches, "... (h w) (p q c) -> ... (h p) (w q) c", h=side, p=patch, q=patch)


def mouth_or_prior(face_box: Float[Array, "*b 4"], mouth_box: Float[Array, "*b 4"]) -> Float[Array, "*b 4"]:
  """The mouth box. Rows of -1 (no landmarks) are replaced by the mouth prior inside the face box."""
  corner, size = face_box[..., :2], face_box[..., 2:] - face_box[..., :2]
  prior = jnp.concatenate(
    [corner + size * jnp.asarray(MOUTH_PRIOR[:2]), corner + size * jnp.asarray(MOUTH_PRIOR[2:])], axis=-1
  )
  return jnp.where(mouth_box[..., 2:3] > mouth_box[..., :1], mouth_box, prior)


def box_coverage(box: Float[Array, "*b 4"], grid: int) -> Float[Array, "*b n"]:
  """Fraction of every patch that lies inside a box given in fractions of the image."""
  edges = jnp.arange(grid + 1)

  def overlap(low, high):  # in patches, so that those inside have exactly 1 and weigh the same
    inside = jnp.minimum(grid * high[..., None], edges[1:]) - jnp.maximum(grid * low[..., None], edges[:-1])
    return jnp.clip(inside, 0.0)

  columns = overlap(box[..., 0], box[..., 2])
  rows = overlap(box[..., 1], box[..., 3])
  return rearrange(rows[..., :, None] * columns[..., None, :], "... h w -> ... (h w)")


def keep_weights(
  face_box: Float[Array, "*b 4"], mouth_box: Float[Array, "*b 4"], *, grid: int, face: float, mouth: float
) -> Float[Array, "*b n"]:
  """Weights of the patches in the face-preserving bypass: 1 outside the face, `face` on it, `mouth` on the mouth."""
  on_face = box_coverage(face_box, grid)
  on_mouth = box_coverage(mouth_or_prior(face_box, mouth_box), grid)
  return jnp.maximum(1 + (face - 1) * on_face, 1 + (mouth - 1) * on_mouth)


def sample_visible(
  keys: Key[Array, " b"], *, frames: int, patches: int, visible: int, weights: Float[Array, "#b t n"] | None = None
) -> Int[Array, "b t k"]:
  """Draws `visible` of `patches` indices per frame without replacement, by `weights` or uniformly.

  Gumbel top-k: the largest of the log weights plus Gumbel noise are a weighted sample without replacement (Kool et al.
  2019). The count is fixed, so shapes are static.
  """
  scores = jax.vmap(lambda key: jax.random.gumbel(key, (frames, patches)))(keys)
  if weights is not None:
    scores = scores + jnp.log(weights)
  return jax.lax.top_k(scores, visible)[1]


def top_weighted(weights: Float[Array, "*b n"], visible: int) -> Int[Array, "*b k"]:
  """The `visible` patches of largest weight, of equal ones evenly spread ones. Needs no key, unlike `sample_visible`.

  `top_k` takes the first of equals: the patches are put in an order of which every beginning is spread over the grid,
  so that equal weights on a face leave out no part of it.
  """
  order = _coarse_to_fine(round(weights.shape[-1] ** 0.5))
  return jnp.asarray(order)[jax.lax.top_k(weights[..., order], visible)[1]]


def spread_evenly(grid: int, visible: int) -> np.ndarray:
  """`visible` of the grid * grid patches, spread evenly: int [visible], the same at every call.

  It stands for a uniform mask where there is no key. The patches are taken at equal steps along a Z-order curve.
  """
  steps = (np.arange(visible) + 0.5) * grid**2 / visible
  return np.sort(_z_order(grid).argsort()[steps.astype(int)])


def _z_order(grid: int) -> np.ndarray:
  """int [grid * grid]: the place of every patch on a Z-order curve: the bits of its row and column, interleaved."""
  row, column = np.divmod(np.arange(grid**2), grid)
  bits = np.arange(grid.bit_length())
  return (((row[:, None] >> bits) & 1) * 2 + ((column[:, None] >> bits) & 1)) @ 4**bits


def _coarse_to_fine(grid: int) -> np.ndarray:
  """The patches in an order of which every beginning is spread over the grid: that of the reversed bits of Z-order."""
  bits = np.arange(2 * grid.bit_length())
  return (((_z_order(grid)[:, None] >> bits) & 1) @ 2 ** bits[::-1]).argsort()


def leave_out_face(
  indices: Int[Array, "b f k"], face_box: Float[Array, "b f 4"], *, frames: Bool[Array, "b f"], grid: int
) -> Int[Array, "b f k"]:
  """The indices, with those of patches that the face touches replaced by grid * grid, which is no patch.

  Only in the chosen `frames`. There, the decoder has the tokens alone to restore the face from.
  """
  touched = jnp.take_along_axis(box_coverage(face_box, grid), indices, axis=-1) > 0
  return jnp.where(touched & frames[..., None], grid**2, indices)


def take_patches(patches: Array, indices: Int[Array, "*b k"]) -> Array:
  """Gathers rows: [..., N, P] and [..., K] -> [..., K, P]."""
  return jnp.take_along_axis(patches, indices[..., None], axis=-2)


def visibility(indices: Int[Array, "*b k"], patches: int) -> Float[Array, "*b n"]:
  """1 where a patch is visible, 0 where it is masked."""
  return jax.nn.one_hot(indices, patches).sum(axis=-2)


def motion_of(patches: UInt8[Array, "b t n p"]) -> Float[Array, "b n"]:
  """Standard deviation over the clip of the pixels of each patch, relative to the mean over the patches.

  Exact sums of integers take a CPU a thirtieth of the time of floats. 32 bits hold the variance of 514 frames, times
  their number squared; ValueError for more.
  """
  if (frames := patches.shape[1]) > 514:
    raise ValueError(f"the motion of at most 514 frames, got {frames}")
  pixels = patches.astype(jnp.uint32)
  total, squares = pixels.sum(axis=1), jnp.square(pixels).sum(axis=1)
  change = jnp.sqrt((frames * squares - jnp.square(total)).astype(jnp.float32)).mean(axis=-1) / frames
  return change / (change.mean(axis=-1, keepdims=True) + 1e-6)
