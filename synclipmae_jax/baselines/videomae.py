"""VideoMAE (Tong et al. 2022, MCG-NJU/VideoMAE) and MARLIN (Cai et al. 2023, ControlNet/MARLIN): masked autoencoders.

Both are one network: a plain ViT over tubes of two frames by one patch, of which a tenth is visible in training, and a
narrow decoder that restores the others. The released models see 16 frames of 224 pixels: 8 x 14 x 14 tubes. They differ
in the masks (`tube_masking`), in the target and in the following:

              pixels                    epsilon of norms   position
    VideoMAE  less the ImageNet mean    1e-6               fixed, not in the files
    MARLIN    in 0..1                   1e-5               fixed, in the files, where float32 angles have rounded it

The blocks are those of our visual encoder. The donors' attention has no bias of the keys, ours has: it adds the same to
the logits of all keys and therefore changes nothing; converters set it to 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped, UInt8

from synclipmae_jax.baselines.windows import in_chunks, square_pictures
from synclipmae_jax.models import flops
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.layers import XAVIER, EncoderBlock, LayerNorm, Linear, scan_blocks, stack_blocks
from synclipmae_jax.models.sequence import sinusoids
from synclipmae_jax.models.visual_encoder import normalise_pixels
from synclipmae_jax.types import InputError, Params

TUBELET = 2  # frames of a tube, in both
POOLS = ("clip", "pair")
# Margins of MARLIN's crop, in heights of the face box: its detector's boxes go from the hairline to the chin, ours from
# the brows. ours
FACE_MARGINS = (0.35, 0.05)


def cut_tubes(frames: Shaped[Array, "b t s s c"], patch: int) -> Shaped[Array, "b n p"]:
  """Pixels of every tube: by time, row, column; in a tube by frame, row, column, channel."""
  return rearrange(frames, "b (t r) (h p) (w q) c -> b (t h w) (r p q c)", r=TUBELET, p=patch, q=patch)


class VideoEncoder(nnx.Module):
  """ViT over the visible tubes of a clip of `frames` frames of `image_size` pixels.

  `normalise`: whether pixels are normalised by the ImageNet statistics. `position_table`: whether the fixed table is
  a parameter, to be filled from a donor's file. Raises ValueError for sizes that do not divide.
  """

  def __init__(
    self,
    *,
    image_size: int,
    frames: int,
    patch: int,
    width: int,
    depth: int,
    heads: int,
    mlp_width: int,
    epsilon: float = 1e-6,
    normalise: bool = True,
    position_table: bool = False,
    compute_dtype=jnp.float32,
    unroll: bool | int = 1,
    remat: str = "none",
    rngs: nnx.Rngs,
  ):
    if image_size % patch or frames % TUBELET or min(image_size, frames) < 1:
      raise ValueError(f"{frames} frames of {image_size} pixels do not divide into tubes of {TUBELET} x {patch} pixels")
    self.image_size, self.frames, self.patch, self.normalise = image_size, frames, patch, normalise
    self.grid, self.times = image_size // patch, frames // TUBELET
    self.tubes = self.times * self.grid**2
    self.width, self.depth, self.mlp_width = width, depth, mlp_width
    self.compute_dtype, self.unroll, self.remat = compute_dtype, unroll, remat
    self.patch_embedding = Linear(TUBELET * patch**2 * 3, width, compute_dtype=compute_dtype, rngs=rngs)
    self.position = _table(self.tubes, width) if position_table else None
    self.blocks = stack_blocks(
      lambda r: EncoderBlock(width, heads, mlp_width, epsilon=epsilon, compute_dtype=compute_dtype, rngs=r), depth, rngs
    )
    self.norm = LayerNorm(width, epsilon=epsilon, compute_dtype=compute_dtype, rngs=rngs)

  def __call__(self, tubes: Float[Array, "b k p"], indices: Int[Array, "#b k"]) -> Float[Array, "b k d"]:
    """Tokens, before the last norm, of the tubes (pixels in 0..1) with these indices."""
    pixels = normalise_pixels(tubes) if self.normalise else tubes
    place = _at(self.position, indices, tubes=self.tubes, width=self.width)
    x = self.patch_embedding(pixels) + place.astype(self.compute_dtype)
    return scan_blocks(self.blocks, x, unroll=self.unroll, remat=self.remat)

  def features(self, frames: UInt8[Array, "b t s s 3"], *, pool: str = "clip") -> Float[Array, "b u d"]:
    """The norm of the mean of the tokens, float32: one of the clip (u = 1) or one of each pair of frames (u = t / 2).

    The mean comes first, as in MARLIN and in the classifier of VideoMAE (`use_mean_pooling`, `fc_norm`).
    """
    x = self(cut_tubes(frames, self.patch) / 255, jnp.arange(self.tubes)[None])
    x = rearrange(x, "b (u n) d -> b u n d", u=self.times if pool == "pair" else 1)
    return self.norm(x.astype(jnp.float32).mean(axis=2)).astype(jnp.float32)

  def flops(self, visible: int) -> int:
    """Forward FLOPs of one clip of which this many tubes are seen."""
    blocks = self.depth * flops.transformer_block(visible, self.width, self.mlp_width)
    return flops.dense(visible, 3 * TUBELET * self.patch**2, self.width) + blocks


class VideoDecoder(nnx.Module):
  """Restores the masked tubes from the tokens of the visible ones. The arguments are those of `VideoEncoder`."""

  def __init__(
    self,
    *,
    tubes: int,
    patch: int,
    token_width: int,
    width: int,
    depth: int,
    heads: int,
    mlp_width: int,
    epsilon: float = 1e-6,
    position_table: bool = False,
    compute_dtype=jnp.float32,
    unroll: bool | int = 1,
    remat: str = "none",
    rngs: nnx.Rngs,
  ):
    self.tubes, self.pixels = tubes, TUBELET * patch**2 * 3
    self.token_width, self.width, self.depth, self.mlp_width = token_width, width, depth, mlp_width
    self.compute_dtype, self.unroll, self.remat = compute_dtype, unroll, remat
    self.embed_tokens = nnx.Linear(
      token_width, width, use_bias=False, dtype=compute_dtype, kernel_init=XAVIER, rngs=rngs
    )
    self.mask_token = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (1, width)))
    self.position = _table(tubes, width) if position_table else None
    self.blocks = stack_blocks(
      lambda r: EncoderBlock(width, heads, mlp_width, epsilon=epsilon, compute_dtype=compute_dtype, rngs=r), depth, rngs
    )
    self.norm = LayerNorm(width, epsilon=epsilon, compute_dtype=compute_dtype, rngs=rngs)
    self.to_pixels = Linear(width, self.pixels, compute_dtype=compute_dtype, rngs=rngs)

  def __call__(
    self, tokens: Float[Array, "b k c"], visible: Int[Array, "b k"], masked: Int[Array, "b m"]
  ) -> Float[Array, "b m p"]:
    """Pixels of the masked tubes, float32, from the normalised tokens of the visible ones."""
    place = lambda at: _at(self.position, at, tubes=self.tubes, width=self.width).astype(self.compute_dtype)
    seen = self.embed_tokens(tokens) + place(visible)
    hidden = self.mask_token[...].astype(self.compute_dtype) + place(masked)
    x = jnp.concatenate([seen, hidden], axis=1)
    x = scan_blocks(self.blocks, x, unroll=self.unroll, remat=self.remat)
    return self.to_pixels(self.norm(x[:, seen.shape[1] :])).astype(jnp.float32)

  def flops(self, visible: int) -> int:
    """Forward FLOPs of one clip."""
    masked = self.tubes - visible
    blocks = self.depth * flops.transformer_block(self.tubes, self.width, self.mlp_width)
    return flops.dense(visible, self.token_width, self.width) + blocks + flops.dense(masked, self.width, self.pixels)


class Discriminator(nnx.Module):
  """MARLIN's critic of tubes: a score of every one, larger for one that looks real."""

  def __init__(self, pixels: int, hidden: int, *, compute_dtype=jnp.float32, rngs: nnx.Rngs):
    self.up = Linear(pixels, hidden, compute_dtype=compute_dtype, rngs=rngs)
    self.score = Linear(hidden, 1, compute_dtype=compute_dtype, rngs=rngs)

  def __call__(self, tubes: Float[Array, "b m p"]) -> Float[Array, "b m 1"]:
    return self.score(jax.nn.leaky_relu(self.up(tubes))).astype(jnp.float32)


