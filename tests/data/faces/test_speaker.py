"""Of two faces the one is chosen whose lips move with the sound."""

from __future__ import annotations

import functools

import numpy as np
from footage import write_video
from preparing import by_file, run

from synclipmae_jax.data.faces.speaker import agreement, articulation, speakers_of
from synclipmae_jax.data.media import video
from synclipmae_jax.data.synthtalk.clip import make_clip
from synclipmae_jax.data.synthtalk.render import render


@functools.cache
def talking(index, seconds=5.0):
  """A SynthTalk clip whose lips and sound belong together: frames [n, 160, 160, 3] and waveform."""
  clip = make_clip(index, seed=0, split="train", seconds=seconds)
  return render(clip, size=160), clip.waveform()


def beside(path, left, right, sound):
  images = (np.concatenate([a, b], axis=1) for a, b in zip(left, right, strict=True))
  return write_video(path, images, sound=sound)


def test_the_face_that_speaks_is_taken(tmp_path):
  """One picture with two people, under the sound of either."""
  (tmp_path / "raw").mkdir()
  left, right = talking(0), talking(2)
  for name, sound in (("left.mp4", left[1]), ("right.mp4", right[1])):
    beside(tmp_path / "raw" / name, left[0], right[0], sound)
  found = by_file(run(tmp_path / "raw", tmp_path / "out", faces="mediapipe", size=64))
  assert [len(found[name]["clips"]) for name in ("left.mp4", "right.mp4")] == [1, 1]

  def shown(name):
    mp4 = (tmp_path / "out" / "clips" / found[name]["folder"] / "00.mp4").read_bytes()
    return video.read_windows(mp4, [20], count=1, size=64)[0, 0].astype(float)

  for name in ("left.mp4", "right.mp4"):
    assert found[name]["clips"][0]["frames"] == 125 and found[name]["clips"][0]["quality"]["lips"] > 0.1
    colours = [np.median(image, axis=(0, 1)) for image in (shown(name), left[0][20], right[0][20])]
    nearest = np.argmin([np.abs(colours[0] - colour).sum() for colour in colours[1:]])
    assert nearest == (name == "right.mp4"), "the crop is of the other person"


def test_a_change_of_the_speaker_is_followed_and_chance_is_not():
  rng = np.random.default_rng(0)
  sound, one, other = rng.normal(size=(3, 200)).astype(np.float32)
  one[:100] += 0.8 * sound[:100]
  other[100:] += 0.8 * sound[100:]
  shown = np.ones((2, 200), bool)
  found = speakers_of(np.array([agreement(one, sound), agreement(other, sound)]), shown)
  assert (found[:75] == 0).all() and (found[125:] == 1).all()
  silent = speakers_of(np.array([agreement(one, 0 * sound), agreement(other, 0 * sound)]), shown)
  assert (silent == -1).all()
  shown[1, 100:] = False  # where one is alone, there is no choice
  assert (speakers_of(np.array([agreement(one, sound), agreement(other, sound)]), shown)[100:] == -1).all()


def test_articulation_hears_the_band_of_speech_and_does_not_depend_on_the_blocks():
  t = np.arange(16000 * 14) / 16000
  swell = (1 + np.sin(2 * np.pi * 3 * t)) / 2
  quiet = 1e-3 * np.random.default_rng(0).normal(size=len(t))
  padded = lambda sound: lambda first, last: np.pad(sound, 640)[first + 640 : last + 640]
  hear = lambda hz, count: articulation(padded(quiet + swell * np.sin(2 * np.pi * hz * t)), count)
  assert hear(1500, 350).std() > 5 * hear(200, 350).std()
  np.testing.assert_allclose(hear(1500, 350)[10:240], hear(1500, 250)[10:240], atol=0.1)
