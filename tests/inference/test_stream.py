from __future__ import annotations

import dataclasses
import json
import struct
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data.footage import numbered, write_video
from tiny_checkpoint import write_tiny

from configs.pretrain import get_config
from synclipmae_jax import SyncLipMAE
from synclipmae_jax.data.faces.track import FaceTrack
from synclipmae_jax.inference import stream
from synclipmae_jax.inference.embedder import Embedder
from synclipmae_jax.inference.stream import TokenStream
from synclipmae_jax.models import augment
from synclipmae_jax.models.synclipmae import build_model
from synclipmae_jax.sync import analysis
from synclipmae_jax.sync.analysis import join, sync_file
from synclipmae_jax.sync.calibration import Calibration
from synclipmae_jax.sync.estimate import BLOCK, LagScorer
from synclipmae_jax.types import SAMPLES_PER_FRAME, InputError, Tokens

rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return SyncLipMAE.load(write_tiny(tmp_path_factory.mktemp("checkpoint") / "0"))


def noise(seconds):
  return rng.normal(0, 0.1, round(16_000 * seconds)).astype(np.float32)


def test_block_tokens_equal_those_of_the_whole_file(model, tmp_path):
  count = 290
  images = [numbered(t * 40503 % 65536) for t in range(count)]
  path = write_video(tmp_path / "a.mp4", images, sound=noise(count / 25 + 1))
  assert model.embedder.block_frames == 128
  blocks = list(TokenStream(model.embedder, path, faces="full_frame"))
  assert [(block.start, block.count) for block in blocks] == [(0, 128), (128, 128), (256, 34)]
  waveform = np.concatenate([block.waveform for block in blocks])
  assert waveform.shape == (SAMPLES_PER_FRAME * count,)
  whole = model.embedder.model.embed_audio(model.embedder.params, model.embedder.params, jnp.asarray(waveform[None]))[0]
  np.testing.assert_allclose(np.concatenate([block.audio for block in blocks]), whole, atol=1e-5)

  tokens = model.embed(path, faces="full_frame")
  assert tokens.vocal.shape == whole.shape and np.isfinite(tokens.vocal).all()
  assert np.abs(np.diff(tokens.vocal, axis=0)).max(axis=1).min() > 1e-4  # all pictures differ


def test_the_looks_at_a_crop_are_zooms_and_their_mirror_images():
  config = json.loads(get_config("tiny").to_json_best_effort())
  config["model"]["crop_jitter"] = dict(zoom=1.5, shift=0.0, mirror=0.5)
  model = build_model(config)
  encoder, count = Embedder(model, model.init(jax.random.key(0))[0]), 5
  assert [side for _, side in encoder.looks] == [False, True] * 4
  frames = rng.integers(0, 256, (count, encoder.image_size, encoder.image_size, 3), dtype=np.uint8)
  boxes = dict(face_box=np.tile(np.float32([0.1, 0.2, 0.7, 0.8]), (count, 1)), mouth_box=np.full((count, 4), -1.0))
  tokens, lips = encoder.encode_frames(frames, **boxes)
  looks = np.split(lips, 8, axis=1)
  np.testing.assert_array_equal(looks[0], tokens.vocal)
  once = encoder.encode_lips(frames, **boxes)
  np.testing.assert_allclose(looks[0], once, atol=1e-5)
  other = dict(face_box=np.tile(np.float32([0.3, 0.2, 0.9, 0.8]), (count, 1)), mouth_box=boxes["mouth_box"])
  np.testing.assert_allclose(looks[1], encoder.encode_lips(frames[:, :, ::-1], **other), atol=1e-5)
  closer, there = augment.zoomed(jnp.asarray(frames), jnp.stack([*boxes.values()]), factor=1.5)
  closer = dict(frames=np.asarray(closer), face_box=np.asarray(there[0]), mouth_box=np.asarray(there[1]))
  np.testing.assert_allclose(looks[6], encoder.encode_lips(**closer), atol=1e-2)  # halves are rounded
  assert np.abs(looks[6] - looks[0]).max() > 0.1


def test_an_abandoned_stream_stops_decoding(model, tmp_path):
  path = write_video(tmp_path / "a.mp4", [numbered(t) for t in range(700)], sound=noise(28))
  before = threading.active_count()
  blocks = iter(TokenStream(model.embedder, path, faces="full_frame"))
  next(blocks)
  assert threading.active_count() > before
  blocks.close()
  assert threading.active_count() == before


