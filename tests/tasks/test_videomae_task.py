"""The training of VideoMAE and MARLIN: what is seen, what is restored, and which loss trains what."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from synclipmae_jax.tasks.videomae import Restored, explained, from_config
from synclipmae_jax.types import InputError

SPEC = importlib.util.spec_from_file_location("videomae", Path(__file__).parents[2] / "configs" / "videomae.py")
CONFIG = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(CONFIG)
KEY = jax.random.key(1)


def task_of(preset, **model):
  config = CONFIG.get_config(preset).to_dict()
  config["model"] |= model
  return from_config(config)


def a_batch(task, clips=4):
  """Pictures of a few smooth stripes that move."""
  wanted = task.abstract_batches(clips)[0]
  draw, size = np.random.default_rng(0), wanted["frames"].shape[2]
  phase = draw.uniform(0, 6, (clips, 1, 1, 1, 3)) + 0.3 * np.arange(task.clip_frames)[:, None, None, None]
  stripes = np.sin(phase + np.arange(size)[:, None] / 8 + np.zeros((size, size, 1)))
  batch = {name: np.zeros(x.shape, x.dtype) for name, x in wanted.items()}
  batch |= {
    "frames": (127 * (1 + stripes)).astype(np.uint8),
    "face_box": np.broadcast_to(np.float32([0.2, 0.2, 0.8, 0.9]), wanted["face_box"].shape),
    "mouth_box": np.full(wanted["mouth_box"].shape, -1, np.float32),
    "index": np.arange(clips, dtype=np.uint32),
  }
  return jax.tree.map(jnp.asarray, batch)


@pytest.mark.parametrize("preset", ["tiny", "marlin_tiny"])
def test_the_mask_is_of_tubes_and_hides_them(preset):
  task = task_of(preset)
  params, frozen = task.init(jax.random.key(0))
  assert not frozen and ("critic" in params) == (preset == "marlin_tiny")
  batch, restore = a_batch(task), jax.jit(task.restore)
  restored = restore(params, batch, KEY)
  masked = np.asarray(restored.masked).reshape(4, 4, 12)  # clips, times, 3/4 of 16 tubes
  assert ((masked % 16) == (masked[:, :1] % 16)).all() and ((masked // 16) == np.arange(4)[:, None]).all()
  assert len({tuple(row) for row in masked[:, 0] % 16}) > 1

  hidden = np.zeros((4, 16))
  np.put_along_axis(hidden, masked[:, 0], 1, axis=1)
  where = np.kron(hidden.reshape(4, 4, 4), np.ones((8, 8)))[:, None, ..., None] == 1
  other = restore(params, batch | {"frames": jnp.where(where, 255 - batch["frames"], batch["frames"])}, KEY)
  np.testing.assert_array_equal(other.predicted, restored.predicted)
  assert np.abs(other.target - restored.target).max() > 0.1
  seen = restore(params, batch | {"frames": jnp.where(where, batch["frames"], 255 - batch["frames"])}, KEY)
  assert np.abs(seen.predicted - restored.predicted).max() > 1e-3
  np.testing.assert_array_equal(seen.target, restored.target)


def test_the_released_mask_leaves_a_tenth():
  task = task_of("base")
  assert (task.visible, task._seen.tubes) == (20, 1568) and task.clip_frames == 64


@pytest.mark.parametrize("preset", ["tiny", "marlin_tiny"])
def test_targets(preset):
  """VideoMAE: a tube less its mean, by its deviation, for each channel; MARLIN: pixels in 0..1."""
  task = task_of(preset)
  batch = a_batch(task)
  restored = jax.jit(task.restore)(task.init(KEY)[0], batch, KEY)
  row, column = divmod(int(restored.masked[1, 3]), 4)  # at the first time
  tube = np.asarray(batch["frames"][1, :2, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]).reshape(128, 3) / 255
  if preset == "tiny":
    tube = (tube - tube.mean(axis=0)) / (tube.std(axis=0, ddof=1) + task.target_floor)
  np.testing.assert_allclose(restored.target[1, 3], tube.ravel(), atol=1e-4)


def test_a_stride_leaves_frames_out():
  config = CONFIG.get_config("tiny").to_dict()
  config["model"]["stride"] = 2
  with pytest.raises(InputError, match="clip_frames is model.encoder.frames x model.stride, 16"):
    from_config(config)
  config["data"]["clip_frames"] = 16
  task = from_config(config)
  params, batch = task.init(KEY)[0], a_batch(task)
  unseen = batch["frames"].at[:, 1::2].set(0)
  first, second = (task.loss(params, {}, batch | {"frames": x}, KEY)[0] for x in (batch["frames"], unseen))
  assert first == second


@pytest.mark.parametrize("preset", ["tiny", "marlin_tiny"])
def test_the_loss_falls(preset):
  task = task_of(preset)
  batch = a_batch(task)
  params, _ = task.init(jax.random.key(0))
  optimizer = optax.adam(1e-2)
  state = optimizer.init(params)

  @jax.jit
  def step(params, state):
    (_, metrics), grads = jax.value_and_grad(task.loss, has_aux=True)(params, {}, batch, KEY)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state, metrics["reconstruction"]

  found = []
  for _ in range(100):
    params, state, error = step(params, state)
    found.append(float(error))
  assert found[-1] < 0.6 * found[0]


def test_the_share_that_is_explained():
  draw = np.random.default_rng(0).standard_normal((2, 5, 7)) + 3
  target = jnp.asarray(draw, jnp.float32)
  share = lambda predicted: [1 - e / d for e, d in zip(*explained(Restored(predicted, target, None)), strict=True)]
  assert share(target) == [1, 1]
  np.testing.assert_allclose(
    share(jnp.broadcast_to(target.mean(axis=(1, 2), keepdims=True), target.shape)), 0, atol=1e-6
  )


@pytest.mark.slow
def test_the_critic_learns_from_its_own_loss_alone():
  task = task_of("marlin_tiny")
  params, batch = task.init(KEY)[0], a_batch(task)
  gradient = lambda name: jax.grad(lambda params: task.loss(params, {}, batch, KEY)[1][name])(params)
  sizes = lambda tree: {item: float(optax.global_norm(x)) for item, x in tree.items()}
  critic, adversarial = sizes(gradient("critic")), sizes(gradient("adversarial"))
  assert critic["critic"] > 0 == critic["video_encoder"] == critic["video_decoder"]
  assert adversarial["critic"] == 0 < min(adversarial["video_encoder"], adversarial["video_decoder"])


def test_the_cost_of_a_step():
  """Of the preset `demo`, whose steps are chosen by it: the two largest parts by hand, and the total."""
  task = task_of("demo")
  flops = task.model_flops(task.abstract_batches(16)[0])
  attention, pixels = 4 * 1152**2 * 64, 2 * (1152 - 120) * 64 * 384
  assert 3 * 16 * (attention + pixels) < flops == pytest.approx(30.1e9, rel=5e-3)
  marlin = task_of("marlin_demo")
  assert marlin.model_flops(marlin.abstract_batches(16)[0]) == pytest.approx(59.3e9, rel=5e-3)


@pytest.mark.parametrize("wrong", [dict(mask="frame"), dict(mask_ratio=1.0), dict(stride=0)])
def test_wrong_arguments_are_refused(wrong):
  with pytest.raises((InputError, ZeroDivisionError)):
    task_of("tiny", **wrong)
