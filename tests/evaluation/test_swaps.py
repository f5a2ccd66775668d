"""Swaps of a model whose decoder draws exactly what its tokens say."""

import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synclipmae_jax.evaluation import swaps
from synclipmae_jax.evaluation.swaps import OWN, SOURCE, SWAPPED, UNSWAPPED, measure_swaps
from synclipmae_jax.metrics.image_quality import MAX_PSNR
from synclipmae_jax.models import masking
from synclipmae_jax.models.visual_encoder import normalise_pixels
from synclipmae_jax.types import Tokens

SIZE, PATCH = 32, 8
FACE = np.float32([0.25, 0.25, 0.75, 1])
MOUTH = np.float32([0.25, 0.5, 0.5, 1])


def draw(identity, mouth, pose):
  """The background of a person, and in the face above the identity, below left the mouth, below right the pose."""
  image = np.empty((len(identity), SIZE, SIZE, 3), np.uint8)
  image[:] = np.asarray(identity)[:, None, None] // 2
  image[:, 8:16, 8:24] = np.asarray(identity)[:, None, None]
  image[:, 16:, 8:16] = np.asarray(mouth)[:, None, None]
  image[:, 16:, 16:24] = np.asarray(pose)[:, None, None]
  return image


class Drawing:
  """Tokens are colours; the visible patches are those of the background."""

  image_size, patch, grid, patches, visible = SIZE, PATCH, 4, 16, 10

  def __init__(self, *, deaf=False):
    self.deaf = deaf  # the decoder takes no notice of the vocal token

  def embed_visual(self, trainable, frames, *, face_box, mouth_box):
    unit = jnp.asarray(frames, jnp.float32) / 255
    at = lambda y, x: unit[:, :, y, x] * trainable["gain"]
    return Tokens(identity=at(10, 12), vocal=at(20, 12), ambient=at(20, 20), audio=None)

  def encode(self, trainable, frames, indices):
    pixels = masking.take_patches(masking.patchify(frames, self.patch), indices)
    return SimpleNamespace(patches=jnp.asarray(pixels, jnp.float32) / 255)

  def decode(self, trainable, patches, indices, *, identity, ambient, conditioning):
    shown = jnp.einsum("bfkp,bfkn->bfnp", patches, jnp.eye(16)[indices])
    image = masking.unpatchify(shown[:, 0], self.patch)
    image = image.at[:, 8:16, 8:24].set(identity[:, 0, None, None])
    mouth = conditioning[:, 0, 0] * (0 if self.deaf else 1)
    image = image.at[:, 16:, 8:16].set(mouth[:, None, None]).at[:, 16:, 16:24].set(ambient[:, 0, None, None])
    return normalise_pixels(masking.patchify(image[:, None], self.patch))[:, :, None]


def swap(rng, frames=2):
  colours = rng.integers(30, 226, (3, 3, frames, 3))  # person, part, frame
  shot = lambda image: (image, np.tile(FACE, (frames, 1)), np.tile(MOUTH, (frames, 1)))
  a, b, c = colours
  true = {"mouth": (a[0], b[1], a[2]), "ambient": (a[0], a[1], c[2]), "both": (a[0], b[1], c[2])}
  first, second, third = (shot(draw(*person)) for person in colours)
  return SimpleNamespace(
    identity_of=first, mouth_of=second, pose_of=third, true={name: shot(draw(*parts)) for name, parts in true.items()}
  )


@pytest.fixture(scope="module")
def made():
  rng = np.random.default_rng(0)
  return [swap(rng) for _ in range(4)]


PARAMS = {"gain": jnp.ones(())}


def test_a_decoder_that_draws_its_tokens_meets_the_true_picture(made):
  report = measure_swaps(Drawing(), PARAMS, made, shown=3)
  for name in ("mouth", "ambient", "both"):
    assert report.psnr[name][SWAPPED]["picture"].value > 60 and report.ssim[name][SWAPPED]["face"].value > 0.999
    assert report.psnr[name][OWN]["picture"].value > 60
    source = report.psnr[name][SOURCE]["face"].value
    assert source < 25 and report.psnr[name][UNSWAPPED]["face"].value == pytest.approx(source, abs=0.01)
    assert report.nearer[name]["face"].value == 1
  assert report.psnr["ambient"][SOURCE]["mouth"].value == MAX_PSNR  # the mouth is not swapped
  assert {label: images.shape[0] for label, images in report.shown.items()} == dict.fromkeys(report.shown, 3)
  np.testing.assert_allclose(report.shown["decoded"], report.shown["true picture"], atol=1e-5)
  assert "4 swaps of 2 frames" in report.table()
  json.dumps(report.to_json(), allow_nan=False)


def test_a_decoder_that_is_deaf_to_a_token_comes_no_nearer_by_the_swap(made):
  report = measure_swaps(Drawing(deaf=True), PARAMS, made)
  assert report.nearer["mouth"]["mouth"].value == 0 and report.nearer["ambient"]["face"].value == 1
  assert report.psnr["mouth"][SWAPPED] == report.psnr["mouth"][UNSWAPPED]


def test_only_the_swapped_token_changes_and_the_surroundings_can_be_of_another(made):
  first, second = (swaps.Portrait(*shot) for shot in (made[0].identity_of, made[1].identity_of))
  images = np.asarray(jax.jit(functools.partial(swaps.swap_factors, Drawing()))(PARAMS, second, first, first, first))
  own = first.frames / 255
  np.testing.assert_allclose(images[:, :8], own[:, :8], atol=1e-5)  # the background stays
  np.testing.assert_allclose(images[:, 16:, 8:24], own[:, 16:, 8:24], atol=1e-5)
  np.testing.assert_allclose(images[:, 8:16, 8:24], second.frames[:, 8:16, 8:24] / 255, atol=1e-5)
