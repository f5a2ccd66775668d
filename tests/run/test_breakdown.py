"""The parts of a step's cost: their names, their passes and their sum."""

import jax
import jax.numpy as jnp
import pytest

from synclipmae_jax.run import hlo
from synclipmae_jax.run.breakdown import breakdown, place_of, table

DEPTH, TOKENS, WIDTH = 3, 32, 64


@jax.named_scope("mlp")
def mlp(x, weight):
  return jnp.tanh(x @ weight) @ weight.T


def loss(weights, x, *, remat):
  block = lambda x, weight: (x + mlp(x, weight), None)
  with jax.named_scope("decoder"):
    x, _ = jax.lax.scan(jax.checkpoint(block, prevent_cse=False) if remat else block, x, weights)
  with jax.named_scope("losses"):
    return jnp.square(x).sum()


def cost(remat):
  shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((DEPTH, WIDTH, WIDTH), (TOKENS, WIDTH))]
  gradient = jax.grad(lambda weights, x: loss(weights, x, remat=remat))
  return hlo.read_cost(jax.jit(gradient).lower(*shapes).compile().as_text())


def test_the_parts_are_the_whole_and_what_is_computed_again_is_told_apart():
  found = cost(remat=True)
  rows = {(row["part"], row["run"]): row for row in breakdown(found.by_name)}
  assert sum(row["flops"] for row in rows.values()) == found.flops > 0
  assert sum(row["hbm_bytes"] for row in rows.values()) == found.hbm_bytes > 0
  product = DEPTH * 2 * TOKENS * WIDTH * WIDTH
  assert rows["decoder/mlp", "forward"]["flops"] == 2 * product
  assert rows["decoder/mlp", "recomputed"]["flops"] == product  # the second is not needed again
  assert rows["decoder/mlp", "backward"]["flops"] == 4 * product
  assert rows["losses", "forward"]["flops"] == 0
  assert not any(row["run"] == "recomputed" for row in breakdown(cost(remat=False).by_name))


@pytest.mark.parametrize(
  ("name", "place"),
  [
    ("all-gather-start", ("other/all-gather-start", "forward")),
    ("jit(train_step)/while/body/add", ("other", "forward")),
    ("jit(train_step)/jvp(losses)/mul", ("losses", "forward")),
    ("jit(f)/jvp(decoder)/while/body/self_attention/scores/transpose", ("decoder/self_attention/scores", "forward")),
    ("jit(f)/transpose(jvp(dit))/while/body/checkpoint/rematted_computation/mlp/dot", ("dit/mlp", "recomputed")),
    ("jit(f)/transpose(jvp(dit))/while/body/checkpoint/mlp/norm/dot", ("dit/mlp/norm", "backward")),
  ],
)
def test_names_of_the_compiler(name, place):
  assert place_of(name) == place


def test_the_table_ends_with_the_sum():
  text = table(breakdown({"jvp(decoder)/mlp": (2e12, 3e9), "transpose(jvp(decoder))": (6e12, 1e9)}))
  first, *_, last = text.splitlines()[1:]
  assert first.split() == ["decoder/mlp", "forward", "3.00", "75.0%", "2.000", "25.0%"]
  assert last.split() == ["all", "4.00", "100.0%", "8.000", "100.0%"]
