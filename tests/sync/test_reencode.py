"""The re-encoder of the tests of `sync` must not shift picture or sound."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "data"))
from footage import clicks, write_video  # noqa: E402
from reencode import reencode  # noqa: E402

from synclipmae_jax.data.media import audio, video  # noqa: E402


@pytest.mark.parametrize(
  ("fps", "rate"), [(Fraction(24000, 1001), 16000), (25, 44100), (Fraction(30000, 1001), 48000), (50, 16000)]
)
def test_picture_and_sound_keep_their_clock(tmp_path, fps, rate):
  light = lambda index: 230 if index >= 50 else 20
  images = (np.full((64, 64, 3), light(index), np.uint8) for index in range(100))
  source = write_video(tmp_path / "a.mp4", images, sound=clicks(4, [2.2], rate=48000), rate=48000)
  out = reencode(source, tmp_path / "b.mp4", fps=fps, rate=rate)
  info = video.probe(out)
  assert info.fps == pytest.approx(float(fps), abs=0.01) and info.sample_rate == rate
  lit = [frame.image.mean() > 120 for frame in video.read_frames(out)]
  assert len(lit) == pytest.approx(100, abs=1)
  assert 50 <= lit.index(True) <= 50 + np.ceil(25 / fps)  # the first picture at or after second 2
  heard = audio.Track(out, origin=info.origin).read(0, 4 * 16000)
  assert abs(np.abs(heard).argmax() - 2.2 * 16000) <= 16
