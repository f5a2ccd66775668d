"""dub/dubber.py: from a video and speech to a file, with random weights."""

from __future__ import annotations

import wave
from fractions import Fraction

import av
import numpy as np
import pytest
from data.footage import write_video
from dubbing_checkpoint import write_dubber

from synclipmae_jax.data.media import planes
from synclipmae_jax.dub import dubber as module
from synclipmae_jax.dub import footage
from synclipmae_jax.dub.dubber import Dubber
from synclipmae_jax.types import InputError

RATE = 30


def scene(t, *, height=72, width=96):
  """A smooth picture that moves a little."""
  y, x = np.mgrid[:height, :width]
  wave = np.stack([np.sin(x / 9 + t / 7), np.cos(y / 11), np.sin((x + y) / 13 - t / 5)], axis=-1)
  return np.rint(128 + 80 * wave).astype(np.uint8)


def tone(seconds, *, rate=16_000):
  t = np.arange(round(seconds * rate)) / rate
  return (0.3 * np.sin(2 * np.pi * 220 * t) * (1 + np.sin(2 * np.pi * 3 * t))).astype(np.float32)


def write_wav(path, sound, *, rate=16_000):
  with wave.open(str(path), "wb") as file:
    file.setparams((1, 2, rate, len(sound), "NONE", ""))
    file.writeframes((sound * 32767).astype("<i2").tobytes())
  return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  place = tmp_path_factory.mktemp("dub")
  write_dubber(place)
  write_video(place / "a.mp4", [scene(t) for t in range(40)], fps=RATE, sound=tone(40 / RATE))
  write_video(place / "b.mp4", [scene(3 * t, height=64, width=64) for t in range(30)], sound=tone(30 / 25))
  write_video(place / "mute.mp4", [scene(t) for t in range(20)])
  write_wav(place / "long.wav", tone(2.5))
  write_wav(place / "short.wav", tone(0.8))
  write_wav(place / "empty.wav", tone(0))
  return place


@pytest.fixture(scope="module")
def model(place):
  return Dubber.load(place / "dubber", encoder=place / "encoder" / "0")


def read(path):
  """(pictures, their times in seconds, rate, seconds of sound)"""
  with av.open(str(path)) as container:
    stream = container.streams.video[0]
    frames = list(container.decode(video=0))
    rate = stream.average_rate
  with av.open(str(path)) as container:
    sound = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
  return (
    [frame.to_ndarray(format="rgb24") for frame in frames],
    [float(frame.pts * frame.time_base) for frame in frames],
    rate,
    sound,
  )


def seen_by_the_encoder(monkeypatch):
  """Pictures as they are handed over, before encoding: the samples of every plane."""
  handed = []
  whole = module.exchanging

  def watched(*args, **options):
    manager = whole(*args, **options)

    class Watched:
      def __enter__(self):
        write = manager.__enter__()

        def keep(frame):
          handed.append([planes._samples(frame, part).copy() for part in frame.format.components])
          write(frame)

        return keep

      def __exit__(self, *error):
        return manager.__exit__(*error)

    return Watched()

  monkeypatch.setattr(module, "exchanging", watched)
  return handed


def test_the_result_has_the_pictures_of_the_video_with_another_mouth(place, model, tmp_path, monkeypatch):
  handed = seen_by_the_encoder(monkeypatch)
  steps = []
  done = model.dub(place / "a.mp4", tmp_path / "x.mp4", audio=place / "long.wav", faces="full_frame",
                   compare=tmp_path / "both.mp4", progress=lambda *at: steps.append(at))  # fmt: skip
  assert (done.frames, done.dubbed, done.segments, done.driven_by) == (40, 40, 3, "audio")
  assert steps[-1] == (6, 6) and "the video is shorter" in done.notes[-1]
  own = list(footage.read(place / "a.mp4", np.arange(40)))
  before, times, rate, _ = read(place / "a.mp4")
  after, new_times, new_rate, sound = read(tmp_path / "x.mp4")
  assert (len(after), new_rate, after[0].shape) == (40, rate, before[0].shape)
  np.testing.assert_allclose(new_times, times, atol=1e-4)
  assert sound == pytest.approx(40 / RATE, abs=0.07)
  moved = 0
  for frame, samples in zip(own, handed, strict=True):
    luma = planes._samples(frame, frame.format.components[0])
    differs = samples[0] != luma
    assert not differs[:27].any() and not differs[:, :19].any() and not differs[:, 77:].any()  # of the mask
    moved += differs.sum()
  assert moved > 1000
  assert read(tmp_path / "both.mp4")[0][0].shape == (72, 192, 3)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["both.mp4", "x.mp4"]


