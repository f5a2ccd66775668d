"""tasks/vsr.py, models/recogniser.py and decoding/transcriber.py: a small recogniser learns to read made-up lips."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import pretrain, vsr
from synclipmae_jax import sharding
from synclipmae_jax.decoding.transcriber import Search, Transcriber
from synclipmae_jax.models.recogniser import mask_time
from synclipmae_jax.tasks.vsr import from_config
from synclipmae_jax.train.optim import make_optimizer
from synclipmae_jax.train.state import init_state
from synclipmae_jax.train.step import make_train_step
from synclipmae_jax.types import InputError

WIDTH, SYMBOLS = 12, 6


def config(**changes):
  out = vsr.get_config("tiny").to_dict()
  out["data"] |= dict(token_width=WIDTH, lengths=(20, 30), max_tokens=8)
  out["text"]["characters"] = "abcdef"
  out["model"]["conformer"] |= dict(width=32, depth=1)
  out["model"]["text_decoder"] |= dict(width=32, depth=1)
  for name, value in changes.items():
    group, field = name.split("__")
    out[group][field] = value
  return out


@functools.cache
def task():
  return from_config(config(loss__time_mask=3))


def batch(count=8, frames=20, seed=0):
  """Every token lasts three frames and has its own look, with noise; none is said twice in a row."""
  draw = np.random.default_rng(seed)
  looks = np.random.default_rng(9).normal(size=(SYMBOLS + 1, WIDTH))
  looks[0] = 0
  text = np.zeros((count, 8), np.int32)
  text_length = draw.integers(2, 7, count).astype(np.int32)
  tokens = 0.3 * draw.normal(size=(count, frames, WIDTH))
  for row, length in enumerate(text_length):
    text[row, :length] = 1 + np.cumsum(draw.integers(1, SYMBOLS, length)) % SYMBOLS
    spoken = np.concatenate([[0], np.repeat(text[row, :length], 3)])
    tokens[row, : len(spoken)] += looks[spoken]
  return {
    "tokens": tokens.astype(np.float16),
    "length": np.minimum(3 * text_length + 2, frames).astype(np.int32),
    "text": text,
    "text_length": text_length,
    "index": np.arange(count, dtype=np.uint32),
  }


@functools.cache
def trained():
  """Parameters after some steps on 32 examples, without dropout and masks."""
  learner = from_config(config(loss__time_mask=0, loss__dropout=0.0))
  params, _ = learner.init(jax.random.key(0))
  optimizer, examples = optax.adam(5e-3), jax.tree.map(jnp.asarray, batch(32))

  @jax.jit
  def train(params):
    def step(carry, _):
      params, state = carry
      gradient = jax.grad(lambda p: learner.loss(p, {}, examples, jax.random.key(1))[0])(params)
      updates, state = optimizer.update(gradient, state)
      return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), None, length=200)[0][0]

  return train(params)


def test_what_was_learned_is_read_by_every_search():
  examples = batch(32)
  clips = [tokens[:length] for tokens, length in zip(examples["tokens"], examples["length"], strict=True)]
  texts = [tuple(text[:count]) for text, count in zip(examples["text"], examples["text_length"], strict=True)]
  shares = {}
  for mode in ("joint", "ctc", "attention", "greedy"):
    search = Search(mode=mode, beam=3, n_best=1 if mode == "greedy" else 2)
    read = Transcriber(task().recogniser, lengths=(20,), max_tokens=8, search=search, batch=32)
    transcripts = list(read(trained(), clips))
    shares[mode] = np.mean([one.tokens == text for one, text in zip(transcripts, texts, strict=True)])
    assert all(len(one.log_probs) == len(clip) for one, clip in zip(transcripts, clips, strict=True))
    assert all(list(one.scores) == sorted(one.scores, reverse=True) for one in transcripts)
  print(shares)
  assert min(shares["joint"], shares["ctc"], shares["greedy"]) >= 0.9
  assert shares["joint"] >= shares["attention"] > 0.1  # one text in 6 ** 4 is right by chance


def test_the_loss_belongs_to_examples_and_reaches_every_parameter():
  params, frozen = task().init(jax.random.key(0))
  examples = batch()
  value = jax.jit(jax.value_and_grad(lambda p, b: task().loss(p, frozen, b, jax.random.key(3)), has_aux=True))
  (loss, metrics), gradient = value(params, examples)
  assert np.isfinite(loss) and metrics["unalignable"] == 0
  silent = {path for path, leaf in sharding.tree_paths(gradient) if not np.any(leaf)}
  assert not silent and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
  (again, _), _ = value(params, {name: x[::-1] for name, x in examples.items()})
  assert again == pytest.approx(float(loss), rel=1e-5)
  half = {**examples, "text_length": np.where(np.arange(8) < 4, examples["text_length"], 0).astype(np.int32)}
  first = {name: np.concatenate([x[:4], x[:4]]) for name, x in examples.items()}
  assert value(params, half)[0][0] == pytest.approx(float(value(params, first)[0][0]), rel=1e-5)


def test_one_device_and_eight_take_the_same_step():
  optimizer = make_optimizer(peak_lr=1e-2, warmup_steps=1, total_steps=9)
  results = []
  for axes in ({"data": 1}, {"data": 2, "fsdp": 4}):
    mesh = sharding.make_mesh(axes, jax.devices()[: int(np.prod(list(axes.values())))])
    state, frozen = init_state(task(), optimizer, mesh, jax.random.key(0))
    step = make_train_step(task(), optimizer, mesh=mesh)
    state, metrics = step(state, frozen, sharding.to_global(batch(), mesh), jax.random.key(1))
    results.append((jax.device_get(state.trainable), float(metrics["loss"]), float(metrics["grad_norm"])))
  (one, loss, norm), (eight, other_loss, other_norm) = results
  assert other_loss == pytest.approx(loss, rel=1e-5) and other_norm == pytest.approx(norm, rel=1e-3)
  # The first step of Adam is the sign of the gradient: where that is near 0 rounding decides.
  same = [np.isclose(a, b, atol=1e-5) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True)]
  assert np.mean(np.concatenate([x.ravel() for x in same])) > 0.99


def test_shapes_and_flops_are_known_without_data():
  shapes = task().abstract_batches(4)
  assert [shape["tokens"].shape for shape in shapes] == [(4, 20, WIDTH), (4, 30, WIDTH)]
  real = batch(4)
  assert {name: (x.shape, x.dtype) for name, x in real.items()} == {
    name: (x.shape, np.dtype(x.dtype)) for name, x in shapes[0].items()
  }
  assert task().count_items(shapes[1]) == 120
  assert task().model_flops(shapes[1]) > 1.4 * task().model_flops(shapes[0]) > 0


def test_the_encoder_learns_too_end_to_end():
  pretraining = pretrain.get_config("tiny").to_dict()
  changes = config(model__visual=pretraining["model"])
  changes["data"] |= {name: pretraining["data"][name] for name in ("image_size", "clip_frames", "audio_frames")}
  joint = from_config(changes)
  shape = joint.abstract_batches(2)[0]
  trainable, frozen = jax.eval_shape(joint.init, jax.random.key(0))
  assert "visual_encoder" in trainable and not frozen
  gradient, _ = jax.eval_shape(jax.grad(joint.loss, has_aux=True), trainable, frozen, shape, jax.random.key(0))
  assert jax.tree.structure(gradient) == jax.tree.structure(trainable)
  assert joint.model_flops(shape) > task().model_flops(task().abstract_batches(2)[0])
  assert joint.count_items(shape) == 40


def test_time_masks_are_short_and_within_the_clip():
  tokens, lengths = jnp.ones((64, 60, 2)), jnp.full(64, 55)
  keys = jax.random.split(jax.random.key(0), 64)
  masked = np.asarray(mask_time(tokens, lengths, keys, longest=10))[..., 0] == 0
  assert masked.any() and not masked[:, 55:].any()
  assert masked.sum(axis=1).max() <= 3 * 9  # three seconds begun
  short = np.asarray(mask_time(tokens, jnp.full(64, 20), keys, longest=10))[..., 0] == 0
  assert 0 < short.sum(axis=1).max() <= 9 and not short[:, 20:].any()
  assert not (np.asarray(mask_time(tokens, lengths, keys, longest=1)) == 0).any()


def test_wrong_values_are_refused():
  for name, value in (("loss__ctc_weight", 1.5), ("loss__smoothing", 1.0), ("loss__dropout", -0.1)):
    with pytest.raises(InputError, match="ctc_weight lies in"):
      from_config(config(**{name: value}))
  uneven = config()
  uneven["model"]["text_decoder"]["width"] = 16
  with pytest.raises(InputError, match="one width, not 32 and 16"):
    from_config(uneven)
  with pytest.raises(InputError, match="unknown search 'best'"):
    Search(mode="best")
  with pytest.raises(InputError, match="n_best <= beam"):
    Search(beam=2, n_best=3)
  read = Transcriber(task().recogniser, lengths=(10,), max_tokens=4, search=Search())
  with pytest.raises(InputError, match="12 frames is longer than the 10"):
    read({}, [np.zeros((12, WIDTH), np.float32)])


def test_labels_of_frames_add_to_the_loss():
  learner = from_config(config(loss__time_mask=0, loss__dropout=0.0, loss__frame_weight=0.5))
  assert learner.abstract_batches(4)[0]["frame_labels"].shape == (4, 20)
  params, _ = learner.init(jax.random.key(0))
  none = np.full((8, 20), -1, np.int32)
  labels = np.where(np.arange(20) < 3, 1, none)
  run = jax.jit(lambda params, batch: learner.loss(params, {}, batch, jax.random.key(0)))
  without, _ = run(params, batch() | {"frame_labels": none})
  loss, metrics = run(params, batch() | {"frame_labels": labels})
  assert float(loss) == pytest.approx(float(without + 0.5 * learner.ctc_weight * metrics["framewise"]), rel=1e-5)
  with pytest.raises(InputError, match=r"loss\.frame_weight"):
    from_config(config(loss__frame_weight=-1.0))
