"""The whole model: dependencies of its outputs, equality of training and inference, and every ablation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synclipmae_jax.models import masking
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.layers import EncoderBlock, scan_blocks, stack_blocks
from synclipmae_jax.models.position import sincos_position
from synclipmae_jax.models.synclipmae import EMBED_VISIBLE, VIEWS, SyncLipMAEModel
from synclipmae_jax.types import InputError, audio_context_samples

SIZES = dict(
  visual_encoder=dict(image_size=32, patch=8, width=32, depth=2, heads=2, mlp_width=64),
  decoder=dict(width=16, depth=2, heads=2, mlp_width=32),
  speech_encoder=dict(kind="log_mel", log_mel=dict(bands=8)),
  audio_adapter=dict(layers="all"),
  clip_frames=8,
  audio_frames=16,
  decode_frames=4,
  mask_ratio=0.75,
  face_weight=6.0,
  mouth_weight=12.0,
  views="two_bypass",
  jitter=dict(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, probability=0.8),
  shuffle_probability=0.5,
  embed_visible="all",
)


def make_batch(clips=4, seed=0):
  random = np.random.default_rng(seed)
  return {
    "frames": random.integers(0, 256, (clips, 8, 32, 32, 3)).astype(np.uint8),
    "waveform": random.normal(0, 0.1, (clips, audio_context_samples(16))).astype(np.float32),
    "face_box": np.broadcast_to(np.float32([0.1, 0.1, 0.9, 0.9]), (clips, 8, 4)),
    "mouth_box": np.full((clips, 8, 4), -1, np.float32),
    "index": np.arange(clips, dtype=np.uint32),
  }


@pytest.fixture(scope="module")
def model():
  return SyncLipMAEModel(**SIZES)


@pytest.fixture(scope="module")
def params(model):
  return model.init(jax.random.key(0))


@pytest.fixture(scope="module")
def apply(model):
  return jax.jit(model.apply)


@pytest.fixture(scope="module")
def outputs(apply, params):
  return apply(*params, make_batch(), jax.random.key(1))


def test_shapes(outputs):
  assert outputs.identity.shape == (4, 4, 32) and outputs.vocal.shape == outputs.audio.shape == (4, 8, 32)
  assert outputs.predicted.shape == (4, 4, 2, 16, 192) and outputs.target.shape == (4, 4, 16, 192)
  np.testing.assert_array_equal(outputs.masked.sum(-1), 12)
  assert np.all(np.diff(outputs.decoded, axis=1) > 0)


def test_a_pure_function_of_key_and_index(apply, params, outputs):
  again = apply(*params, make_batch(), jax.random.key(1))
  for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(outputs), strict=True):
    np.testing.assert_array_equal(ours, theirs)
  other = apply(*params, make_batch(), jax.random.key(2))
  assert np.any(other.masked != outputs.masked)
  moved = make_batch()
  moved = {name: np.concatenate([value[2:], value[:2]]) for name, value in moved.items()}
  rolled = apply(*params, moved, jax.random.key(1))
  np.testing.assert_allclose(rolled.predicted[:2], outputs.predicted[2:], rtol=1e-4, atol=1e-5)


def test_target_is_the_unjittered_frame(outputs):
  frames = make_batch()["frames"]
  frame = frames[1, int(outputs.decoded[1, 2])] / 255
  want = (frame - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  np.testing.assert_allclose(outputs.target[1, 2, 5].reshape(8, 8, 3), want[8:16, 8:16], atol=1e-5)


def test_motion_view_is_jittered(outputs):
  moved = np.any(outputs.motion_view != 0, axis=-1)
  np.testing.assert_array_equal(moved.sum(-1), 4)
  assert np.abs(np.asarray(outputs.motion_view - outputs.target)[moved]).max() > 0.05


def test_the_passes_differ_by_their_conditioning_token_only(model, apply, params, outputs):
  """With the vocal token instead of the audio token both passes give the same picture."""
  assert np.abs(np.asarray(outputs.predicted[:, :, 0] - outputs.predicted[:, :, 1])).max() > 1e-4
  trainable, _ = params
  tokens = jax.random.normal(jax.random.key(3), (1, 2, 6, 32))
  same = model.decode(
    trainable,
    tokens[:, :, :4],
    jnp.arange(4)[None, None].repeat(2, 1),
    identity=tokens[:, :, 4],
    ambient=tokens[:, :, 5],
    conditioning=jnp.stack([tokens[:, :, 0]] * 2, axis=2),
  )
  np.testing.assert_allclose(same[:, :, 0], same[:, :, 1], atol=1e-6)


def test_frames_are_independent(model, params):
  frames = jnp.asarray(make_batch()["frames"][:1])
  changed = frames.at[:, 3].set(255 - frames[:, 3])
  waveform = jnp.zeros((1, 640 * 8))
  one, two = (model.embed(*params, x, waveform) for x in (frames, changed))
  difference = np.abs(one.vocal - two.vocal).max(axis=(0, 2))
  assert difference[3] > 1e-3 and np.delete(difference, 3).max() < 1e-5


def test_identity_shuffle_stays_inside_the_pair(params):
  """The shuffle permutes the tokens of each pair, and shuffles about half of the pairs."""
  model = SyncLipMAEModel(**SIZES)
  identity = jnp.arange(128 * 4, dtype=jnp.float32).reshape(128, 4, 1)
  keys = jax.random.split(jax.random.key(0), 128)
  shuffled = np.asarray(model._shuffle(identity, keys)).reshape(64, 8)
  np.testing.assert_array_equal(np.sort(shuffled, axis=1), np.asarray(identity).reshape(64, 8))
  moved = np.any(shuffled != np.asarray(identity).reshape(64, 8), axis=1)
  assert 18 <= moved.sum() <= 46


def test_audio_tokens_of_training_and_inference_are_equal(model, params, apply):
  """The audio tokens of a training clip are the tokens of the same frames of the whole file."""
  random = np.random.default_rng(0)
  whole = jnp.float32(random.normal(0, 0.1, (1, 640 * 40)))
  trainable, frozen = params
  tokens = model.embed_audio(trainable, frozen, whole)
  start = 16  # on the grid of windows, away from the ends
  first = 640 * (start - 4) - 80
  batch = make_batch(2)
  batch["waveform"] = np.repeat(whole[:, first : first + audio_context_samples(16)], 2, axis=0)
  clip = apply(*params, batch, jax.random.key(1))
  np.testing.assert_allclose(clip.audio[0], tokens[0, start : start + 8], atol=2e-5)


@pytest.mark.parametrize("visible", EMBED_VISIBLE)
def test_embed_is_deterministic_and_independent_of_the_batch(visible, params):
  model = SyncLipMAEModel(**{**SIZES, "embed_visible": visible})
  frames = make_batch(1)["frames"]
  waveform = np.random.default_rng(0).normal(0, 0.1, (1, 640 * 8)).astype(np.float32)
  one = jax.jit(model.embed)(*params, frames, waveform)
  two = jax.jit(model.embed)(*params, np.repeat(frames, 2, 0), np.repeat(waveform, 2, 0))
  for field in dataclasses.fields(one):
    np.testing.assert_allclose(getattr(two, field.name)[1], getattr(one, field.name)[0], atol=1e-5)


def patches_that_matter(model, params, frames):
  """Token -> which of the 16 patches of a frame it depends on."""
  tokens = jax.jit(lambda frames: model.embed_visual(params[0], frames))
  changed = np.repeat(frames, 16, axis=0)
  for n in range(16):
    row, column = 8 * (n // 4), 8 * (n % 4)
    changed[n, :, row : row + 8, column : column + 8] ^= 128
  before, after = tokens(frames), tokens(changed)
  matter = lambda name: np.abs(getattr(after, name) - getattr(before, name)).max(axis=(1, 2)) > 1e-4
  return {name: set(np.flatnonzero(matter(name))) for name in ("identity", "vocal", "ambient")}


@pytest.mark.parametrize("views", VIEWS)
def test_embed_takes_each_token_from_the_view_it_is_trained_from(views, params):
  """The four heaviest patches of the prior are the middle ones: the only ones that lie on the face as a whole."""
  frames = make_batch(1)["frames"][:, :1]
  even, heaviest = set(masking.spread_evenly(4, 4)), {5, 6, 9, 10}
  model = SyncLipMAEModel(**{**SIZES, "views": views, "embed_visible": "as_trained"})
  seen = patches_that_matter(model, params, frames)
  assert seen["vocal"] == seen["ambient"] == (even if views == "uniform" else heaviest)
  assert seen["identity"] == (heaviest if views == "face" else even)
  one_view = SyncLipMAEModel(**{**SIZES, "views": views, "embed_visible": "face_topk"})
  assert set(map(frozenset, patches_that_matter(one_view, params, frames).values())) == {frozenset(heaviest)}


def test_embed_refuses_sound_of_another_length(model, params):
  with pytest.raises(ValueError, match="8 frames need a waveform"):
    model.embed(*params, jnp.asarray(make_batch(1)["frames"]), jnp.zeros((1, 640 * 7)))


ABLATIONS = {
  "A1": dict(views="uniform", jitter=None),
  "A2": dict(views="face", jitter=None),
  "A3": dict(jitter=None),
  "B1": dict(audio_adapter=dict(layers="last")),
  "C1": dict(decoder={**SIZES["decoder"], "conditioning": "concatenate"}),
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations(name, model):
  ablated = SyncLipMAEModel(**{**SIZES, **ABLATIONS[name]})
  params = ablated.init(jax.random.key(0))
  outputs = jax.jit(ablated.apply)(*params, make_batch(), jax.random.key(1))
  assert outputs.predicted.shape == (4, 4, 2, 16, 192) and np.all(np.isfinite(outputs.predicted))
  seen = np.any(np.asarray(outputs.motion_view) != 0, axis=-1)
  if name in ("A1", "A2"):  # one view for reconstruction and motion
    np.testing.assert_array_equal(seen, outputs.masked == 0)
  if name.startswith("A"):  # without jitter the motion view shows the frame
    np.testing.assert_allclose(outputs.motion_view[seen], outputs.target[seen], atol=1e-5)
  if name == "B1":
    assert params[0]["audio_adapter"]["hidden"]["kernel"].shape[0] == 8 * 8
  if name == "C1":
    assert "cross" not in params[0]["decoder"]["blocks"]["prompted_mlp"]
  assert ablated.flops() != model.flops() or name in ("A3",)


def test_the_paper_configuration_has_the_paper_sizes():
  """Parameter counts, without allocation.

  The released sapiens_0.3b_epoch_1600_clean.pth has 303,099,904 values without its positional table of 4097 rows. The
  visual encoder also has the first row of that table, three prompt tokens and a table for 256 x 256 pixels.
  """
  paper = SyncLipMAEModel(
    **{
      **SIZES,
      "visual_encoder": dict(
        image_size=256, patch=16, width=1024, depth=24, heads=16, mlp_width=4096, class_token=True
      ),
      "speech_encoder": dict(kind="wav2vec2", wav2vec2=dict(alignment="waveform")),
    }
  )
  trainable, frozen = jax.eval_shape(paper.init, jax.random.key(0))
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  assert count(trainable["visual_encoder"]) == 303_099_904 + 1024 + 3 * 1024 + 256 * 1024
  # 94,371,712 in HF's base model, minus the mask embedding and the 128 gains folded into the positional kernel.
  assert count(frozen["speech_encoder"]) == 94_371_712 - 768 - 128
  assert trainable["audio_adapter"]["hidden"]["kernel"].shape == (12 * 768, 1024)


def test_flops_match_the_compiler_on_an_unrolled_step():
  """Dots and convolutions of the forward and backward pass against the analytic count, with the speech encoder."""
  sizes = {
    **SIZES,
    "speech_encoder": dict(
      kind="wav2vec2",
      wav2vec2=dict(width=32, depth=2, heads=2, mlp_width=64, conv_width=16, pos_kernel=16, pos_groups=4),
    ),
  }
  model = SyncLipMAEModel(**sizes, unroll=True)
  params = jax.eval_shape(model.init, jax.random.key(0))

  def forward_and_backward(trainable, frozen, batch):
    def scalar(trainable):
      out = model.apply(trainable, frozen, batch, jax.random.key(0))
      return out.predicted.sum() + out.vocal.sum() + out.audio.sum()

    return jax.grad(scalar)(trainable)

  jaxpr = jax.make_jaxpr(forward_and_backward)(*params, make_batch())
  assert 0.95 < _matmul_flops(jaxpr.jaxpr) / (4 * model.flops()) < 1.1


def _matmul_flops(jaxpr) -> float:
  total = 0
  for equation in jaxpr.eqns:
    shapes = [v.aval.shape for v in equation.invars if hasattr(v, "aval")]
    if equation.primitive.name == "dot_general":
      (contract, _), _ = equation.params["dimension_numbers"]
      total += 2 * np.prod(equation.outvars[0].aval.shape) * np.prod([shapes[0][i] for i in contract])
    elif equation.primitive.name == "conv_general_dilated":
      numbers = equation.params["dimension_numbers"]
      kernel = [shapes[1][i] for i in numbers.rhs_spec[1:]]
      total += 2 * np.prod(equation.outvars[0].aval.shape) * np.prod(kernel)
    repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
    for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
      inner = getattr(inner, "jaxpr", inner)
      if hasattr(inner, "eqns"):
        total += repeats * _matmul_flops(inner)
  return total


def test_unknown_switches_are_refused():
  for wrong in (dict(views="three"), dict(mask_ratio=1.0), dict(decode_frames=9), dict(audio_frames=15)):
    with pytest.raises(InputError):
      SyncLipMAEModel(**{**SIZES, **wrong})
  with pytest.raises(InputError, match="unknown speech encoder 'hubert'"):
    SyncLipMAEModel(**{**SIZES, "speech_encoder": dict(kind="hubert")})


def test_scanned_unrolled_and_rematerialised_blocks_agree():
  make = lambda rngs: EncoderBlock(16, 2, 32, compute_dtype=jnp.float32, rngs=rngs)
  stack = Functional(lambda rngs: stack_blocks(make, 3, rngs))
  params = stack.init(jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), (2, 5, 16))

  def run(params, **how):
    return scan_blocks(stack.bind(params), x, **how).sum()

  reference, slope = jax.value_and_grad(run)(params)
  for how in (dict(unroll=True), dict(remat="full"), dict(remat="attention"), dict(remat="dots", unroll=True)):
    value, gradient = jax.value_and_grad(run)(params, **how)
    np.testing.assert_allclose(value, reference, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), gradient, slope)
  kernels = params["mlp"]["up"]["kernel"]
  assert np.abs(np.asarray(kernels[0] - kernels[1])).max() > 0.01, "blocks have the same random numbers"


def test_position_tables():
  """The row half comes first in Sapiens (mmpretrain, utils/position_encoding.py), the column half in MAE."""
  rows, columns = (sincos_position(4, 16, rows_first=first) for first in (True, False))
  np.testing.assert_allclose(rows[1 * 4 + 2, :4], np.sin(1 * 10000.0 ** -(np.arange(4) / 4)), atol=1e-6)
  np.testing.assert_allclose(rows[1 * 4 + 2, 12:], np.cos(2 * 10000.0 ** -(np.arange(4) / 4)), atol=1e-6)
  np.testing.assert_array_equal(columns, np.concatenate([rows[:, 8:], rows[:, :8]], axis=1))