class Lamp:
  """Stand-in for a trained model: tokens are functions of brightness and of loudness."""

  image_size, block_frames, audio_context, looks = 32, 64, 8, (1.0,)
  _directions = np.random.default_rng(1).normal(0, 12, 64).astype(np.float32)
  _phases = np.random.default_rng(2).uniform(0, 6, 64).astype(np.float32)

  def _token(self, level):
    return np.cos(level[:, None] * self._directions + self._phases).astype(np.float32)

  def encode_frames(self, frames, *, face_box, mouth_box):
    vocal = self._token(frames.mean(axis=(1, 2, 3)) / 255)
    return Tokens(identity=vocal, vocal=vocal, ambient=vocal, audio=None), vocal

  def heard(self, audio):
    return audio

  def encode_sound(self, waveform):
    loud = np.sqrt(np.square(waveform.reshape(-1, SAMPLES_PER_FRAME)).mean(axis=1)) / 0.5
    return self._token(loud)[self.audio_context :][: self.block_frames]


def judge(path, **options):
  """The result for the lamp."""
  return sync_file(Lamp(), path, calibration=Calibration.uncalibrated(), checkpoint="lamp", **options)


def film(path, *, frames, lag, lit=True, **kwargs):
  """Video of a lamp that follows the loudness of a tone, `lag` frames late."""
  level = np.random.default_rng(3).uniform(0.1, 0.9, frames)
  tone = np.repeat(level, SAMPLES_PER_FRAME) * 0.5 * np.sqrt(2) * np.sin(np.arange(frames * SAMPLES_PER_FRAME) * 0.4)
  shown = np.roll(level, lag) if lit else np.full(frames, 0.5)
  images = [np.full((64, 64, 3), round(255 * value), np.uint8) for value in shown]
  return write_video(path, images, sound=tone.astype(np.float32), **kwargs)


@pytest.mark.parametrize("lag", [0, 5, -7])
def test_the_lag_has_its_sign_and_every_frame_has_a_row(tmp_path, lag):
  seen = []
  path = film(tmp_path / "a.mp4", frames=300, lag=lag, sound_codec="flac" if lag else "aac")
  result = judge(path, faces="full_frame", progress=lambda done, total: seen.append((done, total)))
  assert (result.lag_frames, result.lag_ms) == (lag, 40 * lag)
  assert result.verdict == ("out_of_sync" if lag else "in_sync")
  assert result.duration_s == 12 and len(result.frames) == 300 and result.score_map.shape == (300, 31)
  assert {frame.lag for frame in result.frames[40:260]} == {lag}
  assert result.frames[0].lag is None and {frame.face for frame in result.frames} == {0}
  assert seen[-1][0] == 12 and seen[-1][1] == pytest.approx(12, abs=0.2)
  assert result.faces[0].lag_frames == lag and result.faces[0].speaking > 0.85
  assert set(result.to_json()) >= {"file", "lag_ms", "faces", "frames", "drift_ms_per_min"}


class TwoFaces:
  """The left half of the picture, and the right half except in frames 100 to 149."""

  def __init__(self, *_, **__):
    pass

  def see(self, frame):
    pass

  def take(self, start, stop):
    there = (np.arange(start, stop) < 100) | (np.arange(start, stop) >= 150)
    left, right = ([0.07, 0.1, 0.43, 0.9], [0.57, 0.1, 0.93, 0.9])
    box = np.where(there[:, None], np.float32(right), np.nan)
    whole = np.tile(np.float32(left), (stop - start, 1))
    return {
      3: FaceTrack(box=box, track=np.where(there, 0, -1), confidence=there.astype(np.float32)),
      5: FaceTrack(box=whole, track=np.zeros(stop - start, int), confidence=np.ones(stop - start, np.float32)),
    }


def test_of_two_faces_the_one_that_moves_with_the_sound_is_the_speaker(tmp_path, monkeypatch):
  monkeypatch.setattr(stream, "open_faces", lambda *_, **__: (TwoFaces(), ("two lamps",)))
  level = np.random.default_rng(3).uniform(0.1, 0.9, 300)
  tone = np.repeat(level, SAMPLES_PER_FRAME) * 0.5 * np.sqrt(2) * np.sin(np.arange(300 * SAMPLES_PER_FRAME) * 0.4)
  other = np.random.default_rng(4).uniform(0.1, 0.9, 300)
  images = np.empty((300, 64, 128, 3), np.uint8)
  images[:, :, :64] = np.rint(255 * other)[:, None, None, None]
  images[:, :, 64:] = np.rint(255 * np.roll(level, 3))[:, None, None, None]
  path = write_video(tmp_path / "a.mp4", images, sound=tone.astype(np.float32))
  result = judge(path)
  assert result.lag_frames == 3 and result.notes == ("two lamps",)
  still, speaker = result.faces  # ordered by the number of visible frames
  assert still.lag_frames is None and speaker.lag_frames == 3
  assert speaker.speaking > 0.6 > 0.3 > still.speaking
  assert (speaker.start, speaker.end) == (0, 299 / 25) and speaker.box[0] > 0.5 > still.box[2]
  assert {frame.face for frame in result.frames[100:150]} == {0}
  assert {frame.face for frame in result.frames[30:80]} == {1}
  assert {frame.lag for frame in result.frames[30:70]} == {3}


