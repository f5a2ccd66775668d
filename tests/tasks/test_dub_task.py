"""tasks/dub.py: what the loss counts, what learns, and what the step sees."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import dub
from synclipmae_jax import sharding
from synclipmae_jax.run import ahead_of_time
from synclipmae_jax.run.training import Training
from synclipmae_jax.tasks.dub import from_config
from synclipmae_jax.train.optim import make_optimizer
from synclipmae_jax.types import InputError

TOKEN = 6


def config(**changes):
  out = dub.get_config("tiny").to_dict()
  out["data"] |= dict(token_width=TOKEN, image_size=16)
  out["model"]["predicts"] = "velocity"
  out["loss"] |= dict(drops=dict(history=0.0, text=0.0, control=0.0))
  for name, value in changes.items():
    group, field = name.split("__")
    out[group][field] = value
  return out


@functools.cache
def task(**changes):
  return from_config(config(**changes))


def batch(count=2, seed=0, **changes):
  rng = np.random.default_rng(seed)
  found = {}
  for name, shape in task().abstract_batches(count)[0].items():
    match np.dtype(shape.dtype).kind:
      case "b":
        found[name] = rng.random(shape.shape) < 0.5
      case "u":
        found[name] = np.arange(count, dtype=np.uint32)
      case _:
        found[name] = rng.standard_normal(shape.shape).astype(shape.dtype)
  return found | changes


def drawn(learner, seed=3):
  """All parameters random: at the first step no control passes the zero-initialised layers."""
  rng = np.random.default_rng(seed)
  draw = lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape) / 5, leaf.dtype)
  return jax.tree.map(draw, jax.eval_shape(learner.init, jax.random.key(0)))


@functools.cache
def compiled(learner):
  return jax.jit(learner.loss)


def loss(learner, params, examples, seed=0):
  return float(compiled(learner)(*params, examples, jax.random.key(seed))[0])


def test_the_backbone_is_frozen_and_all_else_learns():
  two = {**config()["model"]["dit"], "text_length": 2}  # over one token alone attention has no gradient
  learner = from_config(config(model__frozen_backbone=True, model__dit=two))
  trainable, frozen = params = drawn(learner)
  assert trainable.keys() == {"vace", "audio_pack"} and frozen.keys() == {"dit"}
  step = jax.jit(jax.value_and_grad(learner.loss, has_aux=True))
  (total, metrics), gradient = step(*params, batch(8), jax.random.key(0))
  assert np.isfinite(total) and gradient.keys() == trainable.keys()
  silent = [path for path, leaf in sharding.tree_paths(gradient) if not np.any(leaf)]
  assert not silent
  assert metrics["error_by_audio"][1] + metrics["error_by_video"][1] == 8 and metrics["error_undriven"][1] == 0
  joint = task()
  assert jax.eval_shape(joint.init, jax.random.key(0))[1] == {}
  shapes = batch(1)
  assert joint.model_flops(shapes) > learner.model_flops(shapes) > 0


def test_the_loss_belongs_to_examples():
  params, examples = drawn(task()), batch(4)
  whole = loss(task(), params, examples)
  turned = loss(task(), params, {name: x[::-1] for name, x in examples.items()})
  assert turned == pytest.approx(whole, rel=1e-5)
  halves = [loss(task(), params, {name: x[rows] for name, x in examples.items()}) for rows in (slice(2), slice(2, 4))]
  assert np.mean(halves) == pytest.approx(whole, rel=1e-5)


def test_only_the_tokens_of_the_drive_that_was_drawn_matter():
  params, examples = drawn(task()), batch(1)
  other = batch(1, seed=9)
  drives = set()
  for seed in range(12):
    base = loss(task(), params, examples, seed)
    changed = {name: loss(task(), params, examples | {name: other[name]}, seed) != base for name in ("audio", "video")}
    assert sum(changed.values()) == 1
    drives |= {name for name in changed if changed[name]}
  assert drives == {"audio", "video"}


def test_what_is_dropped_is_not_seen():
  """With probabilities near 1 nothing of the history, the text or the control reaches the loss."""
  params, examples, other = drawn(task()), batch(2), batch(2, seed=9)
  never, always = task(), from_config(config(loss__drops=dict.fromkeys(("history", "text", "control"), 1 - 1e-6)))
  kept, dropped = (loss(learner, params, examples) for learner in (never, always))
  for changed in (
    {"audio": other["audio"], "video": other["video"]},
    {"text": other["text"]},
    {"references": np.stack([examples["references"][:, 0], other["references"][:, 1]], axis=1)},
  ):
    assert loss(never, params, examples | changed) != kept
    assert loss(always, params, examples | changed) == dropped
  identity = np.stack([other["references"][:, 0], examples["references"][:, 1]], axis=1)
  assert loss(always, params, examples | {"references": identity}) != dropped


@pytest.mark.slow
def test_the_model_learns_to_follow_its_tokens():
  """Bright and dark latent frames in random order, which only the tokens tell.

  As in a released VACE, the projections to and from its blocks are not zero; the AudioPack's is.
  """
  grid = dict(shift=100.0, weights="none")  # mostly noise, in which nothing else is to be seen
  loss_of = {**config()["loss"], **grid}
  learner = from_config({**config(data__image_size=8, model__predicts="clean"), "loss": loss_of})
  zeros = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in learner.abstract_batches(16)[0].items()}

  def examples(key):
    signs = jax.random.rademacher(key, (16, 5), jnp.float32)
    tokens = jnp.concatenate([signs[:, :1], jnp.repeat(signs[:, 1:], 4, axis=1)], axis=1)[..., None] * jnp.ones(TOKEN)
    index = jax.random.bits(key, (16,), jnp.uint32)
    target = jnp.broadcast_to(signs[:, :, None, None, None], zeros["target"].shape)
    return {**zeros, "target": target, "audio": tokens, "video": tokens, "index": index}

  optimizer = optax.adam(5e-3)

  @jax.jit
  def train(params):
    def step(carry, key):
      params, state = carry
      (_, metrics), gradient = jax.value_and_grad(learner.loss, has_aux=True)(params, {}, examples(key), key)
      updates, state = optimizer.update(gradient, state)
      return (optax.apply_updates(params, updates), state), metrics["loss"]

    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(jax.random.key(1), 500))
    return params, losses

  start, _ = learner.init(jax.random.key(0))
  random = drawn(learner)[0]["vace"]
  start["vace"]["before_projection"] = random["before_projection"]
  start["vace"]["blocks"]["after_projection"] = random["blocks"]["after_projection"]
  params, losses = train(start)
  assert losses[-30:].mean() < losses[:30].mean() / 2
  test = examples(jax.random.key(7))
  right = loss(learner, (params, {}), test)
  wrong = loss(learner, (params, {}), test | {name: -test[name] for name in ("audio", "video")})
  print(f"loss {losses[0]:.2f} -> {right:.3f}, with the opposite tokens {wrong:.3f}")
  assert right < wrong / 3


def test_references_count_in_the_loss_only_if_they_shall():
  params, examples = drawn(task()), batch(2)
  without = from_config(config(loss__on_references=False))
  frames = lambda learner: jax.eval_shape(lambda: learner.inputs(examples, history=jnp.ones(2, bool)))[0].shape[1]
  assert frames(without) == 7  # two references and five latent frames
  assert loss(without, params, examples) != loss(task(), params, examples)


def test_outside_of_the_mask_less_counts():
  params, everywhere = drawn(task()), np.ones((2, 16, 16), bool)
  half = everywhere.copy()
  half[:, :8] = False
  masked = lambda mask, **changes: loss(task(**changes), params, batch(2, mask=mask))
  assert masked(everywhere, loss__outside=0.2) == pytest.approx(masked(everywhere), rel=1e-5)
  assert masked(half, loss__outside=0.2) != pytest.approx(masked(half), rel=1e-3)
  with pytest.raises(InputError, match="outside"):
    task(loss__outside=1.5)


def test_the_step_is_compiled_ahead_of_time_on_eight_devices():
  training = Training(
    task=task(model__frozen_backbone=True),
    mesh=sharding.make_mesh({"data": 2, "fsdp": 4}, jax.devices()[:8]),
    optimizer=make_optimizer(peak_lr=1e-3, warmup_steps=1, total_steps=2),
    batch_size=8,
    accumulation=1,
  )
  [(shapes, lowered)] = ahead_of_time.lower_steps(training)
  assert shapes["target"].shape == (8, 5, 4, 4, 192)
  lowered.compile()


def test_the_paper_has_its_sizes():
  learner = from_config(dub.get_config("paper").to_dict())
  trainable, frozen = jax.eval_shape(learner.init, jax.random.key(0))
  count = lambda tree: sum(np.prod(leaf.shape, dtype=np.int64) for leaf in jax.tree.leaves(tree))
  assert count(trainable["vace"]) == 734_383_872 + 591_360
  assert count(trainable["vace"]) + count(frozen["dit"]) == 2_153_972_032
  [shapes] = learner.abstract_batches(1)
  assert shapes["target"].shape == (1, 5, 64, 64, 16) and shapes["audio"].shape == (1, 17, 1024)


def test_sizes_that_do_not_fit_are_refused():
  for changes, why in (
    (dict(data__image_size=20), "multiple of 8 pixels"),
    (dict(data__segment_frames=18), "segments 1"),
    (dict(loss__drops=dict(history=1.0, text=0.0, control=0.0)), "probabilities"),
    (dict(loss__weights="sum"), "the weights are"),
    (dict(model__predicts="noise"), "velocity or clean"),
    (dict(model__autoencoder=dict(kind="jpeg")), "unknown autoencoder"),
  ):
    with pytest.raises(InputError, match=why):
      from_config(config(**changes))
