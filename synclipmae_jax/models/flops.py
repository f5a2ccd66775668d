"""Model FLOPs of the building blocks, analytically: dots and convolutions, two per multiply-add, forward pass.

Analytic because the compiler's cost analysis counts the body of a scan once. Each module adds them up in `flops`.
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
