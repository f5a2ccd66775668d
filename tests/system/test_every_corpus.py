"""From the raw files of every corpus, in its true layout, to one training step."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from footage import clicks, numbered, write_video
from trees import MAKERS

from synclipmae_jax import sharding
from synclipmae_jax.data import corpora
from synclipmae_jax.data.pipeline import Source, train_batches
from synclipmae_jax.data.prepare import prepare
from synclipmae_jax.run.jobs import training_job_of
from synclipmae_jax.run.training import build_training
from synclipmae_jax.train.state import init_state
from synclipmae_jax.train.step import make_train_step

SPEC = importlib.util.spec_from_file_location("pretrain", Path(__file__).parents[2] / "configs" / "pretrain.py")
CONFIG = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(CONFIG)


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
  """Two seconds, of which every corpus gets a copy in each split."""
  path = tmp_path_factory.mktemp("footage") / "a.mp4"
  return write_video(path, map(numbered, range(50)), sound=clicks(2, [], noise=0.1)).read_bytes()


@pytest.fixture(scope="module")
def first_step():
  """The metrics of the first step on the records of a folder, and how much it moves the parameters."""
  config = CONFIG.get_config("tiny")
  training = build_training(training_job_of(config), config, jax.devices()[:1])
  state, frozen = init_state(training.task, training.optimizer, training.mesh, jax.random.key(0))
  step = make_train_step(training.task, training.optimizer, mesh=training.mesh)

  def run(out):
    stream = train_batches(
      [Source(directory=out)], seed=0, batch_size=training.batch_size, clip_frames=config.data.clip_frames,
      audio_context_frames=config.data.audio_frames, image_size=config.data.image_size,
    )  # fmt: skip
    batch = sharding.to_global(next(stream), training.mesh)
    after, metrics = step(jax.tree.map(jnp.copy, state), frozen, batch, jax.random.key(1))
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after.trainable, state.trainable)
    return jax.device_get(metrics), max(jax.tree.leaves(moved))

  return run


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_a_corpus_goes_from_raw_files_to_a_training_step(name, tmp_path, footage, first_step):
  raw = MAKERS[name](tmp_path / "raw")
  items = {item.split: item for item in corpora.load("auto")(raw) if item.path.exists()}
  items["train"].path.write_bytes(footage)
  manifest = prepare(raw, tmp_path / "out", faces="full_frame", size=32, progress=False)
  (accepted,) = (entry for entry in manifest.entries if entry["outcome"] == "accepted")
  assert (accepted["corpus"], accepted["file"]) == (name, items["train"].key)
  metrics, moved = first_step(tmp_path / "out")
  assert metrics["finite"] and np.isfinite(metrics["loss"]) and metrics["loss"] > 0 and moved > 0
