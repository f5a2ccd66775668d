"""Self-attention over short sequences on a TPU, which never writes its scores to HBM.

The patches of one frame are few (256 in the decoder of the paper), and heads are narrow (32): the scores of a frame are
eight times as large as its queries, and XLA writes them several times. Here a program of the kernel holds whole
sequences, and reads queries, keys and values where one matrix product has left them, side by side. It goes through the
width in steps of 128 columns, the full lanes of the chip, and does the heads in them one after another. The columns of
the query that belong to other heads are zero meanwhile, so nothing is moved between lanes; a matrix unit is as deep as
the lanes anyway. For the gradient the scores are computed again.

JAX's own kernels for TPUs (flash and splash attention) want heads of 128 columns: padding them would move more than the
scores do.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import AbstractMesh
from jaxtyping import Array, Float

from synclipmae_jax.sharding import batch_axes, on_own_examples

LANES, TILE_ROWS = 128, 16  # of a tile of bfloat16
LONGEST = 512  # tokens whose scores of one head, float32, fit on the chip several times
_PROGRAM_BYTES = 2**21  # of the inputs and outputs of one program, of which the chip holds two


def suits(qkv: Array, *, tokens: int, heads: int, mesh: AbstractMesh) -> bool:
  """Whether `short_attention` can do these [B N, 3 D] on the devices of the mesh."""
  device = mesh.abstract_device
  columns, (sequences, rest) = qkv.shape[-1] // 3, divmod(len(qkv) // tokens, math.prod(batch_axes(mesh).values()))
  return (
    device is not None
    and device.platform == "tpu"
    and LANES % (columns // heads) == 0
    and columns % LANES == 0
    and tokens <= LONGEST
    and not rest
    and _sequences(sequences, tokens, 0) is not None
  )


def short_attention(
  qkv: Float[Array, "m e"], *, tokens: int, heads: int, interpret: bool = False
) -> Float[Array, "m d"]:
  """Softmax attention of queries, keys and values side by side, M = B N, E = 3 D. Scores and softmax are float32.

  All tokens of all sequences are rows, because N may not divide into the tiles of the chip, and padding every sequence
  would move more. On the ambient mesh every device does its own sequences. `interpret` runs the kernel on any device,
  slowly.
  """
  return on_own_examples(functools.partial(_attention, tokens, qkv.shape[-1] // 3 // heads, interpret))(qkv)


def _sequences(count: int, tokens: int, row_bytes: int) -> int | None:
  """Of one program: they divide and are whole tiles, and the largest such number that fits; None if there is none."""
  whole = [n for n in (1, 2, 4, 8, 16) if count % n == 0 and (n * tokens % TILE_ROWS == 0 or n == count)]
  return max((n for n in whole if n * tokens * row_bytes <= _PROGRAM_BYTES), default=min(whole, default=None))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attention(tokens: int, width: int, interpret: bool, qkv: Array) -> Array:
  return _call(_forward, (qkv,), qkv.shape[-1] // 3, tokens=tokens, width=width, products=2, interpret=interpret)


def _attention_forward(tokens: int, width: int, interpret: bool, qkv: Array) -> tuple[Array, Array]:
  return _attention(tokens, width, interpret, qkv), qkv


def _attention_backward(tokens: int, width: int, interpret: bool, qkv: Array, gradient: Array) -> tuple[Array]:
  inputs = (qkv, gradient)
  return (_call(_backward, inputs, qkv.shape[-1], tokens=tokens, width=width, products=5, interpret=interpret),)


_attention.defvjp(_attention_forward, _attention_backward)


def _call(
  kernel: Callable, inputs: tuple[Array, ...], columns: int, *, tokens: int, width: int, products: int, interpret
):
  """Runs a kernel that gives [B N, columns] over all sequences. `products`: matrix products that a head needs."""
  (rows, qkv_columns), dtype = inputs[0].shape, inputs[0].dtype
  row_bytes = dtype.itemsize * (columns + sum(x.shape[-1] for x in inputs))
  sequences = _sequences(rows // tokens, tokens, row_bytes)
  block = lambda width: pl.BlockSpec((sequences * tokens, width), lambda i: (i, 0))
  return pl.pallas_call(
    functools.partial(kernel, tokens=tokens, width=width),
    grid=(rows // (sequences * tokens),),
    in_specs=[block(x.shape[-1]) for x in inputs],
    out_specs=block(columns),
    out_shape=jax.ShapeDtypeStruct((rows, columns), dtype),
    cost_estimate=pl.CostEstimate(
      flops=products * 2 * rows * tokens * qkv_columns // 3,
      bytes_accessed=rows * row_bytes,
      transcendentals=rows * tokens * qkv_columns // 3 // width,
    ),
    interpret=interpret,
    name=f"short_attention{kernel.__name__}",
  )(*inputs)


def _forward(qkv_ref, out_ref, *, tokens: int, width: int) -> None:
  for start in range(0, len(out_ref), tokens):
    one = slice(start, start + tokens)
    for q_at, k_at, v_at in _steps(out_ref.shape[-1]):
      q, k, v = (qkv_ref[one, at] for at in (q_at, k_at, v_at))
      out = jnp.zeros(q.shape, jnp.float32)
      for of_head in _heads(width):
        weights, total = _weights(jnp.where(of_head, q, 0), k, width)
        out += jnp.where(of_head, _product(weights.astype(v.dtype), v) / total, 0)
      out_ref[one, q_at] = out.astype(out_ref.dtype)


def _backward(qkv_ref, gradient_ref, out_ref, *, tokens: int, width: int) -> None:
  for start in range(0, len(out_ref), tokens):
    one = slice(start, start + tokens)
    for places in _steps(gradient_ref.shape[-1]):
      q, k, v = (qkv_ref[one, at] for at in places)
      gradient = gradient_ref[one, places[0]]
      dq, dk, dv = (jnp.zeros(q.shape, jnp.float32) for _ in places)
      for of_head in _heads(width):
        query, given = jnp.where(of_head, q, 0), jnp.where(of_head, gradient, 0)
        weights, total = _weights(query, k, width)
        weights = weights / total
        of_weights = _product(given, v, transposed=True)
        of_scores = weights * (of_weights - (weights * of_weights).sum(axis=-1, keepdims=True)) * width**-0.5
        of_scores = of_scores.astype(q.dtype)
        dq += jnp.where(of_head, _product(of_scores, k), 0)
        dk += _product(of_scores.T, query)
        dv += _product(weights.astype(v.dtype).T, given)
      for at, value in zip(places, (dq, dk, dv), strict=True):
        out_ref[one, at] = value.astype(out_ref.dtype)


def _steps(columns: int) -> Iterator[tuple[slice, slice, slice]]:
  """Where queries, keys and values of each 128 columns are."""
  for start in range(0, columns, LANES):
    q, k, v = (start + part * columns for part in range(3))
    yield slice(q, q + LANES), slice(k, k + LANES), slice(v, v + LANES)


def _heads(width: int) -> list[Array]:
  """For each head in 128 columns, which of them are its own, bool [1, 128]."""
  lanes = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
  return [(lanes >= start) & (lanes < start + width) for start in range(0, LANES, width)]


def _weights(q: Array, k: Array, width: int) -> tuple[Array, Array]:
  """exp of the scores less their largest, [N, M], and its sum over the keys, [N, 1]; float32."""
  scores = _product(q, k, transposed=True) * width**-0.5
  weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
  return weights, weights.sum(axis=-1, keepdims=True)


def _product(x: Array, y: Array, *, transposed: bool = False) -> Array:
  """x y, or x times y transposed, with float32 sums."""
  dimensions = (((1,), (1 if transposed else 0,)), ((), ()))
  return jax.lax.dot_general(x, y, dimensions, preferred_element_type=jnp.float32)
