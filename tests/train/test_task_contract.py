"""The task contract of the loop, tested with a task without clips, pairs or groups."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
from features_task import BUCKETS, FEATURES, FeaturesTask, feature_batches

from synclipmae_jax import checkpoints, sharding
from synclipmae_jax.run import ahead_of_time
from synclipmae_jax.run.training import Training
from synclipmae_jax.train.loop import run
from synclipmae_jax.train.optim import make_optimizer
from synclipmae_jax.types import InputError


def optimizer():
  return make_optimizer(peak_lr=1e-2, warmup_steps=2, total_steps=20)


def train(workdir, steps, *, batch_size=15, devices=1, **options):
  return run(
    FeaturesTask(),
    workdir=workdir,
    train_batches=feature_batches(batch_size),
    batch_size=batch_size,
    total_steps=steps,
    optimizer=optimizer(),
    mesh=sharding.make_mesh({"data": devices}, jax.devices()[:devices]),
    log_every=1,
    **options,
  )


def log_of(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def close(tree, other):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), tree, other)


def equal(tree, other):
  jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_an_odd_batch_of_two_lengths_trains_and_resumes_bit_for_bit(tmp_path):
  whole = train(tmp_path / "whole", 5)
  train(tmp_path / "parts", 2, checkpoint_every=1)
  parts = train(tmp_path / "parts", 5)
  equal(whole.trainable, parts.trainable)
  equal(whole.frozen, parts.frozen)
  losses = [[line["loss"] for line in log_of(tmp_path / name)] for name in ("whole", "parts")]
  assert losses[0] == losses[1] and len(losses[0]) == 5


def test_the_log_counts_what_the_task_counts(tmp_path, capsys):
  train(tmp_path, 3)
  last = log_of(tmp_path)[-1]
  np.testing.assert_allclose(last["labels_per_second"] * last["step_seconds"], 15)
  assert "labels/s" in capsys.readouterr().out


def test_eight_devices_and_accumulation_agree_with_one(tmp_path):
  one = train(tmp_path / "one", 4, batch_size=24)
  close(one.trainable, train(tmp_path / "eight", 4, batch_size=24, devices=8).trainable)
  close(one.trainable, train(tmp_path / "accumulated", 4, batch_size=24, accumulation=3).trainable)
  close(one.trainable, train(tmp_path / "both", 4, batch_size=24, devices=4, accumulation=2).trainable)


def test_every_bucket_is_compiled_ahead_of_time():
  training = Training(
    task=FeaturesTask(),
    mesh=sharding.make_mesh({"data": 8}, jax.devices()[:8]),
    optimizer=optimizer(),
    batch_size=16,
    accumulation=1,
  )
  lowered = ahead_of_time.lower_steps(training)
  assert [batch["features"].shape[1] for batch, _ in lowered] == list(BUCKETS)
  flops = [FeaturesTask().model_flops(batch) for batch, _ in lowered]
  assert flops[1] - flops[0] == 2 * 16 * (BUCKETS[1] - BUCKETS[0]) * FEATURES**2
  for batch, step in lowered:
    assert f"tensor<16x{batch['features'].shape[1]}x{FEATURES}xf32>" in step.as_text()
    step.compile()


def test_the_best_checkpoint_is_kept_by_the_metric_of_the_task(tmp_path):
  class Probe:
    name = "probe"

    def __call__(self, trainable, frozen, *, step, final):
      return {"accuracy": {1: 0.5, 2: 0.9, 3: 0.1, 4: 0.2}[step]}

  train(tmp_path, 4, evaluators=[Probe()], eval_every=1, keep_last=1, keep_best=1)
  kept = [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdecimal()]
  assert sorted(kept) == ["2", "4"]


@pytest.fixture
def table(tmp_path):
  """A checkpoint of the frozen part, with its configuration and preprocessing."""
  kernel = np.random.default_rng(0).normal(size=(FEATURES, FEATURES)).astype(np.float32)
  meta = {"config": {"model": {"width": FEATURES}}, "preprocessing": {"fps": 25}, "unrelated": 1}
  checkpoints.save_items(tmp_path / "table", {"table": {"kernel": kernel}}, meta)
  return tmp_path / "table"


def test_frozen_items_carry_their_own_configuration_and_preprocessing(tmp_path, table):
  train(tmp_path / "run", 1, initial_items={"table": table})
  train(tmp_path / "run", 2)
  said = checkpoints.load_meta(tmp_path / "run")["frozen"]["table"]
  assert said == {"config": {"model": {"width": FEATURES}}, "preprocessing": {"fps": 25}}
  assert (tmp_path / "run" / "checkpoints" / "frozen" / "table").is_dir()


def test_a_frozen_item_by_reference_is_not_copied(tmp_path, table):
  options = {"initial_items": {"table": table}, "checkpoint_every": 1}
  whole = train(tmp_path / "copied", 4, **options)
  options["frozen_by_reference"] = ["table"]
  train(tmp_path / "run", 2, **options)
  assert not (tmp_path / "run" / "checkpoints" / "frozen").exists()
  resumed = train(tmp_path / "run", 4)  # found through the metadata of the checkpoint
  equal(whole.trainable, resumed.trainable)
  equal(checkpoints.load_item(tmp_path / "run", "table"), checkpoints.load_item(table, "table"))
  assert checkpoints.list_items(tmp_path / "run") == ["head", "opt_state", "table"]

  table.rename(tmp_path / "moved")
  with pytest.raises(InputError, match="kept by reference, but .*table does not exist"):
    train(tmp_path / "run", 5)
  with pytest.raises(InputError, match="kept by reference"):
    checkpoints.load_item(tmp_path / "run", "table")
  train(tmp_path / "run", 5, initial_items={"table": tmp_path / "moved"})

  shutil.rmtree(tmp_path / "moved")
  other = {"table": {"kernel": np.zeros((FEATURES, FEATURES), np.float32)}}
  checkpoints.save_items(tmp_path / "moved", other, {})
  with pytest.raises(InputError, match="holds other parameters"):
    train(tmp_path / "run", 6, initial_items={"table": tmp_path / "moved"})


def test_only_items_from_a_checkpoint_can_be_kept_by_reference(tmp_path):
  with pytest.raises(InputError, match="kept by reference, not table"):
    train(tmp_path, 1, frozen_by_reference=["table"])


def test_a_task_inherits_the_defaults():
  task = FeaturesTask()
  assert (task.group, task.examples_per_record) == (1, 1)
  [batch, _] = task.abstract_batches(7)
  assert task.count_items(batch) == 7 and task.constrain_params({"a": 1}) == {"a": 1}
