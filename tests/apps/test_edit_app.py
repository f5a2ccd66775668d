from __future__ import annotations

import json

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data.footage import numbered, write_video
from tiny_checkpoint import write_tiny

from synclipmae_jax import SyncLipMAE
from synclipmae_jax.apps.cli import main as cli
from synclipmae_jax.data.faces.track import FaceTrack
from synclipmae_jax.inference import editing, stream
from synclipmae_jax.models.editing import decode_around
from synclipmae_jax.types import InputError

LENGTHS = {"a": 50, "b": 40, "c": 30}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  place = tmp_path_factory.mktemp("edit")
  write_tiny(place / "checkpoint")
  for number, (name, frames) in enumerate(LENGTHS.items()):
    tone = 0.3 * np.sin(np.arange(640 * frames) * 0.1 * (number + 1)).astype(np.float32)
    images = [numbered((t * 40503 + 9000 * number) % 65536) for t in range(frames)]
    write_video(place / f"{name}.mp4", images, sound=tone)
  (place / "bad.mp4").write_text("not a film")
  return place


@pytest.fixture(scope="module")
def model(place):
  return SyncLipMAE.load(place / "checkpoint", decoder=True)


def run(place, out, *arguments, **files):
  given = [text for role, name in files.items() for text in (f"--{role}", str(place / f"{name}.mp4"))]
  return cli(["edit", *given, "--out", str(out), "--checkpoint", str(place / "checkpoint"), "--faces", "full_frame",
              *arguments])  # fmt: skip


def read(path):
  """(frames, sound)"""
  with av.open(str(path)) as container:
    assert container.streams.video[0].average_rate == 25
    frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
  with av.open(str(path)) as container:
    sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
  return frames, sound


def pitch(sound):
  """Radians a sample."""
  return 2 * np.pi * np.abs(np.fft.rfft(sound[2000:14000])).argmax() / 12000


def test_three_files_give_one_as_long_as_the_shortest_with_the_sound_of_the_mouth(place, tmp_path, capsys):
  assert run(place, tmp_path / "x.mp4", "--json", identity="a", mouth="b", ambient="c") == 0
  frames, sound = read(tmp_path / "x.mp4")
  assert frames.shape == (30, 32, 32, 3)
  assert len(sound) == pytest.approx(30 * 640, abs=1100) and pitch(sound) == pytest.approx(0.2, abs=0.01)
  told = json.loads(capsys.readouterr().out)
  assert told["frames"] == 30 and told["size"] == 32 and told["audio"].endswith("b.mp4")
  assert told["identity"].endswith("a.mp4") and told["fit"] == "shortest"
  assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]  # nothing unfinished


def test_loop_is_as_long_as_the_mouth_and_the_sources_can_be_seen_beside(place, tmp_path, capsys):
  assert run(place, tmp_path / "x.mp4", "--fit", "loop", "--beside", identity="c", mouth="b") == 0
  frames, _ = read(tmp_path / "x.mp4")
  assert frames.shape == (40, 32, 128, 3)
  assert "x.mp4: 1.6 s, 32 x 32 pixels, sound of" in capsys.readouterr().out
  # The identity has 30 frames: frame 32 of the result shows number 26 again, on the way back.
  np.testing.assert_allclose(frames[32, :, :32].astype(int), frames[26, :, :32], atol=30)
  assert np.abs(frames[32, :, :32].astype(int) - frames[20, :, :32]).mean() > 10


def test_what_is_left_out_comes_from_the_identity_or_the_next_file():
  assert editing.sources_of({"identity": "a", "mouth": "b"}) == {"identity": "a", "mouth": "b", "ambient": "a"}
  assert editing.sources_of({"mouth": "b", "ambient": "c"}) == {"identity": "c", "mouth": "b", "ambient": "c"}
  assert set(editing.sources_of({"mouth": "b"}).values()) == {"b"}
  with pytest.raises(InputError, match="name at least one file"):
    editing.sources_of({"identity": None})


def test_frames_run_to_and_fro():
  assert editing.to_and_fro(4, 9).tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2]
  assert editing.to_and_fro(4, 3).tolist() == [0, 1, 2] and editing.to_and_fro(1, 3).tolist() == [0, 0, 0]


