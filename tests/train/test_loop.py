from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_task import ToyTask, toy_batches

from synclipmae_jax import checkpoints, sharding
from synclipmae_jax.train.loop import NonFiniteLoss, run
from synclipmae_jax.train.optim import make_optimizer
from synclipmae_jax.types import InputError

BATCH = 16
HERE, ROOT = pathlib.Path(__file__).parent, pathlib.Path(__file__).parents[2]


def train(workdir, total_steps, *, task=None, opened=None, poisoned=None, **options):
  settings = {"log_every": 1, "checkpoint_every": 100, "batch_size": BATCH, **options}
  return run(
    task or ToyTask(),
    workdir=workdir,
    train_batches=toy_batches(BATCH, opened=opened, poisoned=poisoned),
    total_steps=total_steps,
    optimizer=make_optimizer(peak_lr=1e-2, warmup_steps=2, total_steps=20),
    mesh=sharding.make_mesh({"fsdp": 1}, jax.devices()[:1]),
    **settings,
  )


def log_of(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir):
  return {line["step"]: line["loss"] for line in log_of(workdir)}


def equal(tree, other):
  for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
    np.testing.assert_array_equal(a, b)


class Score:
  """Its score falls from step to step, and is 0 at last; it records its calls."""

  name = "sync"

  def __init__(self):
    self.calls = []

  def __call__(self, trainable, frozen, *, step, final):
    assert "projection" in frozen and "head" in trainable
    self.calls.append((step, final))
    return {"acc": 0.0 if final else 1.0 / step, "clips": 3}


class Mixed(ToyTask):
  """It also logs the mean index of two kinds of examples, of which one is in a single step, and one in none."""

  def loss(self, trainable, frozen, batch, key):
    loss, metrics = super().loss(trainable, frozen, batch, key)
    index = batch["index"].astype(jnp.float32)
    for name, own in {"rare": index == 20, "all": index >= 0, "none": index < 0}.items():
      metrics[f"place/{name}"] = jnp.stack([(index * own).sum(), own.sum()])
    return loss, metrics


def test_means_over_some_examples_are_logged_over_all_steps_since_the_last_line(tmp_path, capsys):
  train(tmp_path, 4, task=Mixed(), log_every=2)
  places = [{name: value for name, value in line.items() if name.startswith("place/")} for line in log_of(tmp_path)]
  assert places == [{"place/rare": 20.0, "place/all": 15.5}, {"place/all": 47.5}]
  assert "\nall: place 15.5 | rare: place 20\n" in capsys.readouterr().out


def test_four_steps_are_two_and_two_bit_for_bit(tmp_path):
  whole, opened = train(tmp_path / "whole", 4), []
  train(tmp_path / "parts", 2, opened=opened)
  parts = train(tmp_path / "parts", 4, opened=opened)
  assert (parts.step, parts.stopped, opened) == (4, None, [0, 2])
  equal(whole.trainable, parts.trainable)
  assert losses(tmp_path / "whole") == losses(tmp_path / "parts") and len(losses(tmp_path / "parts")) == 4
  optimizer_states = [checkpoints.load_item(tmp_path / part, "opt_state") for part in ("whole", "parts")]
  equal(*optimizer_states)


def test_resuming_goes_back_to_the_newest_whole_checkpoint_and_logs_each_step_once(tmp_path, capsys):
  train(tmp_path, 5, checkpoint_every=2, keep_last=3)
  before, log = losses(tmp_path), tmp_path / "metrics.jsonl"
  with log.open("a") as file:
    file.write('{"step": 6, "lo')  # a process was killed while writing
  next((tmp_path / "checkpoints" / "5" / "head" / "d").iterdir()).unlink()
  train(tmp_path, 6, checkpoint_every=2, keep_last=3)
  after = [line["step"] for line in log_of(tmp_path)]
  assert after == [1, 2, 3, 4, 5, 6] and {step: losses(tmp_path)[step] for step in before} == before
  said = capsys.readouterr().out
  assert "checkpoint 5 is damaged (missing head/d/" in said and "at step 4 of 6" in said


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path):
  with pytest.raises(NonFiniteLoss, match="not finite at step 5 .*loss nan.*last good checkpoint: .*checkpoints/4"):
    train(tmp_path, 20, poisoned=4, checkpoint_every=2, log_every=100)
  assert load_step(tmp_path) == 4
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "4", "frozen"]
  assert train(tmp_path, 6).step == 6  # the workdir resumes with a finite loss


