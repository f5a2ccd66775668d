"""The training of SyncNet on clips in which the brightness of the picture follows the loudness."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from synclipmae_jax.losses import contrast
from synclipmae_jax.tasks.syncnet import SyncNetTask
from synclipmae_jax.types import AUDIO_MARGIN, EvalClip, InputError

SPEC = importlib.util.spec_from_file_location("syncnet", Path(__file__).parents[2] / "configs" / "syncnet.py")
CONFIG = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(CONFIG)
STEPS = 20


def model_flops(task, clips):
  return task.model_flops(task.abstract_batches(clips)[0])


def task_of(config, **changes):
  data = {"frame_size": config.data.image_size, **{n: config.data[n] for n in ("clip_frames", "audio_frames")}}
  return SyncNetTask(**{**config.model, **config.loss, **data, **changes})


def sequences(task, clips=8, seed=0):
  """Clips of `audio_frames` frames of noise, in which brightness and loudness have the same level."""
  random = np.random.default_rng(seed)
  found = []
  for i in range(clips):
    frames, size = task.audio_frames, task.frame_size
    level = random.uniform(size=frames)
    pictures = 40 + (160 * level)[:, None, None, None] + random.normal(0, 15, (frames, size, size, 3))
    sound = np.repeat(10 ** (2 * level - 3), 640) * random.standard_normal(640 * frames)
    boxes = np.zeros((frames, 4), np.float32)
    found.append(
      EvalClip(
        key=str(i), corpus="noise", identity="0", frames=pictures.clip(0, 255).astype(np.uint8),
        waveform=sound.astype(np.float32), face_box=boxes, mouth_box=boxes - 1, lag=0, truth=None,
      )
    )  # fmt: skip
  return found


def a_batch(task, clips):
  """The middle frames of the clips, with all of their sound."""
  lead = (task.audio_frames - task.clip_frames) // 2
  middle = slice(lead, lead + task.clip_frames)
  names = ("frames", "face_box", "mouth_box")
  batch = {name: np.stack([getattr(clip, name)[middle] for clip in clips]) for name in names}
  batch["waveform"] = np.stack([np.pad(clip.waveform, AUDIO_MARGIN) for clip in clips])
  batch["index"] = np.arange(len(clips), dtype=np.uint32)
  wanted = task.abstract_batches(len(clips))[0]
  assert all((value.shape, value.dtype) == (wanted[name].shape, wanted[name].dtype) for name, value in batch.items())
  return batch


@pytest.fixture(scope="module")
def trained():
  """(task, clips, parameters, losses) after `STEPS` steps of the preset `tiny` on one batch."""
  task = task_of(CONFIG.get_config("tiny"))
  clips = sequences(task)
  batch = jax.tree.map(jnp.asarray, a_batch(task, clips))
  params, frozen = task.init(jax.random.key(0))
  assert not frozen
  optimizer = optax.adam(1e-2)
  opt_state = optimizer.init(params)

  @jax.jit
  def step(params, opt_state):
    (loss, _), grads = jax.value_and_grad(task.loss, has_aux=True)(params, {}, batch, jax.random.key(0))
    updates, opt_state = optimizer.update(grads, opt_state)
    return task.constrain_params(optax.apply_updates(params, updates)), opt_state, loss

  found = []
  for _ in range(STEPS + 1):
    last = params
    params, opt_state, loss = step(params, opt_state)
    found.append(float(loss))
  return task, clips, jax.device_get(last), found  # the last loss belongs to these parameters


def test_the_loss_falls(trained):
  task, _, params, found = trained
  assert found[-1] < 0.5 * np.log(4 * 4) < found[0]  # chance: 4 clips of 4 windows
  low, high = task.temperature_range
  assert low <= np.exp(params["contrast"]["log_temperature"]) <= high
  assert not params["syncnet"]["lips"]["norm_0"]["mean"].any()  # neither trained nor averaged


def test_tokens_need_measured_statistics(trained):
  task, clips, params, _ = trained
  with pytest.raises(InputError, match="not been measured"):
    task.tokens(params).embed(clips[0])
  with pytest.raises(InputError, match="without a training batch"):
    task.calibrate(params, [])


def test_tokens_have_the_loss_of_training(trained):
  """With statistics of the batch, the tokens of whole clips at the frames of the batch have the loss of the batch."""
  task, clips, params, found = trained
  batch = a_batch(task, clips)
  calibrated = task.calibrate(params, [batch, batch])
  model = task.tokens(calibrated)
  assert (model.name, model.context_frames, model.similarity) == ("SyncNet", 5, "cosine")
  first = (task.audio_frames - task.clip_frames) // 2 + 2  # the middle of the first window
  tokens = [task.tokens(calibrated).embed(clip) for clip in clips]
  assert all(audio.shape == lips.shape == (task.audio_frames, 16) for audio, lips in tokens)
  audio, lips = (jnp.stack([pair[i][first : first + 4] for pair in tokens]) for i in range(2))
  temperature = jnp.exp(params["contrast"]["log_temperature"])
  assert float(contrast(audio, lips, temperature=temperature, group=4).loss) == pytest.approx(found[-1], rel=0.02)
  shifted = jnp.stack([pair[1][first + 1 : first + 5] for pair in tokens])
  assert float(contrast(audio, shifted, temperature=temperature, group=4).loss) > 2 * found[-1]


def test_flops_are_counted_from_the_shapes():
  """A step of the preset `demo`: its two most expensive layers by hand, and the total."""
  task = task_of(CONFIG.get_config("demo"))
  tokens = 16 * 12
  first = 2 * 29 * 29 * 5 * 7 * 7 * 3 * 24
  third_of_sound = 2 * 11 * 9 * 9 * 48 * 96
  assert 3 * tokens * (first + third_of_sound) < model_flops(task, 16) == pytest.approx(37.6e9, rel=5e-3)
  assert model_flops(task, 32) == 2 * model_flops(task, 16)
  released = task_of(CONFIG.get_config("demo"), image_size=224, scale=1.0, width=1024)
  assert model_flops(released, 16) == pytest.approx(3 * tokens * 3.604e9, rel=1e-3)


@pytest.mark.parametrize(
  "wrong", [dict(clip_frames=4), dict(audio_frames=9), dict(temperature_init=2.0), dict(image_size=50)]
)
def test_invalid_sizes_are_refused(wrong):
  with pytest.raises(InputError):
    task_of(CONFIG.get_config("tiny"), **wrong)
