"""The quality of clips: its numbers, thresholds that need no new clips, and the correction of an offset."""

from __future__ import annotations

import json

import numpy as np
import pytest
from footage import clicks, number_of, numbered, write_video
from preparing import SIZE, by_file, run, talk
from scipy.ndimage import gaussian_filter

from synclipmae_jax.apps import prepare as app
from synclipmae_jax.data import records
from synclipmae_jax.data.media import audio, video
from synclipmae_jax.data.offsets import read_clip
from synclipmae_jax.data.quality import Gates, _coverage, gated
from synclipmae_jax.types import InputError

SHARP = np.kron(np.random.default_rng(0).integers(0, 255, (24, 24, 3)), np.ones((8, 8, 1))).astype(np.uint8)


def film(path, image, *, sound, count=75):
  return write_video(path, [image] * count, sound=sound)


def test_numbers_of_a_clip_and_what_they_refuse(tmp_path):
  """A sharp face of a hundred pixels under noise, and a larger, blurred one under half a second of it."""
  raw, out = tmp_path / "raw", tmp_path / "out"
  raw.mkdir()
  noise = clicks(3, [], noise=0.1)
  film(raw / "a.mp4", SHARP, sound=noise)
  film(raw / "b.mp4", gaussian_filter(SHARP, (3, 3, 0)), sound=noise * (np.arange(48000) < 8000))
  for name, box in (("a", [50, 40, 130, 140]), ("b", [0, 0, 160, 192])):
    np.savez(raw / f"{name}.faces.npz", boxes=np.tile(np.float32(box), (75, 1)))
  settings = dict(faces="auto", size=96)
  found = by_file(run(raw, out, **settings))
  (a,), (b,) = ([clip["quality"] for clip in found[name]["clips"]] for name in ("a.mp4", "b.mp4"))
  assert (a["seconds"], a["face_pixels"], b["face_pixels"]) == (3.0, 100.0, 192.0)
  assert a["face_share"] == pytest.approx(80 * 100 / 192**2, abs=1e-3) and a["coverage"] == b["coverage"] == 1
  assert a["sharpness"] > 10 * b["sharpness"] and a["loud"] == 1 and b["loud"] == pytest.approx(1 / 6, abs=0.05)
  assert a["yaw"] is a["pitch"] is a["roll"] is a["lips"] is None, "there is no face mesh"
  assert 0 <= a["speech"] < 0.1

  stamp = [path.stat().st_mtime_ns for path in sorted(out.glob("clips/*/*"))]
  gates = Gates(min_face=120, min_sharpness=b["sharpness"] / 2)
  strict = by_file(run(raw, out, **settings, gates=gates))
  assert [path.stat().st_mtime_ns for path in sorted(out.glob("clips/*/*"))] == stamp, "no clip is cut again"
  assert strict["a.mp4"]["outcome"] == "rejected" and strict["b.mp4"]["outcome"] == "accepted"
  assert "its face has 100 pixels, --min-face is 120" in strict["a.mp4"]["reason"]
  (refused,) = strict["a.mp4"]["refused"]
  assert refused["quality"] == a and refused["reason"] in strict["a.mp4"]["reason"]
  lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
  assert by_file(type("", (), {"entries": lines})) == json.loads(json.dumps(strict))
  assert "blurred" in by_file(run(raw, out, **settings, gates=Gates(min_sharpness=a["sharpness"])))["b.mp4"]["reason"]
  assert by_file(run(raw, out, **settings))["a.mp4"]["clips"] == found["a.mp4"]["clips"], "the old ones are back"


def test_a_refused_clip_is_in_no_record_and_the_others_keep_their_files(tmp_path):
  (tmp_path / "raw").mkdir()
  images = [SHARP if t >= 50 else gaussian_filter(SHARP, (4, 4, 0)) for t in range(100)]
  write_video(tmp_path / "raw" / "a.mp4", images, sound=clicks(4, [], noise=0.1))
  settings = dict(min_seconds=2, max_seconds=2)
  (entry,) = run(tmp_path / "raw", tmp_path / "out", **settings).entries
  first, second = (clip["quality"]["sharpness"] for clip in entry["clips"])
  gates = Gates(min_sharpness=(first + second) / 2)
  manifest = run(tmp_path / "raw", tmp_path / "out", gates=gates, **settings)
  assert [clip["start"] for clip in manifest.entries[0]["clips"]] == [50]
  assert [clip["start"] for clip in manifest.entries[0]["refused"]] == [0]
  assert manifest.summary()["refused_clips"] == 1
  found = records.open_records(tmp_path / "out", split="train")
  record = found[0]
  assert len(found) == 1
  assert record["provenance"]["start_frame"] == 50 and record["n_frames"] == 50
  picture = video.read_windows(record["mp4"], [10], count=1, size=SIZE)[0, 0]
  assert np.abs(np.diff(picture.astype(float), axis=1)).mean() > 10, "it is the sharp one"


