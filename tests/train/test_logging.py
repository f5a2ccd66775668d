from __future__ import annotations

import json
import pathlib
import sys

import numpy as np

from synclipmae_jax.train.logging import Logger


def log_of(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_values_of_one_step_share_a_line_and_resuming_drops_later_lines(tmp_path):
  log = Logger(tmp_path, step=0, total_steps=9)
  log.scalars(1, {"loss": np.float32(0.1), "bad": float("nan")})
  log.scalars(2, {"loss": 2.0})
  log.scalars(2, {"sync/acc": 0.5, "text": "a"})
  log.scalars(3, {"loss": 3.0})
  log.close()
  assert log_of(tmp_path) == [
    {"step": 1, "loss": float(np.float32(0.1)), "bad": None},
    {"step": 2, "loss": 2.0, "sync/acc": 0.5, "text": "a"},
    {"step": 3, "loss": 3.0},
  ]
  log = Logger(tmp_path, step=2, total_steps=9)
  log.scalars(2, {"sync/acc": 0.25})
  log.scalars(3, {"loss": 4.0})
  log.close()
  assert log_of(tmp_path)[1:] == [{"step": 2, "loss": 2.0, "sync/acc": 0.25, "text": "a"}, {"step": 3, "loss": 4.0}]


def test_without_a_terminal_there_is_a_line_per_interval_and_no_bar(tmp_path, capsys):
  log = Logger(tmp_path, step=0, total_steps=9)
  for step in range(1, 5):
    log.progress(step, f"loss {step}", line=step % 2 == 0)
  log.say("hello")
  log.close()
  captured = capsys.readouterr()
  assert captured.out == "step 2/9  loss 2\nstep 4/9  loss 4\nhello\n" and captured.err == ""


def test_on_a_terminal_the_bar_starts_at_the_first_step_of_the_run(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
  log = Logger(tmp_path, step=3, total_steps=9)
  log.progress(4, "loss 4", line=True)
  log.close()
  captured = capsys.readouterr()
  assert captured.out == "" and "4/9" in captured.err and "loss 4" in captured.err


def test_tensorboard_gets_scalars_and_pictures_without_tensorflow(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow", None)  # its import would now fail
  log = Logger(tmp_path, step=0, total_steps=9, tensorboard=True)
  log.scalars(1, {"loss": 1.5})
  log.images(1, {"views": np.full((8, 8, 3), 200, np.uint8)})
  log.close()
  (events,) = pathlib.Path(tmp_path / "tensorboard").iterdir()
  data = events.read_bytes()
  assert b"loss" in data and b"views" in data and b"PNG" in data
  assert (tmp_path / "pictures" / "views_0000001.png").exists()


def test_the_table_of_parameters(tmp_path):
  log = Logger(tmp_path, step=0, total_steps=9)
  log.parameters({"encoder": {"kernel": np.zeros((3, 5), np.float32)}}, {})
  log.close()
  text = (tmp_path / "parameters.txt").read_text()
  assert "encoder/kernel" in text and "(3, 5)" in text and "Total: 15" in text and "Frozen" not in text
