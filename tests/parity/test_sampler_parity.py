"""The samplers of flow matching against the schedulers of diffusers, on a network and on random model outputs."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from synclipmae_jax.models.wan.samplers import make_sampler, sample

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SHAPE = (2, 3, 4, 4, 5)


def scheduler(name: str, steps: int, shift: float):
  if name == "euler":
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
  else:
    theirs = diffusers.UniPCMultistepScheduler(
      prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=2
    )
  theirs.set_timesteps(steps)
  return theirs


@pytest.mark.parametrize("steps, shift", [(1, 5.0), (2, 3.0), (3, 1.0), (20, 16.0), (50, 5.0)])
@pytest.mark.parametrize("name", ["euler", "unipc"])
def test_samples_equal_those_of_diffusers(name, steps, shift):
  rng = np.random.default_rng(steps)
  start = rng.standard_normal(SHAPE).astype(np.float32)
  outputs = rng.standard_normal((steps, *SHAPE)).astype(np.float32)  # of the model, whatever it is shown
  theirs, ours = scheduler(name, steps, shift), make_sampler(name, steps=steps, shift=shift)
  np.testing.assert_allclose(ours.time, theirs.timesteps.numpy(), rtol=2e-6)
  np.testing.assert_allclose(ours.sigma, theirs.sigmas.numpy()[:-1], rtol=2e-6)

  for network in (lambda x, step: outputs[step], lambda x, step: 0.5 * np.tanh(x) + outputs[step] / 4):
    expected, told = torch.from_numpy(start), []
    for step, t in enumerate(theirs.timesteps):
      told.append(float(t))
      velocity = torch.from_numpy(np.asarray(network(expected.numpy(), step), np.float32))
      expected = theirs.step(velocity, t, expected, return_dict=False)[0]
    theirs.set_timesteps(steps)
    count = iter(range(steps))
    found = sample(lambda x, t, f=network, n=count: jnp.asarray(f(np.asarray(x), next(n))), jnp.asarray(start), ours)
    error = float(np.abs(np.asarray(found) - expected.numpy()).max() / np.abs(expected.numpy()).max())
    print(f"{name}, {steps} steps, shift {shift}: relative error {error:.1e}")
    assert error < 1e-5
    theirs = scheduler(name, steps, shift)
