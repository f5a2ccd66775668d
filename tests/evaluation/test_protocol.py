from __future__ import annotations

import json

import numpy as np
import pytest

from synclipmae_jax.evaluation import protocol as sync_benchmark
from synclipmae_jax.evaluation.protocol import Benchmark, inject_lag, measure_model
from synclipmae_jax.metrics import retrieval, sync
from synclipmae_jax.types import EvalClip


def make_clip(i: int, *, frames: int = 60, lag: int | None = 0) -> EvalClip:
  """Frame t shows the number t, and its 640 samples are t: picture and sound agree."""
  time = np.arange(frames)
  return EvalClip(
    key=f"clip{i:03d}",
    corpus="clips",
    identity=str(i),
    frames=np.broadcast_to(time[:, None, None, None], (frames, 4, 4, 3)).astype(np.uint8),
    waveform=np.repeat(time, 640).astype(np.float32),
    face_box=np.repeat(time[:, None], 4, axis=1).astype(np.float32),
    mouth_box=np.repeat(time[:, None], 4, axis=1).astype(np.float32),
    lag=lag,
    truth=time[:, None].astype(np.float32),
    truth_names=("mouth/open",),
  )


@pytest.fixture(scope="module")
def clips() -> list[EvalClip]:
  return [inject_lag(make_clip(i, lag=None), seed=0) for i in range(36)]


class Planted:
  """Tokens from the clip and time that a frame shows: perfect, or random with `knows` False."""

  name, context_frames = "Planted", 5

  def __init__(self, similarity, *, knows: bool = True):
    self.kind, self.knows = similarity, knows
    self.similarity = similarity

  def embed(self, clip: EvalClip):
    heard, seen = clip.waveform[::640].astype(int), clip.frames[:, 0, 0, 0].astype(int)
    number = int(clip.key[-3:])
    if not self.knows:
      rng = np.random.default_rng(number)
      return rng.normal(size=(len(heard), 8)), rng.normal(size=(len(seen), 8))
    table = np.random.default_rng(number).normal(size=(256, 8))
    if self.kind == "l2":  # norms differ, so the nearest token does not have the largest product
      table *= np.random.default_rng(1).uniform(0.1, 10, size=(256, 1))
    audio, video = table[heard], table[seen]
    # The two kinds of tokens of a pair scorer share only their first axis.
    return (audio, video) if isinstance(self.kind, str) else (audio[:, None], np.stack([video, -video], axis=1))


def fits(audio, video):
  assert len(audio) == len(video)
  return -np.abs(audio[:, 0] - video[:, 0]).sum(axis=1) if audio.ndim == 3 else (audio * video).sum(axis=1)


@pytest.mark.parametrize("similarity", ["cosine", "l2", fits], ids=["cosine", "l2", "pairs"])
def test_a_perfect_model_is_perfect_and_a_random_one_is_chance(clips, similarity):
  perfect = measure_model("planted", Planted(similarity), clips).scores.estimates
  for name, estimate in perfect.items():
    assert estimate.value == (0.0 if "offset" in name else 1.0), name
  random = measure_model("planted", Planted(similarity, knows=False), clips).scores
  chance = random.chance
  assert chance["acc/k1"] == pytest.approx(3 / 31) and chance["offset/k1"] > 240 / 31  # lags were injected
  for name, estimate in random.estimates.items():  # a few of 17 may be outside 95 %, none outside a wider one
    half = (estimate.high - estimate.low) / 2
    assert abs(estimate.value - chance[name]) < 1.8 * half, name


def test_injected_lags_have_their_sign_and_half_are_zero(clips):
  lags = []
  for clip in clips:
    heard, seen = clip.waveform[::640], clip.frames[:, 0, 0, 0]
    assert len(clip.waveform) == 640 * len(clip.frames) and len(clip.frames) == 60 - abs(clip.lag)
    times = np.arange(max(0, -clip.lag), len(heard) - max(0, clip.lag))
    np.testing.assert_array_equal(seen[times + clip.lag], heard[times])  # the sound of t is seen at t + lag
    for rows in (clip.face_box[:, 0], clip.mouth_box[:, 0], clip.truth[:, 0]):
      np.testing.assert_array_equal(rows, seen)
    lags.append(clip.lag)
  assert min(lags) < -4 and max(lags) > 4 and 0.3 < np.mean(np.equal(lags, 0)) < 0.75
  assert lags == [inject_lag(make_clip(i, lag=None), seed=0).lag for i in range(36)]  # depends only on seed and key
  assert lags != [inject_lag(make_clip(i, lag=None), seed=1).lag for i in range(36)]
  many = [inject_lag(make_clip(i, lag=None), seed=2).lag for i in range(400)]
  assert min(many) == -10 and max(many) == 10 and abs(np.mean(np.equal(many, 0)) - 11 / 21) < 0.08
  known = make_clip(0, lag=4)
  assert inject_lag(known, seed=0) is known