def test_a_stopped_run_goes_on_and_ends_alike(place, model, tmp_path, monkeypatch):
  handed = seen_by_the_encoder(monkeypatch)
  options = dict(audio=place / "short.wav", faces="full_frame")
  model.dub(place / "a.mp4", tmp_path / "whole.mp4", **options)

  def stop(done, total):
    if done == 3:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    model.dub(place / "a.mp4", tmp_path / "x.mp4", progress=stop, **options)
  assert not (tmp_path / "x.mp4").exists() and (tmp_path / ".x.mp4.unfinished" / "000000.npy").exists()
  steps = []
  model.dub(place / "a.mp4", tmp_path / "x.mp4", progress=lambda *at: steps.append(at), **options)
  assert steps[0] == (2, 6) and len(steps) == 5
  assert all((a == b).all() for old, new in zip(handed[:40], handed[-40:], strict=True)
             for a, b in zip(old, new, strict=True))  # fmt: skip
  assert sorted(path.name for path in tmp_path.iterdir()) == ["whole.mp4", "x.mp4"]


def test_the_drive_changes_the_mouth_and_both_kinds_go_the_same_way(place, model, tmp_path):
  results = {}
  for name, drive in {"speech": dict(audio=place / "short.wav"), "mouth": dict(drive_video=place / "b.mp4")}.items():
    done = model.dub(place / "mute.mp4", tmp_path / f"{name}.mkv", faces="full_frame", **drive)
    results[name] = read(tmp_path / f"{name}.mkv")
    assert done.frames == 20 and results[name][3] == pytest.approx(0.8, abs=0.07)
  assert np.abs(results["speech"][0][5].astype(int) - results["mouth"][0][5]).max() > 10


@pytest.mark.parametrize(("fit", "speech", "frames", "seconds"), [
  ("trim", "short", 24, 0.8), ("loop", "long", 75, 2.5), ("loop", "short", 24, 0.8), ("pad", "short", 40, 40 / RATE),
])  # fmt: skip
def test_lengths_are_made_to_agree(place, model, tmp_path, fit, speech, frames, seconds):
  done = model.dub(place / "a.mp4", tmp_path / "x.mp4", audio=place / f"{speech}.wav", faces="full_frame", fit=fit)
  after, times, _, sound = read(tmp_path / "x.mp4")
  assert (done.frames, len(after)) == (frames, frames)
  np.testing.assert_allclose(np.diff(times), 1 / RATE, atol=1e-3)
  assert sound == pytest.approx(seconds, abs=0.07) and done.seconds == pytest.approx(seconds)
  assert len(done.notes) == 1


