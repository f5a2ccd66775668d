import numpy as np
from data.footage import numbered, write_video
from tiny_checkpoint import write_tiny

from synclipmae_jax import SyncLipMAE
from synclipmae_jax.inference.silent import embed_pictures


def test_the_visual_tokens_are_those_of_the_file_with_its_sound(tmp_path):
  write_tiny(tmp_path / "checkpoint")
  model = SyncLipMAE.load(tmp_path / "checkpoint")
  images = [numbered(t * 40503 % 65536) for t in range(30)]
  sound = np.random.default_rng(0).normal(0, 0.1, 19_200).astype(np.float32)
  heard = model.embed(write_video(tmp_path / "heard.mp4", images, sound=sound), faces="full_frame")
  for path in (tmp_path / "heard.mp4", write_video(tmp_path / "silent.mp4", images)):
    silent = embed_pictures(model.embedder, path, faces="full_frame")
    for name in ("identity", "vocal", "ambient", "face_box", "times"):
      np.testing.assert_array_equal(getattr(silent, name), getattr(heard, name))
    assert np.isfinite(silent.audio).all() and np.abs(silent.audio - heard.audio).max() > 1e-3
