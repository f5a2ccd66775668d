import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from synclipmae_jax.baselines import stable_syncnet
from synclipmae_jax.baselines.stable_syncnet import Attention, Encoder, Residual, StableSyncNetJudge
from synclipmae_jax.baselines.windows import face_pictures, in_chunks, mel_windows, picture_rows
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.types import EvalClip


def clip_of(frames, waveform=None, box=(0.0, 0.0, 1.0, 1.0)):
  count = len(frames)
  return EvalClip(
    key="clip", corpus="test", identity="one", frames=frames,
    waveform=np.zeros(640 * count, np.float32) if waveform is None else waveform,
    face_box=np.tile(np.float32(box), (count, 1)), mouth_box=np.full((count, 4), -1, np.float32), lag=0, truth=None,
  )  # fmt: skip


def random_params(model):
  draw = np.random.RandomState(0)
  return jax.tree.map(lambda leaf: 0.3 * draw.standard_normal(leaf.shape).astype(np.float32), model.abstract)


# Windows


def test_windows_are_centred_and_clamped_at_the_ends():
  rows = picture_rows(30, 16)
  np.testing.assert_array_equal(rows[8:23], np.arange(15)[:, None] + np.arange(16))
  assert (rows[:8] == rows[8]).all() and (rows[23:] == rows[22]).all()
  np.testing.assert_array_equal(picture_rows(3, 5)[0], [0, 1, 2, 2, 2])


@pytest.mark.parametrize(("length", "columns"), [(16, 52), (5, 16)])
def test_the_sound_of_a_window_starts_with_its_pictures(length, columns):
  frames = 40
  mel = np.arange(1 + 640 * frames // 200)[None].astype(np.float32)
  windows = mel_windows(mel, frames, length=length, columns=columns)
  assert windows.shape == (frames, 1, columns)
  for window, row in zip(windows[:, 0], picture_rows(frames, length), strict=True):
    start = int(80.0 * (row[0] / 25.0))
    np.testing.assert_array_equal(window, np.arange(start, start + columns))  # never beyond the last column


def test_chunks_are_rejoined_and_compiled_once():
  traces = []

  @jax.jit
  def double(x):
    traces.append(x.shape)
    return 2 * x

  np.testing.assert_array_equal(in_chunks(double, np.arange(7.0), chunk=3), 2 * np.arange(7.0))
  assert traces == [(3,)]


@pytest.mark.parametrize(("method", "antialias"), [("cubic", True), ("linear", False)])
def test_the_face_fills_the_picture(method, antialias):
  """A gradient over a region with known ends. The box is the median of the clip."""
  frames = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 3, (5, 64, 64, 3)).copy()
  clip = clip_of(frames, box=(0.25, 0.25, 0.75, 0.75))
  jitter = clip.face_box + np.float32([-0.1, 0.2, 0, 0.1, -0.2])[:, None]
  clip = dataclasses.replace(clip, face_box=jitter)
  faces = face_pictures(clip, size=16, above=0.25, below=0.0, method=method, antialias=antialias, chunk=2)
  assert faces.shape == (5, 16, 16, 3) and faces.dtype == np.float32
  low, high = 64 * 0.125, 64 * 0.75
  centres = low + (np.arange(16) + 0.5) * (high - low) / 16 - 0.5
  np.testing.assert_allclose(faces[0, :, 3, 1], 3 * centres, atol=0.6)  # rounded to bytes
  assert (face_pictures(clip_of(frames, box=(0.9, 0.9, 0.9, 0.9)), size=8, above=0, below=0, method="cubic",
                        antialias=True) > 0).all()  # fmt: skip


# The network


