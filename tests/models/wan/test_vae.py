import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from synclipmae_jax import sharding
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.wan.vae import RMSNorm, Upsample, Vae
from synclipmae_jax.types import InputError

LATENT, SIDE = 2, 16
tiny = functools.partial(Vae, base=2, latent=LATENT, blocks=1, latent_mean=(0.5, -1.0), latent_std=(2.0, 0.25))


@pytest.fixture(scope="module")
def vae():
  return Functional(lambda rngs: tiny(rngs=rngs))


@pytest.fixture(scope="module")
def params(vae):
  draw = np.random.RandomState(0)
  return jax.tree.map(lambda x: (draw.randn(*x.shape) / np.prod(x.shape[:-1]) ** 0.5).astype(np.float32), vae.abstract)


@pytest.fixture(scope="module")
def encode(vae, params):
  run = jax.jit(lambda params, video: (vae.bind(params).encode(video), vae.bind(params).moments(video)))
  return lambda video: jax.tree.map(np.asarray, run(params, video))


@pytest.fixture(scope="module")
def decode(vae):
  run = jax.jit(lambda params, latents: vae.bind(params).decode(latents))
  return lambda params, latents: np.asarray(run(params, latents))


def videos(clips, frames, seed=0):
  return np.random.RandomState(seed).uniform(-1, 1, (clips, frames, SIDE, SIDE, 3)).astype(np.float32)


def latents(clips, frames, seed=0):
  return np.random.RandomState(seed).randn(clips, frames, 1, 2, LATENT).astype(np.float32)


def shape_of(vae, method, *shape):
  run = lambda params, x: getattr(vae.bind(params), method)(x)
  return jax.eval_shape(run, vae.abstract, jax.ShapeDtypeStruct(shape, jnp.float32)).shape


def test_the_default_is_the_released_model():
  release = Functional(lambda rngs: Vae(rngs=rngs))
  leaves = jax.tree.leaves(release.abstract)
  assert (len(leaves), sum(leaf.size for leaf in leaves)) == (194, 126_892_531)
  assert shape_of(release, "encode", 1, 17, 256, 192, 3) == (1, 5, 32, 24, 16)
  assert shape_of(release, "decode", 1, 5, 32, 24, 16) == (1, 17, 256, 192, 3)


@pytest.mark.parametrize(("frames", "groups"), [(1, 1), (4, 1), (5, 2), (17, 5), (18, 5), (20, 5)])
def test_shapes(vae, frames, groups):
  assert shape_of(vae, "encode", 2, frames, 16, 24, 3) == (2, groups, 2, 3, LATENT)
  assert shape_of(vae, "moments", 2, frames, 16, 24, 3) == (2, groups, 2, 3, 2 * LATENT)
  assert shape_of(vae, "decode", 2, groups, 2, 3, LATENT) == (2, 4 * (groups - 1) + 1, 16, 24, 3)


def test_half_precision_is_kept_from_input_to_output():
  half = Functional(lambda rngs: tiny(rngs=rngs, compute_dtype=jnp.bfloat16))
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(half.abstract))
  video = jax.ShapeDtypeStruct((1, 5, 16, 16, 3), jnp.float32)
  there = jax.eval_shape(lambda params, x: half.bind(params).encode(x), half.abstract, video)
  back = jax.eval_shape(lambda params, x: half.bind(params).decode(x), half.abstract, there)
  assert there.dtype == back.dtype == jnp.bfloat16


def test_a_latent_depends_on_its_frames_and_earlier_ones(encode):
  video = np.repeat(videos(1, 9), 3, axis=0)
  video[1, 5:] = videos(1, 4, seed=1)[0]
  video[2, :1] = videos(1, 1, seed=2)[0]
  whole, later, first = encode(video)[0]
  np.testing.assert_allclose(later[:2], whole[:2], atol=1e-6)
  assert np.abs(later[2] - whole[2]).max() > 1e-3
  assert (np.abs(first - whole).max(axis=(1, 2, 3)) > 1e-3).all()


def test_frames_depend_on_their_latent_and_earlier_ones(decode, params):
  z = np.repeat(latents(1, 3), 3, axis=0)
  z[1, 2] = latents(1, 1, seed=1)[0]
  z[2, 1] = latents(1, 1, seed=2)[0]
  whole, last, middle = decode(params, z)
  np.testing.assert_allclose(last[:5], whole[:5], atol=1e-6)
  np.testing.assert_allclose(middle[:1], whole[:1], atol=1e-6)
  assert (np.abs(last - whole).max(axis=(1, 2, 3))[5:] > 1e-4).all()
  assert (np.abs(middle - whole).max(axis=(1, 2, 3))[1:] > 1e-4).all()


