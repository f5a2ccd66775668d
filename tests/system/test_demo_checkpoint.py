"""The checkpoint of the package on unseen footage: SynthTalk with another seed."""

import os

import numpy as np
import pytest

from synclipmae_jax.data.media.remux import fix_lag
from synclipmae_jax.data.synthtalk.clip import make_clip
from synclipmae_jax.data.synthtalk.corpus import write_clip
from synclipmae_jax.inference.embedder import Embedder
from synclipmae_jax.inference.trained import load_trained
from synclipmae_jax.models.synclipmae import build_model
from synclipmae_jax.pretrained import DEMO, SyncLipMAE
from tests.sync.reencode import reencode

SEED = 7  # trained with 0, calibrated with 1


@pytest.fixture(scope="module")
def model():
  return SyncLipMAE.load()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
  """Files by true lag; files of odd index have a lag."""
  folder = tmp_path_factory.mktemp("synthtalk")
  made = [make_clip(index, seed=SEED, split="test", seconds=6.0) for index in (1, 2, 5)]
  return [(write_clip(clip, folder, size=112), clip.lag) for clip in made]


def test_is_small_and_has_its_metadata(model):
  assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) < 10 * 2**20
  assert (DEMO / "README.md").read_text().startswith("# ")
  assert model.notes == ()  # it has seen real faces
  assert model.calibration.error < 0.05


def test_finds_the_lag_of_every_clip(model, clips):
  assert {lag > 0 for _, lag in clips if lag} and any(lag for _, lag in clips)
  for path, lag in clips:
    result = model.sync(path)
    assert abs(result.lag_frames - lag) <= 1 and result.confidence > 0.9
    assert result.interval[0] - 1 <= lag <= result.interval[1] + 1
    assert result.verdict == ("in_sync" if abs(result.lag_frames) <= 1 else "out_of_sync")


def test_another_clip_s_sound_cannot_be_synchronised(model, clips, tmp_path):
  import av

  (seen, _), (heard, _) = clips[0], clips[1]
  path = tmp_path / "stranger.mp4"
  with av.open(str(seen)) as picture, av.open(str(heard)) as sound, av.open(str(path), "w") as out:
    streams = [(picture, picture.streams.video[0]), (sound, sound.streams.audio[0])]
    for container, stream in streams:
      stream_out = out.add_stream_from_template(stream)
      stream_out.metadata["from"] = container.name
    for number, (container, stream) in enumerate(streams):
      for packet in container.demux(stream):
        if packet.size:
          packet.stream = out.streams[number]
          out.mux(packet)
  os.link(seen.with_suffix(".faces.npz"), tmp_path / "stranger.faces.npz")
  result = model.sync(path)
  assert result.verdict == "not_synchronizable" and result.lag_frames is None and result.confidence < 0.5


def test_a_corrected_file_is_in_sync(model, clips, tmp_path):
  path, lag = next((path, lag) for path, lag in clips if abs(lag) > 1)
  out = tmp_path / "mended.mp4"
  fix_lag(path, out, lag_ms=model.sync(path).lag_ms)
  os.link(path.with_suffix(".faces.npz"), tmp_path / "mended.faces.npz")
  assert model.sync(out).lag_frames == 0


@pytest.mark.parametrize("fps, rate", [("30000/1001", 44_100), ("50", 48_000), ("24000/1001", 16_000)])
def test_results_do_not_depend_on_the_rates(fps, rate, model, clips, tmp_path):
  from fractions import Fraction

  path, _ = clips[0]
  out = tmp_path / "again.mp4"
  reencode(path, out, fps=Fraction(fps), rate=rate)
  as_it_was, again = (model.sync(file, faces="full_frame") for file in (path, out))
  assert abs(as_it_was.lag_frames - again.lag_frames) <= 1


def test_embeds_a_file(model, clips):
  tokens = model.embed(clips[0][0])
  assert tokens.vocal.shape == tokens.audio.shape == (150, model.embedder.model.width)
  assert np.isfinite(tokens.vocal).all() and tokens.times[-1] == pytest.approx(149 / 25)


def test_only_the_identity_token_is_taken_from_the_view_of_identity(model):
  """The tokens of the one view that earlier versions took all of them from, by the stamp's own name for it."""
  trained = load_trained(DEMO)
  assert trained.meta["preprocessing"]["embed_visible"] == "as_trained"
  one_view = build_model({**trained.config, "model": {**trained.config["model"], "embed_visible": "face_topk"}})
  before = Embedder(one_view, trained.embedder.params)
  rng = np.random.default_rng(0)
  frames = rng.integers(0, 256, (20, model.image_size, model.image_size, 3), np.uint8)
  sound = rng.normal(0, 0.1, 640 * 20).astype(np.float32)
  now, then = (embedder.embed(frames, sound) for embedder in (model.embedder, before))
  for name in ("vocal", "ambient", "audio"):
    np.testing.assert_allclose(getattr(now, name), getattr(then, name), rtol=1e-4, atol=1e-5)
  assert np.abs(now.identity - then.identity).max() > 0.1 * np.abs(then.identity).max()
