"""Footage of known lag, judged, corrected and judged again by the model of the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from synclipmae_jax import SyncLipMAE
from synclipmae_jax.data.media.remux import fix_lag

CLIP = Path(__file__).parents[3] / "shared" / "clips" / "collins_lag5.mp4"  # its picture comes 5 frames late


@pytest.mark.slow
@pytest.mark.skipif(not CLIP.exists(), reason=f"{CLIP.name} is not here")
def test_what_is_mended_is_in_sync(tmp_path):
  model = SyncLipMAE.load()
  rng = np.random.default_rng(0)
  for number, (first, then) in enumerate([("mp4", "mov"), ("mkv", "mp4"), ("ts", "ts"), ("mov", "mkv"), ("ts", "mp4")]):
    lag = int(rng.integers(-9, 10))
    source, out = tmp_path / f"{number}.{first}", tmp_path / f"{number}_mended.{then}"
    fix_lag(CLIP, source, lag_ms=(5 - lag) * 40)
    judged = model.sync(source)
    assert abs(judged.lag_frames - lag) <= 1, (first, lag)
    fix_lag(source, out, lag_ms=judged.lag_ms)
    assert abs(model.sync(out).lag_frames) <= 1, (first, then, lag)
