"""Softmax attention over long sequences on a TPU by JAX's flash attention, which never writes the scores to HBM."""

from __future__ import annotations

import math

from einops import rearrange
from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes, flash_attention
from jax.sharding import AbstractMesh
from jaxtyping import Array, Float

from synclipmae_jax.models.short_attention import LANES
from synclipmae_jax.sharding import batch_axes, on_own_examples

SHORTEST = 1024  # queries; of fewer, XLA's scores are small
_BLOCKS = (512, 256, 128)  # rows of a block, the largest that divides


def suits(q: Array, k: Array, *, heads: int, mesh: AbstractMesh) -> bool:
  """Whether `long_attention` can do queries [B, N, D] and keys [B, M, D] on the devices of the mesh, and pays."""
  device = mesh.abstract_device
  return (
    device is not None
    and device.platform == "tpu"
    and q.shape[-1] % (heads * LANES) == 0
    and q.shape[1] >= SHORTEST
    and q.shape[1] % LANES == 0
    and k.shape[1] % LANES == 0
    and q.shape[0] % math.prod(batch_axes(mesh).values()) == 0
  )


def long_attention(
  q: Float[Array, "b n d"], k: Float[Array, "b m d"], v: Float[Array, "b m d"], *, heads: int
) -> Float[Array, "b n d"]:
  """Softmax attention; on the ambient mesh every device does its own examples."""

  def attend(q, k, v):
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (q, k, v))
    out = flash_attention(q, k, v, sm_scale=q.shape[-1] ** -0.5, block_sizes=_blocks(q.shape[2], k.shape[2]))
    return rearrange(out, "b h n d -> b n (h d)")

  return on_own_examples(attend)(q, k, v)


def _blocks(queries: int, keys: int) -> BlockSizes:
  of_queries, of_keys = (next(size for size in _BLOCKS if count % size == 0) for count in (queries, keys))
  names = ("block_q", "block_q_major_dkv", "block_q_dkv", "block_q_dq")
  others = ("block_k_major", "block_k", "block_k_major_dkv", "block_k_dkv", "block_k_major_dq", "block_k_dq")
  return BlockSizes(block_b=1, **dict.fromkeys(names, of_queries), **dict.fromkeys(others, of_keys))
