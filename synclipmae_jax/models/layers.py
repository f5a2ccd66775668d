"""Transformer layers shared by the visual encoder and the decoder, with their stacking and scanning.

Parameters are float32; `compute_dtype` is the dtype of the matmuls. Normalisation and softmax statistics are float32.
Names and arithmetic follow the plain pre-LN ViT, so that donor weights convert one to one: `MAEViT` of
facebookresearch/sapiens, which computes the same as HF `ViTModel` with `layer_norm_eps=1e-6` (one fused qkv kernel with
bias, exact GELU).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from synclipmae_jax.models import cpu_layers, long_attention, short_attention
from synclipmae_jax.sharding import constrain

XAVIER = nnx.initializers.xavier_uniform()


class LayerNorm(nnx.LayerNorm):
  """LayerNorm with the two-pass variance. The default fast variance of flax has errors of 6e-2 on offset data."""

  def __init__(self, width: int, *, epsilon: float = 1e-6, compute_dtype=jnp.float32, rngs: nnx.Rngs):
    super().__init__(width, epsilon=epsilon, dtype=jnp.dtype(compute_dtype), use_fast_variance=False, rngs=rngs)

  @jax.named_scope("norm")
  def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    if self.dtype != jnp.float32:
      return super().__call__(x)
    rows, scale, bias = (
      jnp.asarray(z, jnp.float32) for z in (x.reshape(-1, x.shape[-1]), self.scale[...], self.bias[...])
    )
    return cpu_layers.layer_norm(rows, scale, bias, self.epsilon).reshape(x.shape)


class Linear(nnx.Linear):
  """Dense layer with Xavier-uniform kernel and zero bias (the initialisation of MAE).

  In float32, the dtype of CPU runs, the leading dimensions are flattened for the product, because with
  three-dimensional operands XLA's CPU backend takes about twice as long for the gradient of an MLP. Other dtypes are
  not flattened here: on a TPU, where a sequence is not a multiple of the 8 rows of a tile, that would copy every
  activation. `scan_blocks` flattens once, before all blocks.
  """

  def __init__(self, in_features: int, out_features: int, *, compute_dtype, rngs: nnx.Rngs):
    super().__init__(in_features, out_features, dtype=jnp.dtype(compute_dtype), kernel_init=XAVIER, rngs=rngs)

  def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b e"]:
    if self.dtype != jnp.float32:
      return super().__call__(x)
    rows, kernel, bias = (
      jnp.asarray(z, jnp.float32) for z in (x.reshape(-1, x.shape[-1]), self.kernel[...], self.bias[...])
    )
    return cpu_layers.dense(rows, kernel, bias).reshape(*x.shape[:-1], self.out_features)


def gelu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
  """Exact GELU.

  In float32 it uses erf, as torch does: the erfc of `jax.nn.gelu` takes 2.5 times as long on a CPU. Other dtypes use
  `jax.nn.gelu`, because in bfloat16 1 + erf(x) loses small tails.
  """
  if x.dtype != jnp.float32:
    return _gelu_from_input(x)
  return 0.5 * x * (1 + jax.lax.erf(math.sqrt(0.5) * x))


@jax.custom_vjp
def _gelu_from_input(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
  """GELU whose gradient is computed from `x` alone.

  Without this XLA keeps the erfc too, which is as large, because it never computes an expensive function twice. On a
  TPU writing and reading it takes longer.
  """
  return jax.nn.gelu(x, approximate=False)


def _gelu_gradient(x, gradient):
  _, back = jax.vjp(lambda x: jax.nn.gelu(x, approximate=False), jax.lax.optimization_barrier(x))
  return back(gradient)


_gelu_from_input.defvjp(lambda x: (_gelu_from_input(x), x), _gelu_gradient)


class Mlp(nnx.Module):
  """Linear, exact GELU, Linear."""

  def __init__(self, width: int, hidden: int, *, compute_dtype, rngs: nnx.Rngs):
    self.up = Linear(width, hidden, compute_dtype=compute_dtype, rngs=rngs)
    self.down = Linear(hidden, width, compute_dtype=compute_dtype, rngs=rngs)

  @jax.named_scope("mlp")
  def __call__(self, x: Float[Array, "*b n d"]) -> Float[Array, "*b n d"]:
    return self.down(gelu(self.up(x)))


class SelfAttention(nnx.Module):
  """Multi-head self-attention with one fused qkv kernel: columns in the order q, k, v, and by head within each."""

  def __init__(self, width: int, heads: int, *, compute_dtype, rngs: nnx.Rngs):
    if width % heads:
      raise ValueError(f"width {width} is not divisible by {heads} heads")
    self.heads = heads
    self.qkv = Linear(width, 3 * width, compute_dtype=compute_dtype, rngs=rngs)
    self.out = Linear(width, width, compute_dtype=compute_dtype, rngs=rngs)

  @jax.named_scope("self_attention")
  def __call__(
    self, x: Float[Array, "*b d"], *, tokens: int | None = None, wanted: int | None = None
  ) -> Float[Array, "*c d"]:
    """`x`: [B, N, D], or [B N, D] with the number N of `tokens`. With `wanted`, only of the first of each sequence."""
    qkv = checkpoint_name(self.qkv(x), "qkv")
    attended = self_attend(qkv, tokens=tokens or x.shape[1], heads=self.heads, wanted=wanted)
    return self.out(checkpoint_name(attended, "attended"))


class CrossAttention(nnx.Module):
  """Multi-head attention from tokens to a short context (the three prompt tokens)."""

  def __init__(self, width: int, heads: int, *, compute_dtype, rngs: nnx.Rngs):
    if width % heads:
      raise ValueError(f"width {width} is not divisible by {heads} heads")
    self.heads = heads
    self.query = Linear(width, width, compute_dtype=compute_dtype, rngs=rngs)
    self.key_value = Linear(width, 2 * width, compute_dtype=compute_dtype, rngs=rngs)
    self.out = Linear(width, width, compute_dtype=compute_dtype, rngs=rngs)

  @jax.named_scope("cross_attention")
  def __call__(self, x: Float[Array, "b n d"], context: Float[Array, "b m d"]) -> Float[Array, "b n d"]:
    k, v = jnp.split(self.key_value(context), 2, axis=-1)
    return self.out(attend(self.query(x), k, v, heads=self.heads))


def self_attend(
  qkv: Float[Array, "*b e"], *, tokens: int, heads: int, wanted: int | None = None
) -> Float[Array, "*c d"]:
  """Softmax attention of queries, keys and values side by side, E = 3 D. Logits and softmax are float32.

  Sequences of N `tokens` are [B, N, E] or [B N, E]. With `wanted`, it is computed for the first of each sequence only,
  and returned as rows. On a TPU short ones go through a kernel that does not write the logits; elsewhere XLA writes
  them.
  """
  if wanted is not None:
    q, k, v = jnp.split(qkv.reshape(-1, tokens, qkv.shape[-1]), 3, axis=-1)
    attended = attend(q[:, :wanted], k, v, heads=heads)
    return attended.reshape(-1, attended.shape[-1])
  rows, shape = qkv.reshape(-1, qkv.shape[-1]), (*qkv.shape[:-1], qkv.shape[-1] // 3)
  if short_attention.suits(rows, tokens=tokens, heads=heads, mesh=jax.sharding.get_abstract_mesh()):
    with jax.named_scope("scores"):
      return short_attention.short_attention(rows, tokens=tokens, heads=heads).reshape(shape)
  sequences = qkv.reshape(-1, tokens, qkv.shape[-1])
  return attend(*jnp.split(sequences, 3, axis=-1), heads=heads).reshape(shape)


@jax.named_scope("scores")
def attend(
  q: Float[Array, "b n d"], k: Float[Array, "b m d"], v: Float[Array, "b m d"], *, heads: int
) -> Float[Array, "b n d"]:
  """Softmax attention. Logits and softmax are float32. On a TPU those of long sequences are not written.

  In float32, the dtype of CPU runs, heads come before tokens and weights are divided by their sum at the end: XLA's CPU
  backend then takes two thirds of the time that `jax.nn.dot_product_attention` and its gradient take.
  """
  if long_attention.suits(q, k, heads=heads, mesh=jax.sharding.get_abstract_mesh()):
    return long_attention.long_attention(q, k, v, heads=heads)
  if q.dtype == jnp.float32:
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (q, k, v))
    logits = jnp.einsum("bhnd,bhmd->bhnm", q * q.shape[-1] ** -0.5, k)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    out = jnp.einsum("bhnm,bhmd->bhnd", weights, v) / weights.sum(axis=-1, keepdims=True)
    return rearrange(out, "b h n d -> b n (h d)")
  q, k, v = (rearrange(x, "b n (h d) -> b n h d", h=heads) for x in (q, k, v))
  return rearrange(jax.nn.dot_product_attention(q, k, v), "b n h d -> b n (h d)")


class EncoderBlock(nnx.Module):
  """Pre-LN transformer block."""

  def __init__(self, width: int, heads: int, mlp_width: int, *, epsilon: float = 1e-6, compute_dtype, rngs: nnx.Rngs):
    self.norm_attention = LayerNorm(width, epsilon=epsilon, compute_dtype=compute_dtype, rngs=rngs)
    self.attention = SelfAttention(width, heads, compute_dtype=compute_dtype, rngs=rngs)
    self.norm_mlp = LayerNorm(width, epsilon=epsilon, compute_dtype=compute_dtype, rngs=rngs)
    self.mlp = Mlp(width, mlp_width, compute_dtype=compute_dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "m d"], *, tokens: int, wanted: int | None = None) -> Float[Array, "w d"]:
    """`x`: the tokens of all sequences as rows, M = B N. See `scan_blocks`."""
    x = constrain(x)
    attended = self.attention(self.norm_attention(x), tokens=tokens, wanted=wanted)
    if wanted is not None:
      x = x.reshape(-1, tokens, x.shape[-1])[:, :wanted].reshape(attended.shape)
    x = x + attended
    return x + self.mlp(self.norm_mlp(x))


def stack_blocks(make: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> nnx.Module:
  """One module whose leaves have `depth` as their first axis. Each block is initialised with its own random numbers."""
  return nnx.vmap(make, in_axes=0, out_axes=0)(rngs.split(depth))


def scan_blocks(
  blocks: nnx.Module,
  x: Float[Array, "b n d"],
  *,
  unroll: bool | int = 1,
  remat: str = "none",
  wanted: int | None = None,
) -> Float[Array, "b w d"]:
  """Applies the stacked `blocks` in sequence. With `wanted`, only the first tokens of each sequence are returned.

  Within them the tokens of all sequences are rows of one matrix: 68 tokens are not a multiple of the 8 rows of a TPU's
  tile, so that sequences would be padded or copied.

  Use `unroll=1` (rolled) on an accelerator, so that compile time does not grow with depth. Use `unroll=True` on CPU,
  where the rolled loop costs about 12 %. Unrolled, the last block is computed for the `wanted` tokens only.
  """
  graph, leaves = nnx.split(blocks)

  def body(x, leaves):
    return nnx.merge(graph, leaves)(x, tokens=tokens), None

  shape, tokens = x.shape, x.shape[1]
  rows = x.reshape(-1, shape[-1])
  apply = lambda rows, leaves: jax.lax.scan(rematerialise(body, remat), rows, leaves, unroll=unroll)[0]
  if wanted is None or unroll is not True:
    return apply(rows, leaves).reshape(shape)[:, :wanted]
  first, last = (jax.tree.map(lambda leaf, part=part: leaf[part], leaves) for part in (slice(-1), -1))
  rows = nnx.merge(graph, last)(apply(rows, first), tokens=tokens, wanted=wanted)
  return rows.reshape(shape[0], wanted, shape[-1])


REMAT = ("none", "dots", "attention", "full")  # policies of `rematerialise`, those that keep most first


def rematerialise(body: Callable, policy: str) -> Callable:
  """The scan body under a rematerialisation policy.

  `none`: no rematerialisation. `full`: only the block inputs are saved. `attention`: self-attention is not repeated,
  queries, keys, values and what it gives are saved too. `dots`: the results of matmuls without a batch dimension are
  saved too. Raises ValueError for another policy.
  """
  match policy:
    case "none":
      return body
    case "full":
      return jax.checkpoint(body, prevent_cse=False)
    case "dots":
      saveable = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
      return jax.checkpoint(body, prevent_cse=False, policy=saveable)
    case "attention":
      saveable = jax.checkpoint_policies.save_only_these_names("qkv", "attended")
      return jax.checkpoint(body, prevent_cse=False, policy=saveable)
  raise ValueError(f"unknown remat policy {policy!r}: one of {', '.join(REMAT)}")
