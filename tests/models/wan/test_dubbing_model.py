"""Conditioning, AudioPack and the stand-in of the VAE, at a tiny size."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.wan import conditioning, dubbing
from synclipmae_jax.models.wan.audio_pack import AudioPack
from synclipmae_jax.models.wan.dit import Dit
from synclipmae_jax.models.wan.space_to_depth import SpaceToDepth
from synclipmae_jax.models.wan.vace import Vace, wan_vace
from synclipmae_jax.models.wan.vae import Vae
from synclipmae_jax.types import InputError

FRAMES, SIDE, TOKEN = 9, 16, 5
VAE = SpaceToDepth(space_stride=4, time_stride=4)
BLOCK = dict(width=24, heads=2, mlp_width=32)


@functools.cache
def functionals() -> dict[str, Functional]:
  channels = dict(in_channels=VAE.latent, out_channels=VAE.latent)
  dit = dict(BLOCK, depth=2, text_width=6, text_length=4, time_features=8, **channels)
  context_channels = 2 * VAE.latent + VAE.space_stride**2
  return {
    "dit": Functional(lambda rngs: Dit(**dit, rngs=rngs)),
    "vace": Functional(lambda rngs: Vace(**BLOCK, depth=1, stride=2, context_channels=context_channels, rngs=rngs)),
    "audio_pack": Functional(lambda rngs: AudioPack(token_width=TOKEN, width=24, hidden=8, rngs=rngs)),
  }


def drawn(seed: int = 0) -> dict:
  """All parameters random, the zero-initialised ones too."""
  rng = np.random.default_rng(seed)
  draw = lambda leaf: (rng.standard_normal(leaf.shape) / math.sqrt(leaf.shape[-1])).astype(np.float32)
  return {name: jax.tree.map(draw, one.abstract) for name, one in functionals().items()}


def bound(params: dict) -> dubbing.DubbingModel:
  return dubbing.DubbingModel(**{name: one.bind(params[name]) for name, one in functionals().items()})


def inputs(seed: int = 1) -> dict:
  draw = lambda *shape: jnp.float32(np.random.default_rng(seed).standard_normal(shape))
  latents = draw(2, 5, 4, 4, VAE.latent)  # two references, then 9 frames
  context = draw(2, 5, 4, 4, 2 * VAE.latent + 16)
  return dict(latents=latents, context=context, text=draw(2, 3, 6), t=jnp.array([900.0, 20.0]))


def tokens(seed: int) -> jnp.ndarray:
  return jnp.float32(np.random.default_rng(seed).standard_normal((2, FRAMES, TOKEN)))


def plain(params: dict, given: dict) -> np.ndarray:
  model = bound(params)
  return wan_vace(model.dit, model.vace, given["latents"], given["context"], given["text"], given["t"])


def test_at_the_first_step_and_without_control_it_is_plain_vace():
  given, params = inputs(), drawn()
  expected = plain(params, given)
  undriven = bound(params).velocity(**given, tokens=tokens(0), driven=jnp.array([False, False]))
  np.testing.assert_allclose(undriven, expected, rtol=1e-6, atol=1e-6)
  fresh = {**params, "audio_pack": functionals()["audio_pack"].init(jax.random.key(0))}
  np.testing.assert_allclose(bound(fresh).velocity(**given, tokens=tokens(0)), expected, rtol=1e-6, atol=1e-6)
  one = bound(params).velocity(**given, tokens=tokens(0), driven=jnp.array([True, False]))
  np.testing.assert_allclose(one[1], expected[1], rtol=1e-6, atol=1e-6)
  assert np.abs(one[0] - expected[0]).max() > 1e-2  # with other parameters the control is seen


def test_a_model_of_clean_latents_has_the_velocity_that_leads_to_them():
  given, params = inputs(), drawn()
  model = dataclasses.replace(bound(params), predicts="clean")
  velocity = model.velocity(**given, tokens=tokens(0), driven=jnp.array([False, False]))
  level = np.array([0.9, dubbing.LEAST_NOISE])[:, None, None, None, None]  # the second has less noise than the least
  np.testing.assert_allclose(given["latents"] - level * velocity, plain(params, given), rtol=1e-4, atol=1e-4)


def test_a_residual_is_added_to_the_picture_of_the_person_as_far_as_the_gate_lets_it():
  given, params = inputs(), drawn()
  out_channels = dubbing.output_channels("residual", VAE.latent)
  head = params["dit"]["head"]["projection"]
  # One more channel, the gate of each of the 2 x 2 latents of a patch; all else is the model of clean latents.
  gates = np.full(4, -100.0, np.float32)
  gates[3] = 0.0

  def wide(x, extra):
    apart = np.asarray(x).reshape(*x.shape[:-1], 4, VAE.latent)
    return jnp.asarray(np.concatenate([apart, extra], axis=-1).reshape(*x.shape[:-1], -1))

  head = {"kernel": wide(head["kernel"], np.zeros((24, 4, 1), np.float32)), "bias": wide(head["bias"], gates[:, None])}
  dit = Functional(lambda rngs: Dit(**BLOCK, depth=2, text_width=6, text_length=4, time_features=8,
                                    in_channels=VAE.latent, out_channels=out_channels, rngs=rngs))  # fmt: skip
  clean = dataclasses.replace(bound(params), predicts="clean")
  model = dataclasses.replace(
    clean, predicts="residual", dit=dit.bind({**params["dit"], "head": {**params["dit"]["head"], "projection": head}})
  )
  run = lambda each: each.velocity(**given, tokens=tokens(0), driven=jnp.array([False, False]))
  added = (run(clean) - run(model)) * np.array([0.9, dubbing.LEAST_NOISE])[:, None, None, None, None]
  identity = np.broadcast_to(given["context"][:, :1, ..., : VAE.latent], added.shape)
  expected = np.zeros(added.shape, np.float32)
  expected[:, :, 1::2, 1::2] = 0.5 * identity[:, :, 1::2, 1::2]
  np.testing.assert_allclose(added, expected, atol=1e-4)


def test_switching_the_drive_changes_nothing_but_the_tokens():
  given, model = inputs(), bound(drawn())
  heard, seen = tokens(2), tokens(3)
  pick = functools.partial(dubbing.tokens_of, audio=heard, video=seen)
  assert (pick("audio") == heard).all() and (pick("video") == seen).all()
  run = lambda drive, **pair: model.velocity(**given, tokens=dubbing.tokens_of(drive, **pair))
  by_audio, by_video = (run(drive, audio=heard, video=seen) for drive in dubbing.DRIVES)
  assert np.abs(by_audio - by_video).max() > 1e-3
  # The same tokens under the other name give the same picture, bit for bit.
  np.testing.assert_array_equal(run("audio", audio=seen, video=heard), by_video)
  with pytest.raises(InputError, match="audio or video"):
    pick("text")


def test_a_latent_frame_hears_the_frames_that_the_autoencoder_put_into_it():
  pack = functionals()["audio_pack"].bind(drawn()["audio_pack"])
  heard = tokens(4)
  added = pack(heard, grid=(5, 2, 2), references=2)
  assert added.shape == (2, 20, 24) and not np.any(added[:, :8])  # two reference frames of 4 tokens
  by_frame = added.reshape(2, 5, 4, 24)
  assert (by_frame == by_frame[:, :, :1]).all()
  for frame in range(FRAMES):
    changed = pack(heard.at[:, frame].add(1.0), grid=(5, 2, 2), references=2).reshape(2, 5, 4, 24)
    moved = np.abs(changed - by_frame).max(axis=(0, 2, 3)) > 0
    video = np.zeros((1, FRAMES, SIDE, SIDE, 3), np.float32)
    video[:, frame] = 1
    held = np.abs(VAE.encode(jnp.asarray(video))).max(axis=(0, 2, 3, 4)) > 0
    assert moved.tolist() == [False, False, *held.tolist()]
  with pytest.raises(InputError, match="take 9 tokens of 5 numbers, not 8"):
    pack(heard[:, 1:], grid=(5, 2, 2), references=2)


def test_the_stand_in_is_exact_and_groups_time_as_the_autoencoder_does():
  video = jnp.float32(np.random.default_rng(0).uniform(-1, 1, (2, FRAMES, SIDE, SIDE, 3)))
  latents = VAE.encode(video)
  assert latents.shape == (2, 3, 4, 4, VAE.latent)
  np.testing.assert_allclose(VAE.decode(latents), video, rtol=0, atol=1e-6)
  real = jax.eval_shape(
    lambda v: Vae(base=8, multipliers=(1, 1, 1), temporal_down=(True, True), rngs=_rngs()).encode(v), video
  )
  assert real.shape[:4] == latents.shape[:4]
  assert VAE.encode(video[:, :8]).shape == VAE.encode(video[:, :5]).shape
  for wrong, why in ((video[:, :, :-1], "multiples of 4"), (latents[..., 1:], "latent channels")):
    with pytest.raises(InputError, match=why):
      (VAE.encode if wrong.shape[-1] == 3 else VAE.decode)(wrong)


def _rngs():
  from flax import nnx

  return nnx.Rngs(0)


def test_the_context_has_the_96_channels_of_vace_in_its_order():
  rng = np.random.default_rng(0)
  inactive, reactive = (jnp.float32(rng.standard_normal((1, 3, 2, 2, 16))) for _ in range(2))
  mask = np.zeros((1, 16, 16), bool)
  mask[0, 9, 3] = True  # latent (1, 0), row 1 and column 3 of its 8 x 8 pixels
  found = conditioning.context(inactive, reactive, jnp.asarray(mask))
  assert found.shape == (1, 3, 2, 2, 96)
  np.testing.assert_array_equal(found[..., :16], inactive)
  np.testing.assert_array_equal(found[..., 16:32], reactive)
  assert found[0, :, 1, 0, 32 + 1 * 8 + 3].tolist() == [1, 1, 1] and found[..., 32:].sum() == 3
  references = jnp.float32(rng.standard_normal((1, 2, 2, 2, 16)))
  whole = conditioning.with_references(found, references)
  assert whole.shape == (1, 5, 2, 2, 96) and conditioning.REFERENCES == ("identity", "history")
  np.testing.assert_array_equal(whole[:, :2, ..., :16], references)
  assert not np.any(whole[:, :2, ..., 16:])
  np.testing.assert_array_equal(whole[:, 2:], found)
  with pytest.raises(InputError, match="does not fit"):
    conditioning.context(inactive, reactive, jnp.zeros((1, 16, 20), bool))


def test_the_model_never_sees_the_region_that_it_generates():
  rng = np.random.default_rng(0)
  mask = np.zeros((2, SIDE, SIDE), bool)
  mask[:, 8:, 4:12] = True
  video = jnp.float32(rng.uniform(-1, 1, (2, FRAMES, SIDE, SIDE, 3)))
  other = jnp.where(jnp.asarray(mask)[:, None, :, :, None], jnp.float32(rng.uniform(-1, 1, video.shape)), video)
  seen = lambda v: conditioning.encode_context(VAE, conditioning.without(v, jnp.asarray(mask)), jnp.asarray(mask))
  np.testing.assert_array_equal(seen(video), seen(other))
  shown = lambda v: conditioning.encode_context(VAE, v, jnp.asarray(mask))[..., VAE.latent : 2 * VAE.latent]
  assert np.any(shown(video) != shown(other))  # VACE's own reactive part would hold it
  pictures = conditioning.encode_pictures(VAE, video[:, :2])
  np.testing.assert_allclose(VAE.decode(pictures[:, 1:])[:, 0], video[:, 1], atol=1e-6)
