"""The class token of a donor and its position, of which only the token is trained; and the prompt tokens alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synclipmae_jax import sharding
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.visual_encoder import VisualEncoder
from synclipmae_jax.train.optim import make_optimizer

ENCODER = Functional(
  lambda rngs: VisualEncoder(
    image_size=16, patch=8, width=16, depth=1, heads=2, mlp_width=32, class_token=True, rngs=rngs
  )
)


def test_class_token_and_its_position():
  params = jax.jit(ENCODER.init)(jax.random.key(0))
  np.testing.assert_array_equal(params["class_position"], np.zeros((1, 16), np.float32))
  pixels, indices = jax.random.normal(jax.random.key(1), (1, 1, 2, 192)), jnp.array([[[0, 3]]])
  optimizer = make_optimizer(peak_lr=1e-2, warmup_steps=0, total_steps=1)

  @jax.jit
  def learn(params):
    """The vocal token, and the first update by a loss that depends on it."""

    def loss(params):
      vocal = ENCODER.bind(params)(pixels, indices).vocal
      return vocal[..., 0].sum(), vocal

    gradient, vocal = jax.grad(loss, has_aux=True)(params)
    return vocal, optimizer.update(gradient, optimizer.init(params), params)[0]

  position = jax.random.normal(jax.random.key(2), (1, 16))
  placed = {**params, "class_position": position}
  vocal, updates = learn(placed)
  np.testing.assert_array_equal(vocal, learn({**params, "class_token": params["class_token"] + position})[0])
  assert np.abs(vocal - learn(params)[0]).max() > 1e-3
  still = {path for path, update in sharding.tree_paths(updates) if not np.any(update)}
  assert still == {"class_position", "position"}
  places = sharding.shardings(placed, sharding.make_mesh({"fsdp": -1}), sharding.RULES)
  assert places["class_position"].is_fully_replicated


@pytest.mark.parametrize("unroll", [1, True])
@pytest.mark.parametrize("class_token", [False, True])
def test_the_prompt_tokens_alone_are_the_same(unroll, class_token):
  sizes = dict(image_size=16, patch=4, width=16, depth=3, heads=2, mlp_width=32)
  encoder = Functional(lambda rngs: VisualEncoder(**sizes, class_token=class_token, unroll=unroll, rngs=rngs))
  params = jax.jit(encoder.init)(jax.random.key(0))
  pixels = jax.random.normal(jax.random.key(1), (2, 3, 6, 48))
  indices = jnp.broadcast_to(jnp.arange(0, 12, 2), (2, 3, 6))

  @jax.jit
  def tokens(params):
    both = (encoder.bind(params)(pixels, indices, prompts_only=alone) for alone in (False, True))
    return [(each.identity, each.vocal, each.ambient, each.patches) for each in both]

  (*whole, patches), (*alone, none) = tokens(params)
  assert (patches.shape, none.shape) == ((2, 3, 6, 16), (2, 3, 0, 16))
  for found, wanted in zip(alone, whole, strict=True):
    np.testing.assert_allclose(found, wanted, atol=1e-5)
