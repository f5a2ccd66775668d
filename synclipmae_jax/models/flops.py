"""Analytic FLOPs of the building blocks: dots and convolutions of the forward pass, two FLOPs per multiply-add.

The counts are analytic because the compiler's cost analysis counts the body of a scan once. The method `flops` of each
module adds them up.
"""

from __future__ import annotations


def dense(tokens: int, in_features: int, out_features: int) -> int:
  """A linear layer on `tokens` tokens."""
  return 2 * tokens * in_features * out_features


def attention(queries: int, keys: int, width: int) -> int:
  """Logits and weighted sum, without the projections."""
  return 4 * queries * keys * width


def transformer_block(tokens: int, width: int, mlp_width: int) -> int:
  """qkv, attention, output projection and MLP over one sequence."""
  return dense(tokens, width, 4 * width) + attention(tokens, tokens, width) + 2 * dense(tokens, width, mlp_width)