@pytest.mark.parametrize(
  ("factor", "shape", "expected"),
  [(2, (8, 12), (4, 6)), ((1, 2), (8, 12), (8, 6)), ((2, 1), (8, 12), (4, 12)), ((2, 3), (2, 3), (1, 1))],
)
def test_the_padding_of_the_strided_convolution(factor, shape, expected):
  """Output i depends on the 3 x 3 inputs from i * stride on: an axis of stride 1 has one zero in front, others none."""
  strides = (factor, factor) if isinstance(factor, int) else factor
  conv = Residual(32, 32, factor, rngs=nnx.Rngs(0)).downsample
  x = np.random.RandomState(0).standard_normal((1, *shape, 32)).astype(np.float32)
  found = np.asarray(conv(x))
  assert found.shape == (1, *expected, 32)
  padded = np.pad(x[0], [(int(s == 1), 1) for s in strides] + [(0, 0)])
  for i, j in np.ndindex(*expected):
    patch = padded[i * strides[0] :, j * strides[1] :][:3, :3]
    np.testing.assert_allclose(found[0, i, j], np.einsum("hwc,hwcd->d", patch, conv.kernel[...]), atol=2e-5)


def test_a_block_of_factor_1_with_zero_convolution_is_the_identity():
  block = Residual(32, 32, 1, rngs=nnx.Rngs(0))
  assert block.shortcut is None and block.downsample is None
  block.conv2.kernel[...] = jnp.zeros_like(block.conv2.kernel[...])
  x = jnp.float32(np.random.RandomState(0).standard_normal((1, 4, 4, 32)))
  np.testing.assert_array_equal(block(x), x)


def test_attention_is_equivariant_to_the_order_of_positions():
  block = Functional(lambda rngs: Attention(32, rngs=rngs))
  params = random_params(block)
  run = jax.jit(lambda params, x: block.bind(params)(x))
  x = np.random.RandomState(0).standard_normal((2, 2, 3, 32)).astype(np.float32)
  found = run(params, x)
  np.testing.assert_allclose(run(params, x[:, ::-1, ::-1]), found[:, ::-1, ::-1], atol=1e-5)
  assert np.abs(found - x).max() > 0.1


def test_vectors_are_of_length_one_and_not_negative():
  config = dict(in_channels=1, block_out_channels=(32, 64), downsample_factors=((2, 1), (2, 3)), attn_blocks=(0, 1))
  encoder = Functional(lambda rngs: Encoder(**config, rngs=rngs))
  maps = np.random.RandomState(0).standard_normal((3, 4, 3, 1)).astype(np.float32)
  vectors = jax.jit(lambda params, maps: encoder.bind(params)(maps))(random_params(encoder), maps)
  assert vectors.shape == (3, 64) and (vectors >= 0).all()
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


# The model on clips


class Means(nnx.Module):
  """Replaces the network: means of its inputs."""

  def __init__(self):
    self.factor = nnx.Param(jnp.ones(()))

  def audio(self, mel):
    return self.factor * mel.mean(axis=1)

  def visual(self, pictures):
    return self.factor * pictures.mean(axis=(2, 3))[:, :, :2].reshape(len(pictures), -1)


def test_a_clip_gives_one_token_per_frame_from_the_window_around_it():
  model = Functional(lambda rngs: Means())
  frames = np.zeros((30, 32, 32, 3), np.uint8)
  frames[:, 16:] = np.arange(30, dtype=np.uint8)[:, None, None, None] * 8  # grey of the lower half = frame
  frames[..., 2] = 255
  wave = np.zeros(640 * 30, np.float32)
  wave[640 * 20 + 100 :][:200] = 0.5
  clip = clip_of(frames, wave)
  audio, visual = StableSyncNetJudge(model, model.init(jax.random.key(0)), chunk=7).embed(clip)
  assert audio.shape == (30, 52) and visual.shape == (30, 32)
  np.testing.assert_allclose(visual[:, ::2], picture_rows(30, 16) * 8 / 127.5 - 1, atol=0.01)
  # The click is 20.2 frames into the clip, at column 32 of the window of frame 18, which starts at frame 10.
  assert abs(audio[18].argmax() - 33) <= 1
  assert StableSyncNetJudge.similarity == "cosine"
  assert stable_syncnet.lower_faces(clip).shape == (30, 128, 256, 3)
