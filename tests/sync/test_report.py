from __future__ import annotations

import csv
import dataclasses
import json
import os
import warnings

import numpy as np
import pytest
from matplotlib.image import imread

from synclipmae_jax.sync import report
from synclipmae_jax.sync.result import FaceResult, FrameResult, SyncResult
from synclipmae_jax.types import InputError

COUNT = 100


def result(**changes) -> SyncResult:
  edge = [not 15 <= t < COUNT - 15 for t in range(COUNT)]
  frames = tuple(
    FrameResult(t=t / 25, lag=None if edge[t] else 5, score=None if edge[t] else 0.3, face=0, speech=t > 50)
    for t in range(COUNT)
  )
  values = dict(
    file="talk.mp4", fps=25.0, duration_s=COUNT / 25, lag_frames=5.0, lag_ms=200.0, confidence=0.97, interval=(4, 6),
    score=0.31, verdict="out_of_sync", reason="the lag is clear.", drift_ms_per_min=-0.04, frames=frames,
    faces=(FaceResult(id=0, start=0.0, end=4.0, box=(0.1, 0.1, 0.5, 0.6), speaking=0.94, lag_frames=5.0,
                      confidence=0.97, score=0.3),),
    curve=tuple(np.linspace(0, 0.3, 31)), checkpoint="demo", notes=("it has seen synthetic faces only.",),
  )  # fmt: skip
  return SyncResult(**(values | changes))


UNKNOWN = dict(
  verdict="not_synchronizable", lag_frames=None, lag_ms=None, interval=None, drift_ms_per_min=None, faces=(),
  confidence=0.02, reason="there is no speech.",
)  # fmt: skip


def test_one_file_is_explained_in_words():
  text = report.table([result()])
  row = text.splitlines()[2]
  assert row.split() == ["talk.mp4", "+5.0", "+200", "97", "%", "+4", "…", "+6", "out", "of", "sync"]
  assert "The picture comes 200 ms late: delay the sound by 200 ms." in text
  assert "\nffmpeg -i talk.mp4 -itsoffset 0.200 -i talk.mp4 -map 0:v -map 1:a -c copy talk_in_sync.mp4\n" in text
  assert "Drift: 0.0 ms a minute." in text  # never -0.0
  assert "Face 0: 0.0 – 4.0 s, speaks 94 % of the speech, lag +5.0 frames." in text
  assert "Note: it has seen synthetic faces only." in text


def test_every_verdict_has_its_sentence():
  early = result(lag_frames=-2.0, lag_ms=-80.0)
  assert report.advice(early) == "The picture comes 80 ms early: delay the picture by 80 ms."
  assert "-itsoffset 0.080 -i talk.mp4 -map 0:a -map 1:v" in report.table([early])
  assert "in sync: the lag is clear." in report.advice(result(verdict="in_sync", lag_frames=0.0, lag_ms=0.0))
  text = report.table([result(**UNKNOWN)])
  assert "cannot be told: there is no speech." in text and "ffmpeg" not in text and "Drift" not in text
  assert text.splitlines()[2].split()[:4] == ["talk.mp4", "–", "–", "2"]


def test_many_files_fit_the_terminal_whatever_they_are_called():
  names = ["short.mp4", "/footage/" + "x" * 200 + "/take 7.mp4", "接吻" * 60 + ".mp4", "\x1b[2Jevil\n", "\udcff.mp4"]
  text = report.table([result(file=name) for name in names])
  lines = text.splitlines()
  assert len(lines) == 2 + len(names) and "ffmpeg" not in text
  assert max(map(report._width, lines)) <= report.WIDTH
  assert "\x1b" not in text and text.encode()
  assert lines[3].startswith("/footage/xx") and "…" in lines[3] and "take 7.mp4 " in lines[3]
  assert len({report._width(line[: line.index("+5.0")]) for line in lines[2:]}) == 1  # one column
  assert report.table([]) == ""
  assert all(report._width(line) <= report.WIDTH for line in report.table([result(notes=("word " * 90,))]).splitlines())


def test_csv_reads_back(tmp_path):
  path = tmp_path / "lags.csv"
  report.write_csv([result(file='a "b",\n接.mp4'), result(**UNKNOWN), result(score=float("nan"))], path)
  with open(path, newline="", encoding="utf-8") as file:
    known, unknown, odd = csv.DictReader(file)
  assert known["file"] == 'a "b",\n接.mp4' and known["verdict"] == "out_of_sync" and known["faces"] == "1"
  assert [float(known[name]) for name in ("lag_frames", "lag_ms", "interval_low", "interval_high")] == [5, 200, 4, 6]
  assert unknown["lag_ms"] == unknown["interval_low"] == odd["score"] == ""
  report.write_csv([], path)
  assert path.read_text().count("\n") == 1 and os.listdir(tmp_path) == ["lags.csv"]


def with_map(count: int) -> SyncResult:
  score_map = np.random.default_rng(0).normal(0, 0.1, (count, 31)).astype(np.float16)
  score_map[:, 20] += 0.5
  score_map[:15] = score_map[-15:] = np.nan
  frames = tuple(FrameResult(t=t / 25, lag=5, score=0.5, face=0, speech=True) for t in range(count))
  return result(frames=frames, score_map=score_map, duration_s=count / 25)


def test_the_plot_shows_the_lag_over_the_score_map(tmp_path):
  path = tmp_path / "plot.png"
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    report.plot(with_map(3001), path)  # more frames than columns
    image = imread(path)[..., :3]
    report.plot(result(), path)
    plain = imread(path)[..., :3]
  for picture in (image, plain):
    assert 400 < picture.shape[0] < 1000 and 800 < picture.shape[1] < 2000
  blue = lambda picture: ((picture[..., 2] - picture[..., 0]) > 0.2).mean()  # the ground of the map
  assert blue(image) > 0.3 > 0.1 > blue(plain)


EMPTY_MAP = {"file": "$a_{接}.mp4", "score_map": np.full((COUNT, 31), np.nan)}


@pytest.mark.parametrize("changes", [UNKNOWN, UNKNOWN | {"frames": (), "curve": ()}, EMPTY_MAP])
def test_a_result_with_little_in_it_is_still_drawn(tmp_path, changes):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    report.plot(result(**changes), tmp_path / "p.png")
  assert imread(tmp_path / "p.png").ndim == 3


def test_a_path_that_cannot_be_written_is_one_sentence(tmp_path):
  (tmp_path / "folder").mkdir()
  for path in (tmp_path / "no" / "x", tmp_path / "folder"):
    with pytest.raises(InputError, match="cannot be written"):
      report.plot(result(), path)
    with pytest.raises(InputError, match="cannot be written"):
      report.write_csv([result()], path)
  assert os.listdir(tmp_path) == ["folder"]


def test_the_score_map_stays_out_of_the_json():
  plain = with_map(100).to_json()
  assert json.dumps(plain, allow_nan=False) and "score_map" not in plain
  assert with_map(100) == dataclasses.replace(with_map(100), score_map=None)
