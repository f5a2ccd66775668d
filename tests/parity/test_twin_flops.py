"""The FLOPs that the benchmark's twin is said to take, on a CPU."""

import pathlib
import sys

import pytest

torch = pytest.importorskip("torch")
sys.path.append(str(pathlib.Path(__file__).parents[2] / "benchmarks"))

from torch_twin import count_flops  # noqa: E402


@pytest.mark.parametrize("queries", [8, 3])
def test_attention_is_counted_forward_and_backward(queries):
  q, k, v = (torch.randn(2, 4, n, 16, requires_grad=True) for n in (queries, 8, 8))
  attend = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)
  products = 2 * (2 * 2 * 4 * queries * 8 * 16)  # query by key, then scores by value
  assert count_flops(attend)[1] == products
  assert count_flops(lambda: attend().sum().backward())[1] == 3 * products
