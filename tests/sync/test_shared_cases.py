"""Unusual files of real footage, judged by the model of the package; the right lags are in their READMEs.

The files lie beside the checkout and are not part of it.
"""

from __future__ import annotations

from pathlib import Path

import av
import pytest
from recordings import cut_by_edit_list

from synclipmae_jax import SyncLipMAE
from synclipmae_jax.data.media.remux import fix_lag
from synclipmae_jax.types import InputError

CASES = Path(__file__).parents[2].parent / "shared" / "cases"
NO_LAG = "not_synchronizable"


@pytest.fixture(scope="module")
def model():
  return SyncLipMAE.load()


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "lags", "note"),
  [
    ("advice_for_ts/base__5.ts", (5,), ""),
    ("antiphase_stereo/antiphase__5.mp4", (5,), "cancel each other"),
    ("h264_in_avi/h264nob__5.avi", (5,), ""),
    ("iphone_apac/apac2nd__5.mov", (5,), "sound track 2 (apac, fra) is left out"),
    ("iphone_apac/iphone_apac__5.mov", (5,), "sound track 2 (apac) is left out"),
    ("mp4_without_ctts/noctts__5.mp4", (5,), ""),
    ("one_sound_timestamp_far/jump_back_both3s__5.ts", (5,), "its clock starts again at 4.1 s"),
    ("one_sound_timestamp_far/one_sound_back__5.ts", (5,), "placed where its neighbours are"),
    ("one_sound_timestamp_far/one_sound_far__5.ts", (5,), "+1000.0 s off"),
    ("ts_far_start_to_mp4_mkv/tv__5.ts", (5,), ""),
    ("two_sound_tracks/musicfirst__5.mp4", (5,), "judged by its sound track 2 (aac); there is also sound track 1"),
    ("two_sound_tracks/dubfirst__5.mp4", None, "judged by its sound track 1 (aac); there is also sound track 2"),
  ],
)
def test_its_lag_and_what_is_said_of_it(model, name, lags, note):
  if not (CASES / name).exists():
    pytest.skip(f"there is no {CASES / name}")
  result = model.sync(CASES / name)
  assert result.lag_frames in (lags or (None,)) and (result.verdict == NO_LAG) == (lags is None)
  assert any(note in said for said in result.notes) if note else len(result.notes) == len(model.notes)


@pytest.mark.slow
def test_the_track_that_is_named_is_judged(model):
  path = CASES / "two_sound_tracks" / "dubfirst__5.mp4"
  if not path.exists():
    pytest.skip(f"there is no {path}")
  assert model.sync(path, audio_track=2).lag_frames == 5
  assert len(model.embed(path, audio_track=2).times) == 215


@pytest.mark.slow
def test_parts_that_were_joined_are_judged_as_one(model, tmp_path):
  path = CASES / "advice_for_ts" / "base__5.ts"
  if not path.exists():
    pytest.skip(f"there is no {path}")
  (tmp_path / "a.ts").write_bytes(path.read_bytes() * 3)
  result = model.sync(tmp_path / "a.ts")
  assert result.lag_frames == 5 and len(result.frames) >= 645
  assert any("starts again at 8." in note for note in result.notes)
  assert len(model.embed(tmp_path / "a.ts").times) >= 645


@pytest.mark.slow
def test_a_cut_within_a_picture_does_not_change_the_lag(model):
  """On the crops of MediaPipe's tracker the embedded model gives no answer for this file."""
  path = CASES / "mp4_trimmed_to_mkv" / "cut_ss__5.mp4"
  if not path.exists():
    pytest.skip(f"there is no {path}")
  assert model.sync(path, faces="skimage_lbp").lag_frames == 5


@pytest.mark.slow
def test_each_part_of_an_edit_list_has_the_lag_of_the_whole(model, tmp_path):
  path = CASES.parent / "clips" / "collins_lag5.mp4"
  if not path.exists():
    pytest.skip(f"there is no {path}")
  with av.open(str(path)) as source, av.open(str(tmp_path / "a.mp4"), "w") as target:  # its index at the end
    tracks = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
    for packet in source.demux():
      if packet.size:
        packet.stream = tracks[packet.stream_index]
        target.mux(packet)
  cut = cut_by_edit_list(tmp_path / "a.mp4", tmp_path / "cut.mp4", (0.5, 3.9), (5.0, 8.4))
  result = model.sync(cut)
  assert result.lag_frames == 5 and len(result.frames) == 170 and result.notes == model.notes
  with pytest.raises(InputError, match="after second 3.4 its pictures are hidden in part by an edit list"):
    fix_lag(cut, tmp_path / "b.mp4", lag_ms=result.lag_ms)


@pytest.mark.slow
def test_one_damaged_picture_of_a_corpus_is_a_gap(model):
  path = CASES.parent / "real" / "grid" / "original" / "sgib8n.mpg"
  if not path.exists():
    pytest.skip(f"there is no {path}")
  result = model.sync(path)
  assert len(result.frames) == 75 and any("damaged at 1.84 s, for 40 ms" in note for note in result.notes)