def test_turn_other_tracks_and_uneven_times_are_kept(place, model, tmp_path):
  times = [Fraction(t * 40 + (15 if t % 3 == 1 else 0), 1000) for t in range(20)]
  with av.open(str(tmp_path / "in.mkv"), "w") as container:
    picture = container.add_stream("libx264", rate=25)
    picture.width, picture.height, picture.pix_fmt = 96, 72, "yuv420p"
    picture.codec_context.time_base = Fraction(1, 1000)
    picture.set_display_rotation(90)
    sounds = [container.add_stream("aac", rate=16_000, layout="mono") for _ in range(2)]
    sounds[1].metadata["language"] = "fra"
    for t, second in enumerate(times):
      frame = av.VideoFrame.from_ndarray(scene(t), format="rgb24")
      frame.pts, frame.time_base = round(second * 1000), Fraction(1, 1000)
      container.mux(picture.encode(frame))
    container.mux(picture.encode())
    for stream in sounds:
      for first in range(0, 12_800, 1024):
        frame = av.AudioFrame.from_ndarray(tone(0.8)[None, first : first + 1024], format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = 16_000, Fraction(1, 16_000), first
        container.mux(stream.encode(frame))
      container.mux(stream.encode())
  done = model.dub(tmp_path / "in.mkv", tmp_path / "x.mp4", audio=place / "short.wav", faces="full_frame")
  assert done.notes == ("its sound track 1 of 2 is replaced, the others are kept",)
  with av.open(str(tmp_path / "x.mp4")) as container:
    assert [stream.type for stream in container.streams] == ["video", "audio", "audio"]
    assert container.streams[2].language == "fra"
    shown = list(container.decode(video=0))
  assert {round(frame.rotation) for frame in shown} == {90}
  np.testing.assert_allclose([float(f.pts * f.time_base) for f in shown], [float(t) for t in times], atol=2e-3)


def test_pictures_come_in_any_order(place):
  order = np.array([0, 1, 2, 3, 2, 1, 0, 1])
  forwards = [frame.to_ndarray() for frame in footage.read(place / "mute.mp4", np.arange(4))]
  for number, frame in zip(order, footage.read(place / "mute.mp4", order), strict=True):
    np.testing.assert_array_equal(frame.to_ndarray(), forwards[number])
  assert len(list(footage.read(place / "mute.mp4", np.zeros(3, int)))) == 3


@pytest.mark.parametrize("least", [-99.0, 99.0])
def test_of_a_face_that_the_model_does_not_know_it_says_so(place, model, tmp_path, monkeypatch, least):
  monkeypatch.setattr(model, "expected", {"mouth_gain": least})
  done = model.dub(place / "a.mp4", tmp_path / "x.mp4", audio=place / "short.wav", faces="full_frame")
  assert done.known == (done.mouth_gain > least) == (least < 0)
  assert any("does not know this face" in note for note in done.notes) == (not done.known)


def test_a_full_disk_leaves_what_was_generated(place, model, tmp_path, monkeypatch):
  kept, put = [], module.Unfinished.put

  def full(self, number, latents):
    if number == 1:
      raise OSError(28, "No space left on device")
    put(self, number, latents)
    kept.append(number)

  monkeypatch.setattr(module.Unfinished, "put", full)
  with pytest.raises((InputError, OSError), match="No space left"):
    model.dub(place / "a.mp4", tmp_path / "x.mp4", audio=place / "short.wav", faces="full_frame")
  assert kept == [0] and [path.name for path in tmp_path.iterdir()] == [".x.mp4.unfinished"]


def test_what_cannot_be_dubbed_is_said_before_anything_is_generated(place, model, tmp_path, monkeypatch):
  monkeypatch.setattr(model, "_segment", None)
  dub = lambda video="a.mp4", **drive: model.dub(
    place / video, tmp_path / "x.mp4", **{name: place / file for name, file in drive.items()}, faces="auto"
  )
  with pytest.raises(InputError, match="no face"):
    dub(audio="short.wav")
  with pytest.raises(InputError, match="empty.wav: it has no samples"):
    dub(audio="empty.wav")
  with pytest.raises(InputError, match="no face"):
    dub(drive_video="b.mp4")
  with pytest.raises(InputError, match="missing"):
    dub(audio="nowhere.wav")
  with pytest.raises(InputError, match="one thing that drives"):
    dub()
  monkeypatch.setattr(module, "_free_memory", lambda: 1000)
  with pytest.raises(InputError, match="GiB of memory"):
    model.dub(place / "a.mp4", tmp_path / "x.mp4", audio=place / "short.wav", faces="full_frame")
  with pytest.raises(InputError, match="suffix"):
    model.dub(place / "a.mp4", tmp_path / "x.avi", audio=place / "short.wav")
  with pytest.raises(InputError, match="another encoder"):
    Dubber.load(place / "dubber")
  with pytest.raises(InputError, match="no dubbing model"):
    Dubber.load(place / "encoder" / "0")
  assert not list(tmp_path.iterdir())
