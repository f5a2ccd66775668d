from __future__ import annotations

import json

import numpy as np
import pytest

from synclipmae_jax.baselines.linear import fit_linear
from synclipmae_jax.evaluation.report import write_entries
from synclipmae_jax.evaluation.sync import (
  SYNTHETIC_NOTE,
  References,
  evaluate_sync,
  measure_references,
  score_tokens,
)
from synclipmae_jax.metrics import sync
from synclipmae_jax.types import EvalClip

PROTOCOL_KEYS = {
  "acc": {"k1", "k5", "k15"},
  "offset": {"k1", "k5", "k15"},
  "r_precision": {"top1", "top2", "top3"},
}


def make_clip(rng, i: int, *, frames: int = 60, lag: int | None = 0, corpus: str = "synthtalk", truth=True) -> EvalClip:
  """A grey patch in the mouth region follows the loudness of the sound; the video is late by `lag`."""
  shift = lag or 0
  loud = rng.uniform(-1, 1, size=frames + 2 * abs(shift))
  heard, seen = loud[abs(shift) :][:frames], loud[abs(shift) - shift :][:frames]
  pictures = rng.integers(0, 255, size=(frames, 16, 16, 3))
  pictures[:, 9:14, 5:11] = (120 + 50 * seen)[:, None, None, None] + rng.normal(0, 15, size=(frames, 5, 6, 1))
  return EvalClip(
    key=f"{corpus}{i:03d}",
    corpus=corpus,
    identity=str(i),
    frames=np.clip(pictures, 0, 255).astype(np.uint8),
    waveform=(np.repeat(0.02 * np.exp(heard), 640) * rng.normal(size=640 * frames)).astype(np.float32),
    face_box=np.tile(np.float32([0, 0, 1, 1]), (frames, 1)),
    mouth_box=np.tile(np.float32([5, 9, 11, 14]) / 16, (frames, 1)),
    lag=lag,
    truth=np.stack([seen, np.sin(seen), rng.normal(size=frames)], 1).astype(np.float32) if truth else None,
    truth_names=("mouth/open", "mouth/width", "ambient/yaw") if truth else (),
  )


def planted_tokens(clip: EvalClip, *, noise: float = 0.0):
  """A model that encodes time: the audio token of t equals the video token of the frame that shows t."""
  rng = np.random.default_rng(int(clip.key[-3:]))
  source = rng.normal(size=(len(clip.frames) + 40, 16)).astype(np.float32)
  lag, frames = clip.lag or 0, len(clip.frames)
  audio, vocal = source[20 : 20 + frames], source[20 - lag : 20 - lag + frames]
  return audio, vocal + noise * rng.normal(size=vocal.shape).astype(np.float32)


@pytest.fixture(scope="module")
def clips() -> list[EvalClip]:
  rng = np.random.default_rng(0)
  return [make_clip(rng, i, lag=int(rng.integers(-10, 11)) if i % 2 else 0) for i in range(34)]


@pytest.fixture(scope="module")
def references(clips) -> References:
  rng = np.random.default_rng(1)
  return measure_references(clips, fit_linear(make_clip(rng, 100 + i) for i in range(12)))


def test_json_has_the_promised_keys_and_is_strict(clips, references, tmp_path):
  report = evaluate_sync(lambda clip: planted_tokens(clip, noise=6.0), clips, references=references)
  write_entries(tmp_path, report.to_json())
  assert [p.name for p in tmp_path.iterdir()] == ["eval.json"]  # no partial file is left

  def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")

  read = json.loads((tmp_path / "eval.json").read_text(), parse_constant=refuse)
  for place in (read, read["chance"], read["linear_baseline"], read["ceiling"], read["ci95"]):
    for group, names in PROTOCOL_KEYS.items():
      assert set(place[group]) == names
  assert read["clips"] == 34 and read["frames"] == 34 * 30 and read["skipped"] == [] and read["pool_note"] is None
  for group, names in PROTOCOL_KEYS.items():
    for name in names:
      low, high = read["ci95"][group][name]
      assert low < read[group][name] < high
      if group != "offset":
        assert 0 <= low <= high <= 1
  assert read["chance"]["acc"]["k5"] == pytest.approx(3 / 31)
  expected = np.mean([sync.chance(clip.lag)[1] for clip in clips])
  assert read["chance"]["offset"]["k15"] == pytest.approx(expected)
  assert read["chance"]["r_precision"] == {"top1": 1 / 32, "top2": 2 / 32, "top3": 3 / 32}
  assert {"utterance", "r_precision_within", "r_precision_mixed"} <= set(read)
  assert SYNTHETIC_NOTE in read["note"]


def test_planted_model_is_perfect_and_references_are_measured(clips, references):
  report = evaluate_sync(planted_tokens, clips, references=references)
  found = report.to_json()
  assert found["acc"] == {"k1": 1.0, "k5": 1.0, "k15": 1.0}
  assert found["offset"] == {"k1": 0.0, "k5": 0.0, "k15": 0.0}
  assert found["r_precision"] == {"top1": 1.0, "top2": 1.0, "top3": 1.0}
  for reference in (found["linear_baseline"], found["ceiling"]):  # the planted relation is linear but weak
    assert reference["acc"]["k15"] > 2 * found["chance"]["acc"]["k15"]
    assert reference["r_precision"]["top1"] > 1.3 * found["chance"]["r_precision"]["top1"]
  assert found["chance"]["acc"]["k1"] < found["linear_baseline"]["acc"]["k1"] < 1
  assert report.scalars()["acc/k5"] == 1.0


