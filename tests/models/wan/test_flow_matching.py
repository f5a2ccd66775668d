"""Flow matching and its samplers, on flows whose end is known."""

import jax.numpy as jnp
import numpy as np
import pytest

from synclipmae_jax.models.wan import flow_matching as flow
from synclipmae_jax.models.wan.samplers import make_sampler, sample
from synclipmae_jax.types import InputError


def noise(seed=0):
  return jnp.float32(np.random.default_rng(seed).standard_normal((2, 1, 2, 2, 3)))


def test_the_grid_is_shifted_and_its_weights_have_mean_one():
  grid = flow.training_grid(shift=5.0)
  assert len(grid.sigma) == 1000 and grid.sigma[0] == 1 and (np.diff(grid.sigma) < 0).all() and grid.sigma[-1] > 0
  assert grid.sigma[500] == pytest.approx(5 * 0.5 / 3)  # half of the way is at 5/6
  assert grid.weight.mean() == pytest.approx(1, rel=1e-6) and grid.weight.min() == 0
  assert abs(grid.sigma[grid.weight.argmax()] - 0.5) < 0.01
  assert (flow.training_grid(shift=1.0, weights="none").weight == 1).all()
  for wrong in (dict(shift=0.0), dict(shift=1.0, weights="sum")):
    with pytest.raises(InputError, match="shift is positive"):
      flow.training_grid(**wrong)


def test_the_error_is_zero_for_the_true_velocity_only():
  clean, e = noise(1), noise(2)
  assert not np.any(flow.velocity_error(e - clean, clean, e))
  assert flow.velocity_error(e, clean, e) == pytest.approx(np.square(clean).mean((2, 3, 4)), rel=1e-5)
  x = flow.add_noise(clean, e, jnp.array([0.0, 1.0]))
  np.testing.assert_array_equal(x[0], clean[0])
  np.testing.assert_array_equal(x[1], e[1])
  middle = flow.add_noise(clean, e, jnp.array([0.25, 0.25]))
  np.testing.assert_allclose(middle - 0.25 * (e - clean), clean, atol=1e-6)


def test_weighted_places_count_by_their_weight():
  clean, e = noise(1), noise(2)
  weight = jnp.zeros((2, 2, 2)).at[:, 1, 0].set(0.5)
  there = jnp.square(clean[:, :, 1, 0]).mean(-1)
  np.testing.assert_allclose(flow.velocity_error(e, clean, e, weight=weight), there, rtol=1e-5)
  np.testing.assert_allclose(
    flow.velocity_error(e, clean, e, weight=jnp.full((2, 2, 2), 0.3)), flow.velocity_error(e, clean, e), rtol=1e-5
  )


def test_the_weight_of_clean_latents_makes_their_error_of_that_of_the_velocity():
  clean, e, guess = noise(1), noise(2), noise(3)
  grid, ratios = flow.training_grid(shift=3.0, weights="clean"), []
  for level in (100, 700, 950):
    sigma = jnp.full(2, grid.sigma[level])
    velocity = (flow.add_noise(clean, e, sigma) - guess) / sigma[0]
    error = grid.weight[level] * flow.velocity_error(velocity, clean, e)
    ratios.append(error / np.square(guess - clean).mean((2, 3, 4)))
  np.testing.assert_allclose(ratios, np.full((3, 2, 1), ratios[0][0]), rtol=1e-3)  # the same at every noise level


def test_what_changes_over_time_counts_more():
  draw = lambda seed: jnp.float32(np.random.default_rng(seed).standard_normal((2, 6, 2, 2, 3)))
  clean, e, velocity = draw(1), draw(2), draw(3)
  error = np.asarray(velocity - (e - clean))
  still = error[:, 2:].mean(axis=1, keepdims=True)
  expected = np.square(still).mean() + 4 * np.square(error[:, 2:] - still).mean()
  weighted = flow.with_motion_weighted(velocity, clean, e, references=2, weight=4.0)
  np.testing.assert_allclose(flow.velocity_error(weighted, clean, e)[:, 2:].mean(), expected, rtol=1e-5)
  np.testing.assert_allclose(weighted[:, :2], velocity[:, :2])


@pytest.mark.parametrize("name", ["euler", "unipc"])
def test_one_clean_sample_is_reached_in_any_number_of_steps(name):
  goal = noise(3)
  for steps in (1, 2, 3, 7):
    seen = []
    sampler = make_sampler(name, steps=steps, shift=5.0)
    sigma_of = dict(zip(sampler.time.tolist(), sampler.sigma.tolist(), strict=True))

    def velocity(x, t, sigma_of=sigma_of):
      return (x - goal) / sigma_of[float(t[0])]

    end = sample(velocity, noise(), sampler, progress=lambda done, total, seen=seen: seen.append((done, total)))
    np.testing.assert_allclose(end, goal, atol=2e-5)
    assert seen == [(step + 1, steps) for step in range(steps)]


def test_unipc_is_far_more_exact_than_euler_in_the_same_steps():
  """Data of variance d^2: the flow maps noise e to d e."""
  d, start = 0.3, noise(4)
  errors = {}
  for name in ("euler", "unipc"):
    for steps in (10, 40):
      sampler = make_sampler(name, steps=steps, shift=3.0)
      sigma_of = dict(zip(sampler.time.tolist(), sampler.sigma.tolist(), strict=True))

      def velocity(x, t, sigma_of=sigma_of):
        s = sigma_of[float(t[0])]
        return (s - (1 - s) * d**2) * x / ((1 - s) ** 2 * d**2 + s**2)

      end = sample(velocity, start, sampler)
      errors[name, steps] = float(np.abs(end - d * start).max() / np.abs(d * start).max())
  print(errors)
  assert errors["unipc", 40] < errors["euler", 40] / 4
  assert errors["unipc", 40] < errors["unipc", 10] / 16  # order 2
  assert errors["euler", 10] / 8 < errors["euler", 40] < errors["euler", 10] / 2  # order 1


def test_guidance_asks_for_no_more_than_it_needs():
  asked = []

  def velocity(text, driven):
    asked.append((text, driven))
    return jnp.full((1, 1, 1, 1, 1), 1.0 + 2.0 * text + 4.0 * driven)

  def value(**scales):
    asked.clear()
    return float(flow.guided(velocity, **scales)[0, 0, 0, 0, 0]), len(asked)

  assert value() == (7.0, 1)
  assert value(control=3.0) == (3 + 3 * 4, 2)
  assert value(text=2.0, control=2.0) == (1 + 2 * 6, 2)
  assert value(text=2.0, control=3.0) == (1 + 2 * 2 + 3 * 4, 3)
  assert value(text=2.0) == (1 + 2 * 2 + 4, 3)
  assert value(text=0.0, control=1.0)[0] == 1 + 4


def test_a_sampler_that_is_not_known_is_refused():
  for wrong in (dict(name="dpm"), dict(steps=0), dict(shift=-1.0)):
    with pytest.raises(InputError, match="unipc or euler"):
      make_sampler(**{"name": "unipc", "steps": 4, "shift": 5.0, **wrong})