def test_positive_lag_is_a_late_picture():
  late = next(clip for i in range(99) if (clip := inject_lag(make_clip(i, lag=None), seed=0)).lag > 0)
  assert late.frames[0, 0, 0, 0] == 0 and late.waveform[0] == late.lag  # the sound is ahead


def test_pair_scorers_have_a_capped_number_of_queries(clips):
  asked = []

  def count(audio, video):
    asked.append(len(audio))
    return fits(audio, video)

  measure_model("planted", Planted(count), clips)
  lag_pairs = sum(31 * (len(clip.frames) - 30) for clip in clips)
  assert sum(asked) <= lag_pairs + 63 * (retrieval.PAIR_QUERIES + len(clips))


def test_all_rows_are_in_the_files_with_their_intervals(clips, tmp_path):
  def lse(key, audio, video):
    return sync_benchmark.syncnet_lse(key, audio, video)

  rows = [
    measure_model("syncnet", Planted("l2", knows=False), clips, checkpoint="DIR", lse=lse),
    measure_model("vocalist", Planted(fits), clips),
  ]
  benchmark = Benchmark(rows=rows, remarks=["the lag of 36 clips is unknown"])
  benchmark.write(tmp_path)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["sync.json", "sync.md"]
  read = json.loads((tmp_path / "sync.json").read_text(), parse_constant=pytest.fail)
  assert [row["kind"] for row in read["rows"]] == ["syncnet", "vocalist"] and read["rows"][0]["checkpoint"] == "DIR"
  assert [row["similarity"] for row in read["rows"]] == ["l2", "pairs"]
  groups = {"acc", "offset", "utterance", *retrieval.SAMPLERS}
  frames = sum(len(clip.frames) - 30 for clip in clips)
  for row in read["rows"]:
    assert row["name"] == "Planted-5" and row["context_frames"] == 5 and row["clips"] == 36 and row["frames"] == frames
    assert groups <= row.keys() and groups == row["ci95"].keys() == read["chance"].keys()
    for group in groups:
      for name, (low, high) in row["ci95"][group].items():
        assert low <= row[group][name] <= high
  assert read["lags"] == sorted(clip.lag for clip in clips)
  lse_d = read["rows"][0]["lse"]["lse_d"]
  assert lse_d["ci95"][0] < lse_d["value"] < lse_d["ci95"][1] and read["rows"][1]["lse"] is None
  text = (tmp_path / "sync.md").read_text()
  tables = [line for line in text.splitlines() if line.startswith("|")]
  assert [line.split("|")[1].strip() for line in tables if "--" not in line] == [
    "", "chance", "Planted-5", "Planted-5", "", "chance", "Planted-5", "Planted-5", "", "Planted-5"
  ]  # fmt: skip
  heads = [cell.strip() for cell in tables[0].split("|")[2:-1]]
  assert heads == ["Acc K1", "Off K1", "Acc K5", "Off K5", "Acc K15", "Off K15", "Acc utt", "Off utt", "R@1", "R@2",
                   "R@3", "clips", "frames"]  # fmt: skip
  perfect = [cell.strip() for cell in tables[4].split("|")[2:-1]]
  assert perfect[:2] == ["100.0 ±0.0", "0.00 ±0.00"] and perfect[-2:] == ["36", str(frames)]
  assert "LSE-D" in text and "the lag of 36 clips is unknown" in text and "1000 queries" in text


def test_too_short_clips_and_no_clips_are_reported():
  short = measure_model("planted", Planted("cosine"), [make_clip(0, frames=sync.MIN_FRAMES - 1), make_clip(1)])
  assert "1 clips with fewer than 45 frames were skipped" in Benchmark(rows=[short]).markdown()
  none = Benchmark(rows=[measure_model("planted", Planted("cosine"), [])])
  assert "0 clips" in none.markdown() and none.to_json()["rows"][0]["acc"]["k1"] is None