def test_a_face_with_a_known_lag_precedes_one_with_a_higher_peak(tmp_path, monkeypatch):
  monkeypatch.setattr(stream, "open_faces", lambda *_, **__: (TwoFaces(), ()))
  estimates = iter([
    dict(lag=-2, peak=9.0, synchronizable=0.1, interval=(-2, -2)),
    dict(lag=4, peak=8.0, synchronizable=0.9, interval=(4, 4)),
  ])  # fmt: skip

  def estimate(scores, calibration):
    return dataclasses.replace(real(scores, calibration), **next(estimates))

  real = analysis.estimate
  monkeypatch.setattr(analysis, "estimate", estimate)
  result = judge(film(tmp_path / "a.mp4", frames=200, lag=0))
  assert (result.lag_frames, result.verdict) == (4, "out_of_sync")
  assert sorted(str(face.lag_frames) for face in result.faces) == ["4.0", "None"]


def test_short_stretches_keep_their_position_in_time():
  tokens = rng.normal(size=(10, 64, 8))
  stretches, starts = [], [7 + 100 * number for number in range(10)]
  for part in tokens:
    scorer = LagScorer()
    scorer.push(part, part)
    scorer.push(part[:20], part[:20])  # 84 frames: one block and a part of another
    stretches.append(scorer.finish())
  joined = join(stretches, starts)
  assert len(joined.wide_sum) == (starts[-1] - starts[0]) // BLOCK + 2
  assert joined.wide_count.sum() == sum(part.wide_count.sum() for part in stretches)
  np.testing.assert_allclose(joined.wide_sum.sum(axis=0), sum(part.wide_sum.sum(axis=0) for part in stretches))


def test_a_file_that_cannot_be_synchronised_has_a_result(tmp_path):
  still = judge(film(tmp_path / "still.mp4", frames=300, lag=0, lit=False), faces="full_frame")
  none = judge(film(tmp_path / "none.mp4", frames=50, lag=0))
  path = write_video(tmp_path / "silent.mp4", [numbered(t) for t in range(50)], sound=np.zeros(32_000))
  silent = judge(path, faces="full_frame")
  for result, reason in ((still, "lips and sound do not match"), (none, "no face was found"), (silent, "silent")):
    assert result.verdict == "not_synchronizable" and result.lag_frames is None and result.lag_ms is None
    assert reason in result.reason


def test_bad_files_print_one_sentence(tmp_path):
  pictures = [numbered(t) for t in range(60)]
  (tmp_path / "text.mp4").write_text("not a film\n" * 50)
  write_video(tmp_path / "mute.mp4", pictures)
  write_video(tmp_path / "three.mp4", pictures[:3], sound=noise(0.12))
  whole = write_video(tmp_path / "whole.mkv", pictures, sound=noise(2.4)).read_bytes()
  (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
  duration = whole.index(b"\x44\x89\x88") + 3  # Matroska's element: milliseconds, as float64
  (tmp_path / "endless.mkv").write_bytes(whole[:duration] + struct.pack(">d", 4e10) + whole[duration + 8 :])
  claims = bytearray(write_video(tmp_path / "whole.mp4", pictures, sound=noise(2.4)).read_bytes())
  count = claims.index(b"stts") + 12  # of the frames of its one run
  claims[count : count + 4] = (10**9).to_bytes(4, "big")
  (tmp_path / "billion.mp4").write_bytes(claims)
  unknown = whole.replace(b"A_AAC", b"A_XYZ")
  assert unknown != whole
  (tmp_path / "unknown.mkv").write_bytes(unknown)
  for name, reason in (
    ("billion.mp4", "declares 1000000000 frames"),
    ("unknown.mkv", "codec that cannot be decoded"),
    ("text.mp4", "cannot be read"),
    ("mute.mp4", "no sound track"),
    ("three.mp4", "too short: 3 frames"),
    ("cut.mkv", "truncated|damaged"),
    ("endless.mkv", "11111 hours"),  # 10^9 frames
    ("absent.mp4", "missing"),
    (".", "not a regular file"),
  ):
    with pytest.raises(InputError, match=reason) as caught:
      judge(tmp_path / name, faces="full_frame")
    assert "\n" not in str(caught.value)