def test_a_loss_that_is_not_finite_right_before_a_save_is_not_saved(tmp_path):
  with pytest.raises(NonFiniteLoss, match="at step 4 .*checkpoints/2"):
    train(tmp_path, 20, poisoned=3, checkpoint_every=2)
  assert load_step(tmp_path) == 2


def load_step(workdir):
  return checkpoints.load_meta(workdir)["step"]


def test_refusals_are_one_sentence_and_precede_compilation(tmp_path, monkeypatch):
  train(tmp_path, 1)
  monkeypatch.setattr("synclipmae_jax.train.loop.make_train_step", lambda *_, **__: pytest.fail("compiled"))
  with pytest.raises(InputError, match="made with another model(.|\n)*head/kernel"):
    train(tmp_path, 2, task=ToyTask(width=8))
  with pytest.raises(InputError, match="batch of 16 examples does not divide"):
    train(tmp_path / "other", 2, accumulation=3)
  assert not (tmp_path / "other").exists()
  with pytest.raises(InputError, match="at step 1 already"):
    train(tmp_path, 0)


def test_a_stream_of_another_batch_size_is_refused(tmp_path):
  with pytest.raises(InputError, match="batches of 16 examples, but batch_size is 32"):
    train(tmp_path, 1, batch_size=32)


def test_evaluations_are_logged_scored_and_keep_the_best(tmp_path):
  score = Score()
  options = {"evaluators": [score], "eval_every": 2, "keep_last": 1, "keep_best": 1}
  options["task"] = ToyTask(best_metric="sync/acc")
  result = train(tmp_path, 5, stamp={"config": {"a": 1}}, **options)
  assert score.calls == [(2, False), (4, False), (5, False), (5, True)]
  assert result.metrics == {"sync/acc": 0.0, "sync/clips": 3}  # of the test data; no checkpoint is chosen by them
  assert [line.get("sync/acc") for line in log_of(tmp_path)] == [None, 0.5, None, 0.25, 0.2]
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "5", "frozen"]
  meta = checkpoints.load_meta(tmp_path)
  assert meta["metrics"] == {"sync/acc": 0.2, "sync/clips": 3} and meta["config"] == {"a": 1}

  # A finished run that is started again takes no step and shows its result again.
  again, opened = Score(), []
  assert train(tmp_path, 5, opened=opened, **{**options, "evaluators": [again]}).metrics == result.metrics
  assert again.calls == [(5, False), (5, True)] and not opened and len(log_of(tmp_path)) == 5


def test_a_signal_interrupts_an_evaluation_and_the_next_run_repeats_it(tmp_path):
  def interrupted(*_, **__):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(30)

  interrupted.name = "sync"
  before = signal.getsignal(signal.SIGINT)
  began = time.monotonic()
  result = train(tmp_path, 4, evaluators=[interrupted], eval_every=2)
  assert (result.step, result.stopped) == (2, "sigint") and time.monotonic() - began < 25 and load_step(tmp_path) == 2
  assert signal.getsignal(signal.SIGINT) is before  # pytest's signal handler is restored
  score = Score()
  assert train(tmp_path, 4, evaluators=[score], eval_every=2).stopped is None
  assert score.calls == [(2, False), (4, False), (4, True)]