def _table(tubes: int, width: int) -> nnx.Param:
  """The table of `_at` as a parameter, to be filled from a donor's file. It is not trained."""
  return nnx.Param(jnp.asarray(sinusoids(np.arange(tubes), width)))


def _at(table: nnx.Param | None, indices: Int[Array, "b k"], *, tubes: int, width: int) -> Float[Array, "b k d"]:
  """The fixed sinusoids of places in the sequence of tubes."""
  rows = jnp.asarray(sinusoids(np.arange(tubes), width)) if table is None else jax.lax.stop_gradient(table[...])
  return rows[indices]


class VideoFeatures:
  """The features of videos of any length, by windows of the frames that the encoder sees.

  `stride`: every how many frames one is seen (at 25 frames/s; 4 in VideoMAE, 2 in MARLIN). `face`: whether the face is
  cropped, as MARLIN does; otherwise the whole picture is seen. `pool`: one feature a window ("clip") or one of every
  pair of frames ("pair"). Raises InputError for another `pool` or a stride below 1.
  """

  def __init__(
    self,
    module: Functional,
    params: Params,
    *,
    stride: int = 1,
    face: bool = False,
    pool: str = "clip",
    chunk: int = 4,
  ):
    if pool not in POOLS or stride < 1:
      raise InputError(f"pool is one of {', '.join(POOLS)} and stride at least 1, got {pool!r} and {stride}")
    encoder: VideoEncoder = module.bind(module.abstract)
    self.image_size, self.width, self.frames = encoder.image_size, encoder.width, encoder.frames
    self.stride, self.params, self._face, self._chunk = stride, jax.device_put(params), face, chunk
    self._run = jax.jit(lambda params, frames: module.bind(params).features(frames, pool=pool))

  def embed(self, frames: np.ndarray, face_box: np.ndarray | None = None) -> np.ndarray:
    """Features, float32 [T', D], of uint8 frames [T, S, S, 3] of any size; boxes [T, 4] as fractions of the picture.

    T' is the number of windows, times `frames` / 2 with `pool="pair"`. Windows follow one another, the last ends with
    the video and may overlap the one before. A video shorter than a window is seen at a smaller stride; one shorter
    than `frames` has its last frame repeated. Raises InputError without frames, or without boxes for a face crop.
    """
    if frames.ndim != 4 or not len(frames) or frames.dtype != np.uint8:
      raise InputError(f"frames must be uint8 [T, S, S, 3], not {frames.dtype} {list(frames.shape)}")
    if self._face and face_box is None:
      raise InputError("these features are of the face: its boxes are needed")
    margins = FACE_MARGINS if self._face else None
    pictures = square_pictures(frames, face_box, size=self.image_size, margins=margins)
    rows = window_rows(len(frames), self.frames, self.stride)
    found = in_chunks(lambda rows: self._run(self.params, pictures[rows]), rows, chunk=min(self._chunk, len(rows)))
    return found.reshape(-1, self.width)


def window_rows(total: int, frames: int, stride: int) -> np.ndarray:
  """int [windows, frames]: the frames of every window of a video of `total` frames (`VideoFeatures.embed`)."""
  stride = max(min(stride, total // frames), 1)
  span = frames * stride
  starts = np.minimum(np.arange(0, total, span), max(total - span, 0))
  return np.minimum(starts[:, None] + stride * np.arange(frames), total - 1)
