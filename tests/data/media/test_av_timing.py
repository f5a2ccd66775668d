"""A flash and a click of one moment land on one frame, at all rates, with all starts, and after ten minutes.

A flash begins between the last dark frame and the first lit one: the click must be heard between the two, which is
within half a frame of their middle. Made by plain PyAV and read by the readers of `prepare`.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import cycle

import numpy as np
import pytest
from awkward import bursts, click_times
from footage import write_video

from synclipmae_jax.data.media import audio, video
from synclipmae_jax.types import FPS

NTSC = 1001
RATES = {
  "23.976": Fraction(24000, NTSC), "24": 24, "25": 25, "29.97": Fraction(30000, NTSC), "30": 30, "50": 50,
  "59.94": Fraction(60000, NTSC), "variable": None,
}  # fmt: skip
STARTS = (-0.5, 0.0, 0.5)  # seconds by which the sound begins after the picture
SOUNDS = cycle([8000, 11025, 16000, 22050, 32000, 44100, 48000])
SLACK = 0.06  # frames, for the rise of a click behind a lossy codec
TICK = 0.02  # frames, for the milliseconds of Matroska
CASES = [(fps, start, next(SOUNDS), suffix) for start in STARTS for fps in RATES for suffix in ("mp4", "mkv")]


def picture_times(fps: str, seconds: float) -> list[Fraction]:
  if RATES[fps]:
    return [k / Fraction(RATES[fps]) for k in range(int(seconds * RATES[fps]))]
  steps = np.random.default_rng(0).integers(900, 6300, int(seconds * 30))  # of 1/90,000 s: 10 to 70 ms
  times = [Fraction(int(step), 90_000) for step in np.cumsum(steps) - steps[0]]
  return [time for time in times if time < seconds]


def check(path, fps: str, *, near: list[float], seconds: float, start: float, rate: int) -> None:
  """Raises AssertionError unless every flash and its click, at the first picture after each of `near`, are in place."""
  times = picture_times(fps, seconds)
  flashes = [min(time for time in times if time >= second) for second in near]  # they begin with a picture
  lit = [any(flash <= time < flash + Fraction(1, 4) for flash in flashes) for time in times]
  dark, bright = (np.full((32, 32, 3), value, np.uint8) for value in (20, 230))
  first_picture, first_sound = Fraction(max(0.0, -start)), Fraction(max(0.0, start))
  clicks = [float(flash - first_sound + first_picture) for flash in flashes]
  write_video(
    path, (bright if on else dark for on in lit), fps=RATES[fps] or 25, times=[time + first_picture for time in times],
    rate=rate, sound_codec="aac" if path.suffix == ".mp4" else "flac",
    sound_times=[(float(first_sound), bursts(seconds, clicks, rate=rate))],
  )  # fmt: skip
  info = video.probe(path)
  shown = np.array([frame.image.mean() > 128 for frame in video.read_frames(path)])
  assert len(shown) == pytest.approx(seconds * FPS, abs=3)
  lights = np.flatnonzero(shown[1:] & ~shown[:-1]) + 0.5
  heard = click_times(audio.Track(path, origin=info.origin, sound=info.sound).read(0, round(16000 * (seconds + 1))))
  assert len(lights) == len(heard) == len(near)
  for flash, light, click in zip(flashes, lights, heard, strict=True):
    assert abs(FPS * (click - flash)) <= SLACK
    assert -0.5 - TICK <= light - FPS * flash < 0.5 - TICK / 2  # a flash of the time of a frame is in that frame


@pytest.mark.parametrize(("fps", "start", "rate", "suffix"), CASES)
def test_a_flash_and_a_click_land_on_one_frame(tmp_path, fps, start, rate, suffix):
  check(tmp_path / f"a.{suffix}", fps, near=[1.0, 2.013], seconds=3.0, start=start, rate=rate)


@pytest.mark.slow
@pytest.mark.parametrize("fps", RATES)
def test_they_still_do_after_ten_minutes(tmp_path, fps):
  check(tmp_path / "a.mp4", fps, near=[1.0, 300.0, 600.0], seconds=602.0, start=0.5, rate=next(SOUNDS))
