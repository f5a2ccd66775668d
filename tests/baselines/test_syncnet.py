"""Times of the windows of SyncNet. Its arithmetic is tested in tests/parity/test_syncnet_parity.py."""

import dataclasses

import jax
import numpy as np
import pytest

from synclipmae_jax.baselines import syncnet
from synclipmae_jax.baselines.mfcc import int16_scale, mfcc
from synclipmae_jax.baselines.syncnet import SyncNet, SyncNetTokens
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.types import EvalClip, InputError

SIZES = {"image_size": 51, "scale": 0.05, "width": 6}
FRAMES = 34


@pytest.fixture(scope="module")
def tokens():
  params = Functional(lambda rngs: SyncNet(rngs=rngs, **SIZES)).init(jax.random.key(0))
  statistics = lambda path, x: np.full(x.shape, 7.0) if path[-1].key == "var" and "norm_0" in str(path) else x
  return SyncNetTokens(jax.tree_util.tree_map_with_path(statistics, params), **SIZES)


@pytest.fixture(scope="module")
def clip():
  random = np.random.default_rng(0)
  boxes = np.zeros((FRAMES, 4), np.float32)
  return EvalClip(
    key="clip", corpus="noise", identity="0", frames=random.integers(0, 256, (FRAMES, 51, 51, 3), np.uint8),
    waveform=random.normal(0, 0.1, 640 * FRAMES).astype(np.float32), face_box=boxes, mouth_box=boxes, lag=0,
    truth=None,
  )  # fmt: skip


def cut(clip, start, stop):
  return dataclasses.replace(clip, frames=clip.frames[start:stop], waveform=clip.waveform[640 * start : 640 * stop])


def test_one_token_per_frame_from_the_window_centred_on_it(tokens, clip):
  audio, lips = tokens.embed(clip)
  whole_audio, whole_lips = tokens.windows(clip)
  assert audio.shape == lips.shape == (FRAMES, 6) and len(whole_audio) == len(whole_lips) == FRAMES - 5
  np.testing.assert_array_equal(audio[2:-3], whole_audio)
  np.testing.assert_array_equal(lips[2:-3], whole_lips)
  for edge, nearest in ((slice(0, 2), 2), (slice(-3, None), -4)):
    assert (audio[edge] == audio[nearest]).all() and (lips[edge] == lips[nearest]).all()


def test_a_token_depends_on_its_five_frames_only(tokens, clip):
  _, before = tokens.embed(clip)
  frames = clip.frames.copy()
  frames[15] = 255 - frames[15]
  _, after = tokens.embed(dataclasses.replace(clip, frames=frames))
  changed = np.flatnonzero(np.abs(after - before).max(axis=1) > 1e-6)
  np.testing.assert_array_equal(changed, range(13, 18))


@pytest.mark.parametrize("sample, first", [(100, 12), (300, 13)])
def test_a_token_depends_on_the_sound_of_its_frames_only(tokens, clip, sample, first):
  """20 columns from the first frame on are 0.215 s of sound: 0.2 s of the five frames, and 240 samples of the next."""
  before, _ = tokens.embed(clip)
  waveform = clip.waveform.copy()
  waveform[640 * 15 + sample : 640 * 15 + sample + 40] += 0.5
  after, _ = tokens.embed(dataclasses.replace(clip, waveform=waveform))
  changed = np.flatnonzero(np.abs(after - before).max(axis=1) > 1e-6)
  np.testing.assert_array_equal(changed, range(first, 18))


def test_the_size_of_chunks_has_no_effect(tokens, clip, monkeypatch):
  whole = tokens.windows(clip)  # two chunks
  assert FRAMES - 5 > syncnet.CHUNK
  monkeypatch.setattr(syncnet, "CHUNK", 7)
  for one, other in zip(whole, tokens.windows(clip), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_windows_equal_single_windows(tokens, clip):
  """The towers on single windows: 5 frames, and columns of the MFCC of the whole clip."""
  audio, lips = tokens.windows(clip)
  columns = mfcc(int16_scale(clip.waveform)).astype(np.float32)
  for t in (0, 11, FRAMES - 6):
    np.testing.assert_allclose(tokens._lips(clip.frames[None, t : t + 5])[0, 0], lips[t], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(tokens._audio(columns[None, 4 * t : 4 * t + 20])[0, 0], audio[t], rtol=1e-4, atol=1e-6)


def test_pictures_are_converted_to_bgr_and_resized(tokens, clip):
  twice = np.repeat(np.repeat(clip.frames[:6], 2, axis=1), 2, axis=2)
  grown = dataclasses.replace(cut(clip, 0, 6), frames=twice)
  np.testing.assert_allclose(tokens.windows(grown)[1], tokens.windows(cut(clip, 0, 6))[1], rtol=1e-4, atol=1e-6)
  other = tokens.windows(dataclasses.replace(cut(clip, 0, 6), frames=clip.frames[:6, ..., ::-1]))[1]
  assert np.abs(other - tokens.windows(cut(clip, 0, 6))[1]).max() > 1e-4


def test_a_clip_without_a_whole_window_is_refused(tokens, clip):
  assert len(tokens.windows(cut(clip, 0, 6))[0]) == 1
  with pytest.raises(InputError, match="clip: 5 frames are too few"):
    tokens.embed(cut(clip, 0, 5))
