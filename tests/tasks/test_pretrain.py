"""The pretraining task with the real train step: every ablation, several meshes, with and without accumulation."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from synclipmae_jax import sharding
from synclipmae_jax.run.jobs import training_job_of
from synclipmae_jax.train.optim import Optimizer, make_optimizer
from synclipmae_jax.train.state import init_state
from synclipmae_jax.train.step import make_train_step

SPEC = importlib.util.spec_from_file_location("pretrain", Path(__file__).parents[2] / "configs" / "pretrain.py")
CONFIG = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(CONFIG)


def build_task(config):
  return training_job_of(config).build_task(config)


TERMS = ("reconstruction_video", "reconstruction_audio", "contrast", "covariance")


def a_batch(task, clips=16, seed=0):
  random = np.random.default_rng(seed)
  shapes = task.abstract_batches(clips)[0]
  return {
    "frames": random.integers(0, 256, shapes["frames"].shape).astype(np.uint8),
    "waveform": random.normal(0, 0.1, shapes["waveform"].shape).astype(np.float32),
    "face_box": np.broadcast_to(np.float32([0.1, 0.1, 0.9, 0.9]), shapes["face_box"].shape),
    "mouth_box": np.full(shapes["mouth_box"].shape, -1, np.float32),
    "subject": np.arange(clips, dtype=np.uint32) // 2,
    "source": np.arange(clips, dtype=np.int32) // 4 % 3 % 2,  # of the groups of four: 0 1 0 0 1 0 ...
    "index": np.arange(clips, dtype=np.uint32),
  }


def one_step(config, *, mesh, accumulation=1, clips=16, optimizer=None, **task_changes):
  """Metrics of the first step and parameters after it, by the optimizer of the configuration or another."""
  with config.unlocked():
    config.loss.update(task_changes)
  task = build_task(config)
  optimizer = optimizer or make_optimizer(**config.optimizer, total_steps=4)
  state, frozen = init_state(task, optimizer, mesh, jax.random.key(0))
  step = make_train_step(task, optimizer, mesh=mesh, accumulation=accumulation)
  state, metrics = step(state, frozen, sharding.to_global(a_batch(task, clips), mesh), jax.random.key(1))
  return jax.device_get((metrics, state.trainable))


def mesh_of(devices, **axes):
  return sharding.make_mesh(axes, devices=jax.devices()[:devices])


# The paper's terms: ours divide by the deviations of tokens, which at random values magnify the order of a sum.
PAPERS_TERMS = {"normalised_covariance": False, "weights": {"subject": 0.0, "frame": 0.0, "spread": 0.0}}


# The gradient itself, at a rate of 1.
DESCENT = Optimizer(init=optax.sgd(1.0).init, update=optax.sgd(1.0).update, schedule=lambda step: 1.0)


@pytest.fixture(scope="module")
def reference():
  return one_step(CONFIG.get_config("tiny"), mesh=mesh_of(1, data=1))


@pytest.mark.parametrize("axes", [dict(data=8), dict(data=2, fsdp=4)], ids=str)
def test_the_same_global_batch_on_eight_devices(reference, axes):
  metrics, _ = one_step(CONFIG.get_config("tiny"), mesh=mesh_of(8, **axes))
  for term in TERMS:
    np.testing.assert_allclose(metrics[term], reference[0][term], rtol=2e-5, err_msg=term)
  # Plain descent at a rate of 1: AdamW's first update would be any part of its rate where a gradient is all rounding.
  one, many = (one_step(CONFIG.get_config("tiny"), mesh=mesh, optimizer=DESCENT, **PAPERS_TERMS)[1]
               for mesh in (mesh_of(1, data=1), mesh_of(8, **axes)))  # fmt: skip
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), many, one)


@pytest.mark.parametrize("accumulation", [2, 4])
def test_with_and_without_gradient_accumulation(reference, accumulation):
  """Every term except the covariance, whose statistics are those of the micro-batch."""
  metrics, _ = one_step(CONFIG.get_config("tiny"), mesh=mesh_of(1, data=1), accumulation=accumulation)
  for term in TERMS[:3]:
    np.testing.assert_allclose(metrics[term], reference[0][term], rtol=2e-5, err_msg=term)


def test_accumulation_on_eight_devices(reference):
  metrics, _ = one_step(CONFIG.get_config("tiny"), mesh=mesh_of(8, data=8), accumulation=2)
  for term in TERMS[:3]:
    np.testing.assert_allclose(metrics[term], reference[0][term], rtol=2e-5, err_msg=term)


@pytest.fixture(scope="module")
def of_each_source():
  """Name of a source -> the metrics of its clips alone, and their number; a source fills whole groups."""
  config = CONFIG.get_config("tiny")
  task = build_task(config)
  key = jax.random.fold_in(jax.random.key(1), 0)
  state, frozen = init_state(task, make_optimizer(**config.optimizer, total_steps=4), mesh_of(1, data=1),
                             jax.random.key(0))  # fmt: skip
  batch, loss = a_batch(task), jax.jit(task.loss)
  alone = {}
  for number, name in enumerate(("hdtf", "mead")):
    part = {field: value[batch["source"] == number] for field, value in batch.items()}
    alone[name] = loss(state.trainable, frozen, part, key)[1], len(part["index"])
  return alone


@pytest.mark.parametrize(
  ("axes", "accumulation"),
  [(dict(data=1), 1), (dict(data=1), 4), (dict(data=2, fsdp=4), 1), (dict(data=8), 2)],
  ids=str,
)
def test_the_losses_of_a_source_are_those_of_its_clips_alone(of_each_source, axes, accumulation):
  config = CONFIG.get_config("tiny")
  config.data.sources = (("data/hdtf", None), ("data/mead", 1.0))
  mesh = mesh_of(int(np.prod(list(axes.values()))), **axes)
  metrics, _ = one_step(config, mesh=mesh, accumulation=accumulation)
  means = {name: value[0] / value[1] for name, value in metrics.items() if value.shape}
  assert means.keys() == {
    f"{term}/{name}" for term in ("reconstruction", "contrast", "share") for name in of_each_source
  }
  for name, (alone, clips) in of_each_source.items():
    assert means[f"share/{name}"] == clips / 16
    expected = alone["reconstruction_video"] + alone["reconstruction_audio"]
    np.testing.assert_allclose(means[f"reconstruction/{name}"], expected, rtol=2e-5)
    np.testing.assert_allclose(means[f"contrast/{name}"], alone["contrast"], rtol=2e-5)
  # Their mean by share is the loss of the whole.
  whole = sum(metrics[f"contrast/{name}"][0] for name in of_each_source) * accumulation / 16
  np.testing.assert_allclose(whole, metrics["contrast"], rtol=2e-5)


@pytest.mark.parametrize("alignment", ["waveform", "feature", "pool2"])
def test_a_step_with_wav2vec2_keeps_it_frozen(alignment):
  config = CONFIG.get_config("tiny")
  config.model.speech_encoder.kind = "wav2vec2"
  config.model.speech_encoder.wav2vec2.alignment = alignment
  task, mesh = build_task(config), mesh_of(1, data=1)
  optimizer = make_optimizer(**config.optimizer, total_steps=4)
  state, frozen = init_state(task, optimizer, mesh, jax.random.key(0))
  before = jax.device_get(frozen)
  step = make_train_step(task, optimizer, mesh=mesh)
  state, metrics = step(state, frozen, sharding.to_global(a_batch(task), mesh), jax.random.key(1))
  assert metrics["finite"]
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(frozen), before)
  kernel = state.trainable["audio_adapter"]["hidden"]["kernel"]
  assert kernel.shape == (2 * 32, 32)
  assert "speech_encoder" not in state.trainable


def test_every_trained_parameter_gets_a_gradient(reference):
  """One step changes every leaf except the position tables."""
  config = CONFIG.get_config("tiny")
  task = build_task(config)
  state, _ = init_state(task, make_optimizer(**config.optimizer, total_steps=4), mesh_of(1, data=1), jax.random.key(0))
  moved = {
    path: not np.array_equal(before, after)
    for (path, before), (_, after) in zip(
      sharding.tree_paths(jax.device_get(state.trainable)), sharding.tree_paths(reference[1]), strict=True
    )
  }
  still = {path for path, value in moved.items() if not value}
  assert still == {"visual_encoder/position", "decoder/position"}


@pytest.mark.parametrize("name", ["A1", "A2", "A3", "B1", "C1"])
def test_an_ablation_trains_every_parameter_that_it_has(name):
  """One backward pass: finite, and of no parameter 0 but of the position tables."""
  config = CONFIG.get_config(f"tiny,{name}")
  config.model.unroll = False  # compiles faster
  task = build_task(config)
  trainable, frozen = jax.jit(task.init)(jax.random.key(0))
  grads, metrics = jax.jit(jax.grad(task.loss, has_aux=True))(trainable, frozen, a_batch(task, 8), jax.random.key(1))
  assert all(np.isfinite(metrics[term]) for term in TERMS)
  leaves = dict(sharding.tree_paths(jax.device_get(grads)))
  assert all(np.isfinite(leaf).all() for leaf in leaves.values())
  assert {path for path, leaf in leaves.items() if not leaf.any()} == {"visual_encoder/position", "decoder/position"}


def test_the_temperature_is_clamped():
  task = build_task(CONFIG.get_config("tiny"))
  for value, clamped in ((-9.0, 0.01), (3.0, 0.5)):
    params = task.constrain_params({"contrast": {"log_temperature": np.float32(value)}})
    np.testing.assert_allclose(np.exp(params["contrast"]["log_temperature"]), clamped, rtol=1e-5)


def test_parameters_are_initialised_sharded():
  config = CONFIG.get_config("tiny")
  task = build_task(config)
  mesh = mesh_of(8, data=2, fsdp=4)
  state, _ = init_state(task, make_optimizer(**config.optimizer, total_steps=4), mesh, jax.random.key(0))
  kernel = state.trainable["visual_encoder"]["blocks"]["mlp"]["up"]["kernel"]
  assert kernel.sharding.shard_shape(kernel.shape) == (2, 32 // 4, 64)
  whole = task.init(jax.random.key(0))[0]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), jax.device_get(state.trainable), whole)


def test_the_paper_preset_traces_and_is_sharded():
  """Without allocation: the loss of the paper-size model is traced, and the sharding rules place every leaf."""
  config = CONFIG.get_config("paper")
  task = build_task(config)
  trainable, frozen = jax.eval_shape(task.init, jax.random.key(0))
  loss, metrics = jax.eval_shape(task.loss, trainable, frozen, task.abstract_batches(48)[0], jax.random.key(0))
  assert loss.shape == () and set(TERMS) <= metrics.keys()
  mesh = mesh_of(8, data=1, fsdp=8)
  placed = sharding.shardings({**trainable, **frozen}, mesh, task.rules)
  leaves = sharding.tree_paths({**trainable, **frozen})
  parts = {
    path: leaf.size / np.prod(place.shard_shape(leaf.shape))
    for (path, leaf), place in zip(leaves, jax.tree.leaves(placed), strict=True)
    if leaf.size > 1_000_000
  }
  whole = parts.pop("speech_encoder/positional_conv/kernel")  # sharding it would cost one collective per step
  assert whole == 1 and parts and min(parts.values()) == 8
  assert 5e12 < task.model_flops(task.abstract_batches(48)[0]) / 48 < 3e13  # per clip of 16 frames
