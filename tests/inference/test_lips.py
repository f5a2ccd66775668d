"""inference/lips.py: the vocal tokens of `embed`, of every face, with and without sound."""

import av
import numpy as np
import pytest
from data.footage import numbered, write_video
from tiny_checkpoint import write_tiny

from synclipmae_jax import SyncLipMAE
from synclipmae_jax.data.faces.track import FaceTrack
from synclipmae_jax.inference import lips
from synclipmae_jax.types import InputError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return SyncLipMAE.load(write_tiny(tmp_path_factory.mktemp("checkpoint") / "0"))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  sound = np.random.default_rng(0).normal(0, 0.1, 16_000 * 7).astype(np.float32)
  images = [numbered(t * 40503 % 65536) for t in range(150)]
  return write_video(tmp_path_factory.mktemp("file") / "a.mp4", images, sound=sound)


def test_the_tokens_are_those_of_embed(model, file, tmp_path):
  told = []
  (face,), _ = lips.read_lips(model.embedder, file, faces="full_frame", progress=lambda *s: told.append(s))
  expected = model.embed(file, faces="full_frame")
  np.testing.assert_allclose(face.vocal, expected.vocal, atol=1e-5)
  np.testing.assert_array_equal(face.face_box, expected.face_box)
  assert face.seen == 150 and told[-1][0] == 6.0 and told[-1][1] > 0

  silent = tmp_path / "silent.mp4"
  with av.open(str(file)) as whole, av.open(str(silent), "w") as out:
    stream = out.add_stream_from_template(whole.streams.video[0])
    for packet in whole.demux(video=0):
      if packet.dts is not None:
        packet.stream = stream
        out.mux(packet)
  (alone,), _ = lips.read_lips(model.embedder, silent, faces="full_frame")
  np.testing.assert_array_equal(alone.vocal, face.vocal)


class Two:
  """Stand-in for a tracker: one face in the first second, another one throughout, but for a gap."""

  def see(self, frame):
    pass

  def take(self, start, stop):
    times = np.arange(start, stop)

    def track(shown):
      box = np.where(shown[:, None], np.array([0.2, 0.2, 0.8, 0.8]), np.nan).astype(np.float32)
      return FaceTrack(box=box, track=np.where(shown, 0, -1), confidence=shown.astype(np.float32))

    return {3: track(times < 25), 5: track((times < 60) | (times > 70))}


def test_every_face_is_there_where_it_is_seen(model, file, monkeypatch):
  monkeypatch.setattr(lips, "open_faces", lambda *args, **kwargs: (Two(), ("a note",)))
  (longest, short), notes = lips.read_lips(model.embedder, file)
  assert "a note" in notes and short.seen == 25 and longest.seen == 139
  assert np.isnan(longest.vocal[60:71]).all() and np.isfinite(longest.vocal[71:]).all()
  assert np.isnan(short.vocal[25:]).all() and np.isfinite(short.face_box[:25]).all()


def test_without_a_face_it_is_refused(model, file, monkeypatch):
  class Nobody(Two):
    def take(self, start, stop):
      return {}

  monkeypatch.setattr(lips, "open_faces", lambda *args, **kwargs: (Nobody(), ()))
  with pytest.raises(InputError, match="no face is found in it"):
    lips.read_lips(model.embedder, file)