def test_references_are_measured_like_the_model(clips, references):
  """The baseline, passed as a model, gets the numbers of the baseline."""
  rng = np.random.default_rng(1)
  fits = fit_linear(make_clip(rng, 100 + i) for i in range(12))
  report = evaluate_sync(fits.pixels, clips, references=references).to_json()
  for group in PROTOCOL_KEYS:
    assert report[group] == report["linear_baseline"][group]
  assert report["linear_baseline_ci95"]["acc"] == report["ci95"]["acc"]


def test_real_footage_has_no_ceiling_and_its_lag_is_assumed():
  rng = np.random.default_rng(2)
  real = [make_clip(rng, i, lag=None, corpus="clips", truth=False) for i in range(4)]
  with_training = evaluate_sync(planted_tokens, real, references=measure_references(real, fit_linear(real))).to_json()
  assert with_training["linear_baseline"] is not None and with_training["ceiling"] is None
  assert with_training["lag_assumed_zero"] == [clip.key for clip in real]
  assert "0 is assumed" in with_training["note"] and SYNTHETIC_NOTE not in with_training["note"]
  assert "only 4 clips" in with_training["pool_note"]
  alone = evaluate_sync(planted_tokens, real).to_json()
  assert alone["linear_baseline"] is None and alone["ceiling"] is None
  assert measure_references(real, fit_linear([])) == References()


def test_short_clips_are_skipped_by_name_and_a_single_clip_leaves_nulls():
  rng = np.random.default_rng(3)
  report = evaluate_sync(planted_tokens, [make_clip(rng, 0, frames=20), make_clip(rng, 1, frames=sync.MIN_FRAMES)])
  found = report.to_json()
  assert found["skipped"] == ["synthtalk000"] and found["clips"] == 1
  assert found["acc"]["k5"] == 1.0 and found["ci95"]["acc"]["k5"] is None
  assert found["r_precision"]["top1"] is None and found["r_precision_within"]["top1"] == 1.0
  assert "skipped" in report.table()
  none = evaluate_sync(planted_tokens, [make_clip(rng, 0, frames=20)])
  assert none.to_json()["acc"]["k1"] is None and none.to_json()["clips"] == 0
  json.dumps(none.to_json(), allow_nan=False)
  assert none.scalars() == {} and "| -" in none.table().replace("  ", "")


def test_table_has_the_references_and_the_model(clips, references):
  table = evaluate_sync(lambda clip: planted_tokens(clip, noise=2.0), clips, references=references, name="Ours").table()
  lines = table.splitlines()
  rows = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
  assert rows == [
    "",
    "chance",
    "linear baseline",
    "Ours",
    "95 % interval, +-",
    "times linear",
    "linear map of the true mouth",
  ]
  assert len({len(line) for line in lines if line.startswith("|")}) == 1  # aligned
  assert "Acc K1" in lines[0] and "R@3" in lines[0]
  assert f"Note: {SYNTHETIC_NOTE}." in lines
  chance = [cell.strip() for cell in lines[2].split("|")[2:-1]]
  assert chance[0] == "9.7" and chance[-3:] == ["3.1", "6.2", "9.4"]


def test_tokens_that_do_not_fit_the_clip_are_refused(clips):
  with pytest.raises(ValueError, match="synthtalk000: 59 tokens for 60 frames"):
    score_tokens(lambda clip: tuple(t[:-1] for t in planted_tokens(clip)), clips[:1])


def test_a_mixture_is_scored_as_a_whole_and_each_corpus_as_if_it_were_alone():
  rng = np.random.default_rng(4)
  real = [make_clip(rng, i, corpus="grid", truth=False) for i in range(5)]
  drawn = [make_clip(rng, 10 + i) for i in range(4)]
  fits = fit_linear([*real, *drawn])
  noisy = lambda clip: planted_tokens(clip, noise=6.0)
  measured = lambda clips: evaluate_sync(noisy, clips, references=measure_references(clips, fits), split="val")
  mixed = [drawn[0], *real, *drawn[1:]]
  report, found = measured(mixed), measured(mixed).to_json()
  assert found["split"] == "val" and found["clips"] == 9 and found["by_corpus"].keys() == {"grid", "synthtalk"}
  for corpus, clips in (("grid", real), ("synthtalk", drawn)):
    alone = measured(clips).to_json()
    assert alone["by_corpus"] == {}
    for name in ("clips", "acc", "offset", "r_precision", "chance", "linear_baseline", "ci95"):
      one, other = found["by_corpus"][corpus][name], alone[name]
      assert one == ({group: other[group] for group in one} if name == "ci95" else other)
  weighted = (5 * found["by_corpus"]["grid"]["acc"]["k5"] + 4 * found["by_corpus"]["synthtalk"]["acc"]["k5"]) / 9
  assert found["acc"]["k5"] == pytest.approx(weighted)  # all clips have as many scored frames
  assert "| of grid, 5 clips" in report.table() and "|   linear, synthtalk" in report.table()