def test_starts_from_items_of_other_checkpoints(tmp_path, capsys):
  donor = train(tmp_path / "donor", 2)
  items = {"encoder": tmp_path / "donor", "projection": tmp_path / "donor", "head": None}
  capsys.readouterr()
  seen = {}

  def look(trainable, frozen, *, step):
    seen.setdefault("parameters", (trainable, frozen))
    return {"noise": np.zeros((4, 4, 3), np.uint8)}

  started = train(tmp_path / "new", 0, seed=5, initial_items=items, pictures=look)
  equal(started.trainable["encoder"], donor.trainable["encoder"])
  equal(started.frozen, donor.frozen)
  assert not np.array_equal(started.trainable["head"]["kernel"], donor.trainable["head"]["kernel"])
  assert (tmp_path / "new" / "pictures" / "noise_0000000.png").exists()

  said = capsys.readouterr().out.splitlines()
  assert said[0].startswith("encoder: 592 parameters in 3 leaves from ") and said[1].startswith("projection: 192 ")
  assert said[2:4] == [
    "contrast: freshly initialised (always)",
    "head: freshly initialised (no --config.init.head given)",
  ]
  report = (tmp_path / "new" / "initialisation.json").read_text()
  assert json.loads(report)["projection"]["from"].endswith("donor/checkpoints/frozen")
  shutil.rmtree(tmp_path / "donor")  # no longer needed
  equal(train(tmp_path / "new", 0, seed=5, initial_items=items).trainable, started.trainable)
  assert "its checkpoint takes precedence over the initial encoder, projection" in capsys.readouterr().out
  assert (tmp_path / "new" / "initialisation.json").read_text() == report
  with pytest.raises(InputError, match="no item 'decoder'"):
    train(tmp_path / "third", 1, initial_items={"decoder": tmp_path / "donor"})


def test_other_frozen_parameters_than_those_trained_with_are_refused(tmp_path):
  train(tmp_path, 1)
  other = train(tmp_path / "other", 1, seed=7)
  frozen = tmp_path / "checkpoints" / "frozen"
  frozen.rename(tmp_path / "aside")
  checkpoints.save_items(frozen, other.frozen, {"frozen_sha256": checkpoints.tree_hash(other.frozen)})
  with pytest.raises(InputError, match="frozen parameters are not those"):
    train(tmp_path, 2)


CHILD = textwrap.dedent("""
  import sys
  sys.path[:0] = [{root!r}, {here!r}]
  import jax, time
  from toy_task import ToyTask, toy_batches
  from synclipmae_jax import sharding
  from synclipmae_jax.train.loop import run
  from synclipmae_jax.train.optim import make_optimizer

  def slowly(first_step):
    for batch in toy_batches({batch})(first_step):
      time.sleep({pause})
      yield batch

  result = run(
    ToyTask(), workdir={workdir!r}, train_batches=slowly, batch_size={batch}, total_steps={total},
    optimizer=make_optimizer(peak_lr=1e-2, warmup_steps=2, total_steps=20),
    mesh=sharding.make_mesh({{"fsdp": 1}}, jax.devices()[:1]), log_every=1, checkpoint_every={every}, tensorboard=True,
  )
  assert not any(name.split(".")[0] == "tensorflow" for name in sys.modules), "TensorFlow was imported"
  print("ended", result.step, result.stopped)
""")


def start(workdir, *, total, pause=0.05, every=1000):
  code = CHILD.format(
    root=str(ROOT), here=str(HERE), workdir=str(workdir), batch=BATCH, total=total, pause=pause, every=every
  )
  return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(child, ready, seconds=60):
  end = time.monotonic() + seconds
  while not ready():
    assert child.poll() is None and time.monotonic() < end, child.communicate()
    time.sleep(0.01)


def logged(workdir, steps):
  log = workdir / "metrics.jsonl"
  return lambda: log.exists() and log.read_text().count("\n") >= steps


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_resumes_bit_for_bit(tmp_path, number):
  child = start(tmp_path / "stopped", total=1000)
  wait_for(child, logged(tmp_path / "stopped", 3))
  child.send_signal(number)
  out, err = child.communicate(timeout=60)
  assert child.returncode == 0, err
  step = load_step(tmp_path / "stopped")
  assert f"ended {step} {number.name.lower()}" in out and f"saved step {step}" in out
  assert "run the same command again" in out and 3 <= step < 1000
  resumed = train(tmp_path / "stopped", step + 2)
  whole = train(tmp_path / "whole", step + 2)
  equal(resumed.trainable, whole.trainable)
  assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
  assert list((tmp_path / "stopped" / "tensorboard").iterdir())
