"""Random recordings with a lag, corrected and read by plain PyAV: the lag is removed and nothing is lost."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
from recordings import Content, Recording, cut_by_edit_list, make, read

from synclipmae_jax.data.media.remux import fix_lag
from synclipmae_jax.types import InputError

SEEDS = 20
SLOW_SEEDS = 170
KINDS = {  # container: codecs of pictures, codecs of sound, other containers of the copy
  "mp4": (("libx264", "mpeg4"), ("aac", "libmp3lame", "ac3"), ("mov", "mkv", "ts")),
  "mov": (("libx264", "mpeg4", "mjpeg"), ("aac", "pcm_s16le"), ("mkv",)),
  "mkv": (("libx264", "mpeg4", "mpeg2video"), ("aac", "libmp3lame", "ac3", "flac"), ("mp4",)),
  "webm": (("libvpx",), ("libopus",), ("mkv",)),
  "ts": (("libx264", "mpeg2video"), ("aac", "libmp3lame", "ac3"), ("mp4", "mkv", "m2ts")),
  "avi": (("libx264", "mpeg4", "mjpeg"), ("pcm_s16le",), ("mkv", "mov")),
}
RATES = {"ac3": (32000, 44100, 48000), "libopus": (48000,)}
LAYOUTS = {"libmp3lame": ("mono", "stereo")}
B_FRAMES = ("libx264", "mpeg4", "mpeg2video")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  container: str
  target: str
  recording: Recording
  cut: tuple[float, float] | None  # seconds that an edit list presents
  lag: float  # seconds to be removed


def draw(seed: int) -> Case:
  rng = np.random.default_rng(seed)
  pick = lambda options: options[int(rng.integers(len(options)))]
  container = pick(list(KINDS))
  pictures, sounds, targets = KINDS[container]
  codec, sound = pick(pictures), pick(sounds)
  lag = float(pick((-1, 1)) * rng.integers(1, 8) * 0.04)
  avi = container == "avi"
  fps = pick([Fraction(25), Fraction(24), Fraction(30), Fraction(50), Fraction(30000, 1001)])
  start = 0.0 if avi else float(pick((0, 0.4) if container == "mp4" else (0, 0.4, 5, 40_000)))
  by_content = avi or start + lag < 0 or bool(rng.integers(2))
  recording = Recording(
    seconds=3.2,
    fps=fps,
    uneven=not avi and codec not in ("mpeg2video", "mpeg4", "mjpeg") and rng.random() < 0.3,
    codec=codec,
    b_frames=int(rng.integers(4)) if codec in B_FRAMES and not (avi and codec == "mpeg4") else 0,
    keyframes=pick((12, 250)),
    sound_codec=sound,
    rate=pick(RATES.get(sound, (16000, 22050, 32000, 44100, 48000))),
    layout=pick(LAYOUTS.get(sound, ("mono", "stereo", "5.1") if sound != "pcm_s16le" else ("mono", "stereo"))),
    tracks=1 if avi else pick((1, 1, 2)),
    start=start,
    lag=0.0 if by_content else lag,
    early=lag if by_content else 0.0,
  )
  cut = None
  if container in ("mp4", "mov") and recording.start == 0 and rng.random() < 0.5:
    cut = (float(rng.uniform(0, 1)), float(rng.uniform(2.2, 2.8)))
  target = container if rng.random() < 0.5 else pick(targets)
  return Case(container=container, target=target, recording=recording, cut=cut, lag=lag)


def round_trip(folder, seed: int) -> None:
  """Raises AssertionError if a copy differs from its source in more than the lag."""
  case = draw(seed)
  source = make(folder / f"a.{case.container}", case.recording)
  if case.cut:
    source = cut_by_edit_list(source, folder / f"cut.{case.container}", case.cut)
  out = folder / f"b.{case.target}"
  try:
    fix_lag(source, out, lag_ms=case.lag * 1000)
  except InputError as error:
    cut = case.cut and case.target not in ("mp4", "mov") and "hidden by an edit list" in str(error)
    foreign = (case.recording.codec, case.target) == ("mpeg4", "ts") and "cannot hold its video mpeg4" in str(error)
    assert (cut or foreign) and not out.exists(), f"{case}: {error}"
    return
  before, after = read(source), read(out)
  check(case, before, after)


def check(case: Case, before: Content, after: Content) -> None:
  # FFmpeg begins a cut at its first whole picture. Without edit lists the picture that is cut is shown in full.
  partly = int(bool(case.cut) and case.target not in ("mp4", "mov") and after.numbers[0] == before.numbers[0] - 1)
  numbers, pictures = after.numbers[partly:], after.pictures[partly:]
  late = len(numbers) - len(before.numbers) if case.cut else 0  # references of B-frames at the cut
  assert 0 <= late <= case.recording.b_frames and after.packets[0] - before.packets[0] == late + partly, case
  assert numbers[: len(before.numbers)] == before.numbers == sorted(before.numbers), case
  shown = pictures[len(before.pictures) - 1][0] - pictures[0][0]
  assert shown == pytest.approx(before.length, abs=0.002), case
  names = [name.replace("mp2float", "mp3float") for name in before.streams]
  if case.target == "avi":
    names = [name if name.startswith("video") else "audio pcm_s16le" for name in names]
  assert sorted(after.streams) == sorted(names), case
  earlier = max(0, -case.lag) if case.target in ("mp4", "mov", "avi") else 0  # sound before the first picture
  assert len(after.clicks) >= len([second for second in before.clicks if second > earlier]) >= 1, case
  assert min(after.pictures[0][0], after.clicks[0]) < 1.5, case
  wanted = 0.0 if partly else float(np.median(before.lags(case.recording))) - case.lag
  for lag in after.lags(case.recording):
    assert lag == pytest.approx(wanted, abs=0.005), case
  if not case.cut and case.container in ("mp4", "mov", "mkv", "webm"):
    assert abs(wanted) < 0.03, case  # encoder delay, which not every container stores


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_lag_in_is_no_lag_out(tmp_path, seed):
  round_trip(tmp_path, seed)


@pytest.mark.slow
def test_a_hundred_and_fifty_lags_in_are_no_lags_out(tmp_path):
  failures = []
  for seed in range(SEEDS, SLOW_SEEDS):
    folder = tmp_path / str(seed)
    folder.mkdir()
    try:
      round_trip(folder, seed)
    except Exception as error:
      failures.append(f"{seed}: {error}")
    for path in folder.iterdir():
      path.unlink()
  assert not failures, "\n".join(failures)