def test_one_frame_is_the_first_of_many(vae, params, encode):
  video = videos(3, 9)
  alone = jax.jit(lambda params, video: vae.bind(params).encode(video))(params, video[:, :1])
  np.testing.assert_allclose(alone, encode(video)[0][:, :1], atol=1e-5)


def test_all_frames_except_the_first_are_doubled():
  """The convolution in time computes frames 2t - 1 and 2t from the two halves of its channels at t, without frame 0."""
  up = Functional(lambda rngs: Upsample(4, temporal=True, compute_dtype=jnp.float32, rngs=rngs))
  draw = np.random.RandomState(0)
  params = jax.tree.map(lambda leaf: draw.randn(*leaf.shape).astype(np.float32), up.abstract)
  jitted = jax.jit(lambda params, x: up.bind(params)(x))
  run = lambda params: np.asarray(jitted(params, x))
  x = np.repeat(draw.randn(1, 3, 2, 2, 4).astype(np.float32), 2, axis=0)
  x[1, 0] += 1
  one, other = run(params)
  np.testing.assert_allclose(other[1:], one[1:], atol=1e-6)
  assert np.abs(other[0] - one[0]).max() > 0.1
  params["time_conv"] = {"kernel": np.zeros((3, 1, 1, 4, 8), "f"), "bias": np.repeat([1, 2], 4).astype("f")}
  flat = run(params)[0]
  np.testing.assert_array_equal(flat[1::2], flat[[1, 1]])
  np.testing.assert_array_equal(flat[2::2], flat[[2, 2]])
  params["time_conv"]["bias"] = np.ones(8, "f")
  np.testing.assert_array_equal(run(params)[0][1:], flat[[1] * 4])  # 1 is the source of the first frame of a pair


def test_latents_are_the_normalised_mode(encode):
  normalised, moments = encode(videos(3, 9))
  np.testing.assert_allclose(normalised, (moments[..., :LATENT] - [0.5, -1.0]) / [2.0, 0.25], rtol=1e-5, atol=1e-6)


def test_decoded_pixels_are_clipped(decode, params):
  out = params["decoder"]["conv_out"] | {"bias": np.asarray([100, -100, 0], np.float32)}
  video = decode(params | {"decoder": params["decoder"] | {"conv_out": out}}, latents(3, 3))
  assert (video[..., 0] == 1).all() and (video[..., 1] == -1).all() and np.abs(video[..., 2]).min() < 1


def test_rms_norm_scales_channels_to_unit_mean_square():
  norm = Functional(lambda rngs: RMSNorm(5, rngs=rngs)).bind({"scale": jnp.asarray([1.0, 1, 1, 1, 3])})
  x = jnp.float32(np.random.RandomState(0).randn(4, 5)) * 100
  expected = x / np.sqrt((x**2).mean(axis=-1, keepdims=True)) * np.float32([1, 1, 1, 1, 3])
  np.testing.assert_allclose(norm(x), expected, rtol=1e-5)
  assert norm(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
  assert np.isfinite(jax.grad(lambda x: norm(x).sum())(jnp.zeros((1, 5)))).all()  # black frames can give zeros


@pytest.mark.parametrize("shape", [(1, 5, 12, 16, 3), (1, 5, 16, 20, 3), (1, 0, 16, 16, 3), (1, 5, 16, 16, 4)])
def test_bad_videos_are_refused(vae, shape):
  with pytest.raises(InputError, match="multiples of 8"):
    shape_of(vae, "encode", *shape)


def test_bad_latents_and_statistics_are_refused(vae):
  with pytest.raises(InputError, match="2 latent channels, not 3"):
    shape_of(vae, "decode", 1, 2, 2, 2, 3)
  with pytest.raises(InputError, match="latent_std need 4 entries each"):
    Functional(lambda rngs: tiny(rngs=rngs, latent=4))


def test_the_vae_is_replicated_on_all_devices(vae):
  mesh = sharding.make_mesh({"data": 2, "fsdp": -1})
  placed = sharding.shardings({"vae": vae.abstract}, mesh, sharding.RULES)
  assert all(leaf.spec == PartitionSpec() for leaf in jax.tree.leaves(placed))