@pytest.mark.parametrize("offset", [5, -5, 12, -1])
def test_a_corrected_clip_has_the_pictures_and_the_sound_that_belong_together(tmp_path, offset):
  """A click at frame 30 of the sound, whose picture is `offset` frames late."""
  (tmp_path / "raw").mkdir()
  sound = clicks(3, [(30 + 0.5) / 25], noise=0.01)
  write_video(tmp_path / "raw" / "a.mp4", map(numbered, range(75)), sound=sound)
  (entry,) = run(tmp_path / "raw", tmp_path / "out", size=64).entries
  mp4, flac, arrays = read_clip(tmp_path / "out" / "clips" / entry["folder"] / "00", offset)
  frames = 75 - abs(offset)
  assert {len(arrays[name]) for name in ("face_box", "mouth_box", "landmarks")} == {frames}
  heard = audio.decode_flac(flac)
  assert len(heard) == 640 * frames
  at = int(np.abs(heard).argmax()) // 640
  shown = video.read_windows(mp4, [0], count=frames, size=64)[0]
  assert number_of(shown[at]) == 30 + offset
  assert [number_of(image) for image in shown] == list(range(max(0, offset), 75 + min(0, offset)))
  assert read_clip(tmp_path / "out" / "clips" / entry["folder"] / "00", offset)[0] == mp4, "the same bytes"


def judged(offset, *, confidence=0.9, sync=0.9, frames=75, known_lag=False, **gates):
  fine = dict(face_pixels=99, coverage=1, yaw=None, speech=None, sharpness=99)
  quality = fine | {"offset": offset, "offset_confidence": confidence, "sync": sync}
  entry = {"outcome": "accepted", "reason": "", "source": {"frames": 75},
           "clips": [{"start": 10, "frames": frames, "whole": True, "quality": quality}]}  # fmt: skip
  return gated(entry, Gates(**gates), shortest=40, known_lag=known_lag)


def test_an_offset_is_corrected_refused_or_left():
  (late,) = judged(5)["clips"]
  assert (late["start"], late["frames"], late["offset"], late["whole"]) == (15, 70, 5, False)
  (early,) = judged(-3)["clips"]
  assert (early["start"], early["frames"], early["offset"], early["whole"]) == (10, 72, -3, True)
  untouched = [judged(1), judged(5, confidence=0.4), judged(5, known_lag=True), judged(None), judged(5, sync=None)]
  assert ["offset" in done["clips"][0] for done in untouched] == [False] * 4 + [True]
  assert "its sound is 9 frames late, --max-offset is 8" in judged(-9, max_offset=8)["reason"]
  assert "too short: 35 frames, 40 are needed" in judged(10, frames=45)["reason"]
  refused = judged(0, sync=0.2, min_sync=0.5)
  assert refused["outcome"] == "rejected" and "with probability 0.20, --min-sync is 0.5" in refused["reason"]
  assert judged(0, sync=None, min_sync=0.5)["outcome"] == "accepted", "what is not known refuses nothing"


def test_frames_between_two_searches_count_as_found():
  found = np.zeros(50, bool)
  found[[0, 5, 10, 15, 20, 40, 45]] = True
  assert _coverage(found, 1) == 7 / 50 and _coverage(found, 5) == pytest.approx(1 - 11 / 50)
  assert _coverage(np.ones(3, bool), 5) == 1


def test_wrong_thresholds_are_one_sentence(tmp_path, capsys):
  talk((tmp_path / "raw").mkdir() or tmp_path / "raw" / "a.mp4")
  for option, value in (("--min-coverage", "1.5"), ("--max-yaw", "-1"), ("--min-sync", "nan")):
    arguments = ["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--sync-model", "none"]
    assert app.main([*arguments, option, value]) == 2
    assert f"{option} must be a number from 0" in capsys.readouterr().err
  assert app.main(["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--sync-model", str(tmp_path)]) == 2
  assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "out").exists()
  with pytest.raises(InputError, match="--min-face must be a number"):
    Gates(min_face=float("nan"))