def test_the_picture_is_that_of_the_tokens_of_each_file(place, model):
  """Against the decoder called by hand, frame 7; a change of one file changes it."""
  path = lambda name: str(place / f"{name}.mp4")
  files = {"identity": path("a"), "mouth": path("b"), "ambient": path("c")}
  edit = lambda files: editing.edit_files(model.embedder, files, faces="full_frame")
  made = edit(files)
  crop = lambda file: stream.crop_file(model.embedder, file, faces="full_frame", longest=100)
  crops = {role: crop(file) for role, file in files.items()}
  rows = {"identity": 25, "mouth": 7, "ambient": 7}  # the surroundings are those of the middle of the identity's file
  names = ("frames", "face_box", "mouth_box")
  one = {role: [getattr(crops[role], name)[[t]] for name in names] for role, t in rows.items()}
  tokens = {role: model.embedder.encode_frames(f, face_box=b, mouth_box=m)[0] for role, (f, b, m) in one.items()}
  frames, box, _ = map(jnp.asarray, one["identity"])
  image = jax.jit(lambda p, f, b, **t: decode_around(model.embedder.model, p, f, b, **t))(
    model.embedder.params, frames, box, identity=tokens["identity"].identity, vocal=tokens["mouth"].vocal,
    ambient=tokens["ambient"].ambient,
  )  # fmt: skip
  np.testing.assert_allclose(made.frames[7].astype(int), np.clip(image[0], 0, 1) * 255, atol=1)
  for role in files:
    other = edit(files | {role: path("b" if role != "mouth" else "c")})
    assert np.abs(other.frames[:30].astype(int) - made.frames).max() > 0
  alone = edit(dict.fromkeys(files, path("a")))
  assert len(alone.frames) == 50 and (alone.shown["identity"] == alone.shown["mouth"]).all()


class Blinking:
  """A face that is away in some frames."""

  away = (*range(3), *range(20, 35))

  def see(self, frame):
    pass

  def take(self, start, stop):
    there = ~np.isin(np.arange(start, stop), self.away)
    box = np.where(there[:, None], np.float32([0.2, 0.2, 0.8, 0.8]), np.nan)
    return {0: FaceTrack(box=box, track=np.where(there, 0, -1), confidence=there.astype(np.float32))}


def test_a_frame_without_the_face_shows_the_one_before_and_that_is_said(place, model, monkeypatch):
  monkeypatch.setattr(stream, "open_faces", lambda *_, **__: (Blinking(), ()))
  crops = stream.crop_file(model.embedder, place / "a.mp4", longest=40)
  assert crops.missing == 18 and len(crops.frames) == 40 and len(crops.waveform) == 40 * 640
  assert (crops.frames[20:35] == crops.frames[19]).all() and (crops.frames[:3] == crops.frames[3]).all()
  assert (crops.frames[35] != crops.frames[19]).any()
  files = dict.fromkeys(editing.ROLES, str(place / "a.mp4"))
  (note,) = editing.edit_files(model.embedder, files).notes
  assert note == (files["mouth"], "18 of 50 frames are without the face: each shows the one before")
  monkeypatch.setattr(Blinking, "away", range(100))
  with pytest.raises(InputError, match="a.mp4: no face is found in it"):
    editing.edit_files(model.embedder, files)


def test_what_is_wrong_is_one_sentence_and_nothing_is_written(place, tmp_path, capsys):
  assert run(place, tmp_path / "x.avi", identity="a") == 2
  assert run(place, tmp_path / "x.mp4") == 2
  assert run(place, tmp_path / "x.mp4", identity="a", mouth="bad") == 2
  assert run(place, tmp_path / "x.mp4", identity="a", ambient="nowhere") == 2
  assert run(place, tmp_path / "none" / "x.mp4", identity="a") == 2
  assert run(place, place / "a.mp4", identity="a") == 2
  err = capsys.readouterr().err.splitlines()
  assert len(err) == 6 and all(line.startswith("synclipmae edit: ") for line in err)
  parts = "written as .mp4", "at least one file", "bad.mp4: ", "nowhere.mp4", "no folder", "never"
  assert all(part in line for line, part in zip(err, parts, strict=True))
  assert not list(tmp_path.iterdir())
