"""What is kept of a stopped run, and for whom."""

import numpy as np

from synclipmae_jax.dub.unfinished import Unfinished


def test_segments_are_kept_for_the_same_work_only(tmp_path):
  out = tmp_path / "x.mp4"
  first = Unfinished(out, digest="a")
  assert first.get(0) is None and not list(tmp_path.iterdir())  # nothing before there is something to keep
  latents = np.arange(6, dtype=np.float16).reshape(2, 3)
  first.put(0, latents)
  np.testing.assert_array_equal(Unfinished(out, digest="a").get(0), latents)
  (tmp_path / ".x.mp4.unfinished" / "000001.npy").write_bytes(b"half")
  assert Unfinished(out, digest="a").get(1) is None
  assert Unfinished(tmp_path / "x.mkv", digest="a").get(0) is None
  other = Unfinished(out, digest="b")
  assert other.get(0) is None and not list(tmp_path.iterdir())
  other.put(3, latents)
  other.remove()
  assert not list(tmp_path.iterdir())
