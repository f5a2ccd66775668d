"""Softmax attention over short sequences on a TPU, which never writes its scores to HBM.

The patches of one frame are few (256 in the decoder of the paper), and heads are narrow (32): the scores of a frame are
eight times as large as its queries, and XLA writes them several times. Here a program of the kernel holds whole
sequences of 128 neighbouring columns of the width, the full lanes of the chip, and does the heads in them one after
another. The other heads' columns of the query are zero meanwhile, so nothing is moved between lanes; a matrix unit is
as deep as the lanes anyway. For the gradient the scores are computed again. Of forward and gradient of the decoder's
attention the v6e compiler then counts 7 % of the bytes, of the encoder's 21 %.

JAX's own kernels for TPUs (flash and splash attention) want heads of 128 columns: padding them would move more than the
scores do.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float

from synclipmae_jax.sharding import BATCH_AXES

LANES = 128
SHORTEST = 16  # of fewer keys, like the prompts of the decoder, XLA moves no more
LONGEST = 512  # queries or keys whose scores of one head, float32, fit on the chip several times
_SEQUENCES = 4  # of one program, if they divide


def suits(q: Array, k: Array, *, heads: int, mesh: AbstractMesh) -> bool:
  """Whether `short_attention` can do queries [B, N, D] and keys [B, M, D] on the devices of the mesh."""
  device = mesh.abstract_device
  width = q.shape[-1] // heads
  return (
    device is not None
    and device.platform == "tpu"
    and LANES % width == 0
    and q.shape[-1] % LANES == 0
    and k.shape[1] >= SHORTEST
    and max(q.shape[1], k.shape[1]) <= LONGEST
    and q.shape[0] % math.prod(mesh.shape[axis] for axis in _batch_axes(mesh)) == 0
  )


def short_attention(
  q: Float[Array, "b n d"], k: Float[Array, "b m d"], v: Float[Array, "b m d"], *, heads: int, interpret: bool = False
) -> Float[Array, "b n d"]:
  """Softmax attention. Scores and softmax are float32; `interpret` runs the kernel on any device, slowly.

  On the ambient mesh every device does its own examples.
  """
  mesh = jax.sharding.get_abstract_mesh()
  attend = functools.partial(_attention, q.shape[-1] // heads, interpret)
  if axes := _batch_axes(mesh):
    by_example = PartitionSpec(axes)
    attend = jax.shard_map(attend, in_specs=(by_example,) * 3, out_specs=by_example, check_vma=False)
  return attend(q, k, v)


def _batch_axes(mesh: AbstractMesh) -> tuple[str, ...]:
  return tuple(axis for axis in BATCH_AXES if axis in mesh.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(width: int, interpret: bool, q: Array, k: Array, v: Array) -> Array:
  return _call(_forward, (q, k, v), like=(q,), width=width, products=2, interpret=interpret)[0]


def _attention_forward(width: int, interpret: bool, q: Array, k: Array, v: Array):
  return _attention(width, interpret, q, k, v), (q, k, v)


def _attention_backward(width: int, interpret: bool, inputs: tuple[Array, Array, Array], gradient: Array):
  return tuple(_call(_backward, (*inputs, gradient), like=inputs, width=width, products=5, interpret=interpret))


_attention.defvjp(_attention_forward, _attention_backward)


def _call(kernel: Callable, inputs, *, like, width: int, products: int, interpret: bool) -> list[Array]:
  """Runs a kernel over all sequences and groups of columns. `products`: matrix products that a head needs."""
  count, queries, columns = inputs[0].shape
  keys = inputs[1].shape[1]
  sequences = math.gcd(count, _SEQUENCES)
  block = lambda x: pl.BlockSpec((sequences, x.shape[1], LANES), lambda i, j: (i, 0, j))
  return pl.pallas_call(
    functools.partial(kernel, width=width, sequences=sequences),
    grid=(count // sequences, columns // LANES),
    in_specs=[block(x) for x in inputs],
    out_specs=[block(x) for x in like],
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in like],
    cost_estimate=pl.CostEstimate(
      flops=products * 2 * count * queries * keys * columns,
      bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*inputs, *like)),
      transcendentals=count * queries * keys * columns // width,
    ),
    interpret=interpret,
    name=f"short_attention{kernel.__name__}",
  )(*inputs)


def _forward(q_ref, k_ref, v_ref, out_ref, *, width: int, sequences: int) -> None:
  for row in range(sequences):
    q, k, v = q_ref[row], k_ref[row], v_ref[row]
    out = jnp.zeros(q.shape, jnp.float32)
    for of_head in _columns(width):
      weights, total = _weights(jnp.where(of_head, q, 0), k, width)
      out += jnp.where(of_head, _product(weights.astype(v.dtype), v) / total, 0)
    out_ref[row] = out.astype(out_ref.dtype)


def _backward(q_ref, k_ref, v_ref, gradient_ref, dq_ref, dk_ref, dv_ref, *, width: int, sequences: int) -> None:
  for row in range(sequences):
    q, k, v, gradient = q_ref[row], k_ref[row], v_ref[row], gradient_ref[row]
    dq, dk, dv = (jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
    for of_head in _columns(width):
      query, given = jnp.where(of_head, q, 0), jnp.where(of_head, gradient, 0)
      weights, total = _weights(query, k, width)
      weights = weights / total
      of_weights = _product(given, v, transposed=True)
      of_scores = weights * (of_weights - (weights * of_weights).sum(axis=-1, keepdims=True)) * width**-0.5
      of_scores = of_scores.astype(q.dtype)
      dq += jnp.where(of_head, _product(of_scores, k), 0)
      dk += _product(of_scores.T, query)
      dv += _product(weights.astype(v.dtype).T, given)
    for ref, value in ((dq_ref, dq), (dk_ref, dk), (dv_ref, dv)):
      ref[row] = value.astype(ref.dtype)


def _columns(width: int) -> list[Array]:
  """For each head, which of the lanes are its own, bool [1, 128]."""
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
